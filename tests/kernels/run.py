# SPDX-License-Identifier: Apache-2.0
"""The packet tests under another kernel: Debian's own, in QEMU, on this machine's files.

`python -m tests.kernels.run` runs all of tests/packet; `--short` loads the filter and runs a sample. The kernel is the
one that Debian's package `linux-image-amd64` stands for (6.1 on Debian 12). It is unpacked, not installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.image import archive, closure

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".build" / "kernels"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "veth")
PACKAGE = "linux-image-amd64"
WANTED = (
    "boot/vmlinuz-*",
    "lib/modules/*/modules.builtin",
    *(f"lib/modules/*/kernel/{each}/*" for each in ("fs", "net", "drivers/virtio", "drivers/net")),
)
"""What a guest needs of the package."""

TESTS = ("tests/packet", "tests/native/test_kernel.py", "--ignore=tests/packet/test_peers.py")
"""That one tests a bench beside nftables, which the guest has no modules for."""
SAMPLE = (
    "tests/packet/test_sockets.py::test_an_established_connection_is_kept",
    "tests/packet/test_sockets.py::test_the_node_that_made_a_cookie_takes_it_back",
    "tests/packet/test_neighbours.py::test_arp",
    "tests/packet/test_neighbours.py::test_neighbour_discovery",
    "tests/packet/test_headers.py::TestFragments",
    "tests/packet/test_lease.py::test_zero_and_the_past_close_at_once",
)
"""Each module loads the filter; together they make it call every helper that it knows."""

_ENDED = re.compile(r"^guest: exit (\d+)\r?$", re.MULTILINE)
_UNAME = re.compile(r"^guest: Linux (\S+)\r?$", re.MULTILINE)


class CannotRunError(Exception):
    """No kernel or no emulator; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and its modules (lib/modules/VERSION)."""

    image: Path
    modules: Path


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended in a guest. `status` is None if the guest died."""

    kernel: str
    status: int | None
    console: str
    seconds: float


def find_kernel(folder: Path = FOLDER) -> Kernel:
    """The kernel that is unpacked in `folder`; fetches the package if there is none. Raises CannotRunError."""
    if platform.machine() != "x86_64":
        raise CannotRunError("the other kernel is one for x86_64; run this on such a machine")
    unpacked = folder / "root"
    if not list(unpacked.glob("boot/vmlinuz-*")):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("linux-image-*.deb"):
            old.unlink()
        _run(["apt-get", "-q", "download", _package()], folder)
        (package,) = folder.glob("linux-image-*.deb")
        # Only what a guest needs, and in place when it is whole.
        part = folder / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        unpack = "dpkg-deb --fsys-tarfile {} | tar --extract --directory {} --wildcards {}"
        wanted = shlex.join(f"./{pattern}" for pattern in WANTED)
        _run(["bash", "-o", "pipefail", "-c", unpack.format(package.name, part.name, wanted)], folder)
        package.unlink()
        shutil.rmtree(unpacked, ignore_errors=True)
        part.rename(unpacked)
    image = max(unpacked.glob("boot/vmlinuz-*"))
    return Kernel(image, unpacked / "lib" / "modules" / image.name.removeprefix("vmlinuz-"))


def _package() -> str:
    """The package that the distribution's name for its kernel stands for."""
    listed = _run(["apt-cache", "depends", PACKAGE], FOLDER)
    found = re.search(r"Depends: (linux-image-\S+)", listed)
    if found is None:
        raise CannotRunError(f"apt knows no kernel: run `apt-get update` and see `apt-cache depends {PACKAGE}`")
    return found[1]


def run_in_guest(kernel: Kernel, command: str, *, accelerator: str = "tcg", limit_s: float = 1800) -> Result:
    """Run a shell command in the project's folder under `kernel`. Raises CannotRunError."""
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        raise CannotRunError("QEMU is missing: make setup, or apt-get install qemu-system-x86")
    init, initrd = FOLDER / "init", FOLDER / f"initrd-{os.getpid()}"
    _run(["cc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(init), f"{ROOT}/tests/kernels/init.c"], ROOT)
    initrd.write_bytes(archive(init, closure(kernel.modules, MODULES), command))
    machine = [emulator, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-m", "2048", "-smp", "2"]
    machine += ["-accel", accelerator, "-cpu", "max", "-kernel", str(kernel.image), "-initrd", str(initrd)]
    machine += ["-append", f"console=ttyS0 quiet panic=-1 farm.folder={ROOT}"]
    machine += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            machine,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
        )
        console = done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        console = (late.stdout or b"").decode(errors="replace") + f"\nno end after {limit_s:.0f} s"
    finally:
        initrd.unlink()
    release, ended = _UNAME.search(console), _ENDED.search(console)
    return Result(
        release[1] if release else "no kernel", int(ended[1]) if ended else None, console, time.monotonic() - began
    )


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRunError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


def pytest_command(tests: tuple[str, ...]) -> str:
    """What the guest runs."""
    return shlex.join(
        [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--tb=short", *tests]
    )


def main() -> int:
    """Run the tests in a guest; its exit status, or 1 and one sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="load the filter and run a sample")
    parser.add_argument("--accelerator", default="tcg", choices=["kvm", "tcg"], help="kvm is faster where it works")
    chosen = parser.parse_args()
    try:
        tests = SAMPLE if chosen.short else TESTS
        result = run_in_guest(find_kernel(), pytest_command(tests), accelerator=chosen.accelerator)
    except CannotRunError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    print(result.console)
    status = "died" if result.status is None else f"exit {result.status}"
    print(f"Linux {result.kernel}: {status} after {result.seconds:.0f} s; this machine runs {platform.release()}")
    return 1 if result.status is None else result.status


if __name__ == "__main__":
    sys.exit(main())
