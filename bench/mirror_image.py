# SPDX-License-Identifier: Apache-2.0
"""Small files in image mode, beside file mode, the same image without a mirror, and a bare directory in the same run.

`python -m bench.mirror_image` takes a minute or two. Both nodes and both disks share this machine; the disks are ext4
on loop devices on tmpfs, so journal commits are real and seeks are not. `creates` is create, write 4 KiB, close; `and
synced` counts until a sync of what was written has returned: in image mode both disks then have everything, in file
mode the kernel passes no syncfs on, so that the peer has received it all. `CPU us` is what a create takes of its own
thread: in image mode that is ext4's own work, which bounds the rate, while replication goes on behind it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.mirror_places import disk
from bench.report import publish, table
from farmd.mirror.durable import sync_file_system
from farmd.mirrord.image import FILE, Image, make
from tests.mirror.pair import Pair
from tests.mirror.trees import differences

CASES = ["bare", "file mode", "image alone", "image mode"]
IMAGE_BYTES = 1 << 30
GOAL = 20_000
"""Creates a second that image mode must reach on a quiet machine."""


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """What is in the image at `folder`/mount."""
    directory = folder / "data"
    directory.mkdir()
    image = Image(directory, folder)
    image.mount()
    try:
        yield directory
    finally:
        image.unmount()


@contextmanager
def place(case: str, disks: tuple[Path, Path]) -> Iterator[Path]:
    """The directory to write to; both sides are compared at the end."""
    if case == "bare":
        with tempfile.TemporaryDirectory(dir=disks[0]) as folder:
            yield Path(folder)
        return
    if case == "image alone":
        with tempfile.TemporaryDirectory(dir=disks[0]) as folder:
            (Path(folder) / "mount").mkdir()
            make(Path(folder) / "mount", IMAGE_BYTES)
            with mounted(Path(folder)) as directory:
                yield directory
        return
    pair = Pair(disks[0], disks[1], ack="strict")
    if case == "image mode":
        make(pair.backing, IMAGE_BYTES)
        subprocess.run(["cp", "--sparse=always", "-p", pair.backing / FILE, pair.copy / FILE], check=True)
        shutil.copystat(pair.backing, pair.copy)
    with pair:
        pair.join()
        if case == "image mode":
            with mounted(pair.base) as directory:
                yield directory
        else:
            yield pair.mount
        pair.settle()
        assert differences(pair.backing, pair.copy, times=False) == [], "the copies differ"


def work(folder: Path, files: int, synced: int) -> dict[str, float]:
    """Rates a second."""
    data = os.urandom(4096)
    where = folder / "many"
    where.mkdir()
    root = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    found: dict[str, float] = {}

    def create(name: str, sync: bool) -> None:
        fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, dir_fd=root)
        os.write(fd, data)
        if sync:
            os.fsync(fd)
        os.close(fd)

    try:
        sync_file_system(root)
        began, used = time.perf_counter(), time.thread_time()
        for number in range(files):
            create(f"{number:06}", False)
        found["creates/s"] = files / (time.perf_counter() - began)
        found["CPU us"] = (time.thread_time() - used) / files * 1e6
        sync_file_system(root)
        found["and synced/s"] = files / (time.perf_counter() - began)
        began = time.perf_counter()
        for number in range(synced):
            create(f"synced-{number}", True)
        found["with fsync/s"] = synced / (time.perf_counter() - began)
        began = time.perf_counter()
        for number in range(files):
            os.unlink(f"{number:06}", dir_fd=root)
        found["deletes/s"] = files / (time.perf_counter() - began)
    finally:
        os.close(root)
    shutil.rmtree(where)
    return found


def measure(rounds: int, files: int, synced: int) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds: what disturbs the machine disturbs every case."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mirror-image-") as scratch,
        disk(Path(scratch), "one", "3G") as one,
        disk(Path(scratch), "two", "3G") as two,
    ):
        Path(scratch).chmod(0o755)
        for _ in range(rounds):
            for case in CASES:
                with place(case, (one, two)) as folder:
                    for name, rate in work(folder, files, synced).items():
                        found[case][name].append(rate)
    return {case: {name: statistics.median(values) for name, values in of.items()} for case, of in found.items()}


def main() -> None:
    """Measure, print a table, keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=20_000, help="in each round")
    parser.add_argument("--synced", type=int, default=500, help="files with an fsync each")
    arguments = parser.parse_args()
    medians = measure(arguments.rounds, arguments.files, arguments.synced)
    columns = list(medians["bare"])
    print(table(["case", *columns], [[case, *(round(medians[case][name]) for name in columns)] for case in CASES]))
    reached = medians["image mode"]["creates/s"]
    print(f"image mode: {reached:,.0f} creates a second, {'at least' if reached >= GOAL else 'below'} {GOAL:,};")
    print(f"{reached / medians['bare']['creates/s']:.2f} of the bare directory's in the same run")
    print(publish("mirror-image", {"rounds": arguments.rounds, "files": arguments.files, "medians": medians}))


if __name__ == "__main__":
    main()
