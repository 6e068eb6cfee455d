# SPDX-License-Identifier: Apache-2.0
"""Compiles what is not Python: the filter (clang), and behind cffi (a C compiler) libbpf and the mirror's engines.

`python cext/build.py` builds in place, for developers; `cext/hatch_build.py` calls the same function for wheels and
editable installs. Nothing is compiled again unless one of its sources is newer.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = "farmd.dataplane._libbpf"
CHECKSUM_MODULE = "farmd._checksum"


class BuildError(Exception):
    """Something that the build needs is missing; the text says how to get it."""


def build(root: Path = ROOT) -> list[Path]:
    """Compile the filter and the C modules into `farmd/`; returns the files. Raises BuildError."""
    return [build_filter(root), build_binding(root), build_checksum(root), build_mirrorfs(root)]


def build_filter(root: Path) -> Path:
    """Compile `ebpf/farm.bpf.c` for the kernel's virtual machine."""
    target = root / "farmd" / "dataplane" / "farm.bpf.o"
    sources = [*(root / "ebpf").glob("*.[ch]"), Path(__file__)]
    if _is_fresh(target, sources):
        return target
    clang = shutil.which(os.environ.get("CLANG", "clang"))
    if clang is None:
        raise BuildError("clang is missing: apt-get install clang")
    if not Path("/usr/include/bpf/bpf_helpers.h").exists():
        raise BuildError("the headers of libbpf are missing: apt-get install libbpf-dev")
    command = [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]
    command += [f"-fdebug-prefix-map={root}=.", "-Iebpf", *(f"-I{path}" for path in _multiarch_includes())]
    _replace(target, lambda out: _run([*command, "-c", "ebpf/farm.bpf.c", "-o", str(out)], root))
    return target


def build_binding(root: Path) -> Path:
    """Generate and compile the cffi module; it uses Python's stable ABI."""
    target = root / "farmd" / "dataplane" / "_libbpf.abi3.so"
    cdef, glue = root / "cext" / "libbpf.cdef", root / "cext" / "libbpf.c"
    abi, *hashing = (root / "ebpf" / name for name in ("farm_abi.h", "siphash.h", "hashkey.h"))
    if _is_fresh(target, [cdef, glue, abi, *hashing, Path(__file__)]):
        return target
    compiler, includes = _python_compiler()
    if not Path("/usr/include/bpf/libbpf.h").exists():
        raise BuildError("the headers of libbpf are missing: apt-get install libbpf-dev")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "_libbpf.c"
        declarations = [abi_declarations(abi.read_text()), cdef.read_text()]
        source.write_text(_binding_source(MODULE, declarations, glue.read_text()))
        command = [compiler, "-O2", "-g0", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
        # -Wno-unused-parameter: cffi's generated functions have some.
        command += [f"-I{root / 'ebpf'}", f"-I{includes}", str(source), "-lbpf"]
        _replace(target, lambda out: _run([*command, "-o", str(out)], root))
    return target


def build_checksum(root: Path = ROOT) -> Path:
    """Compile the checksum engine and its cffi module, again for Python's stable ABI."""
    target = root / "farmd" / "_checksum.abi3.so"
    folder = root / "cext" / "checksum"
    sources = sorted(folder.glob("*.c"))
    if _is_fresh(target, [*sources, *folder.glob("*.h"), *(root / "cext").glob("*.h"), Path(__file__)]):
        return target
    compiler, includes = _python_compiler()
    if not Path("/usr/include/xxhash.h").exists():
        raise BuildError("the headers of xxHash are missing: apt-get install libxxhash-dev")
    with tempfile.TemporaryDirectory() as temporary:
        glue = Path(temporary) / "_checksum.c"
        abi = abi_declarations((folder / "abi.h").read_text())
        glue.write_text(_binding_source(CHECKSUM_MODULE, [abi], '#include "abi.h"'))
        command = [compiler, "-std=gnu11", "-O2", "-g0", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
        command += ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
        command += [f"-I{folder}", f"-I{includes}", str(glue), *map(str, sources), "-lxxhash"]
        _replace(target, lambda out: _run([*command, "-o", str(out)], root))
    return target


def _python_compiler() -> tuple[str, Path]:
    """A C compiler, and where Python's headers are."""
    compiler = shutil.which((os.environ.get("CC") or "cc").split()[0])
    if compiler is None:
        raise BuildError("a C compiler is missing: apt-get install gcc")
    includes = Path(sysconfig.get_path("include"))
    if not (includes / "Python.h").exists():
        raise BuildError("the headers of Python are missing: apt-get install python3-dev")
    return compiler, includes


def build_mirrorfs(root: Path) -> Path:
    """The mirror's write-through file system, its stream and its receiver: `farmd/_mirrorfs.abi3.so`."""
    target = root / "farmd" / "_mirrorfs.abi3.so"
    folder = root / "cext" / "mirror"
    sources = sorted(folder.glob("*.c"))
    if _is_fresh(target, [*sources, *folder.glob("*.h"), *(root / "cext").glob("*.h"), Path(__file__)]):
        return target
    compiler = shutil.which((os.environ.get("CC") or "cc").split()[0])
    if compiler is None:
        raise BuildError("a C compiler is missing: apt-get install gcc")
    for header, package in {"xxhash.h": "libxxhash-dev", "openssl/ssl.h": "libssl-dev"}.items():
        if not Path("/usr/include", header).exists():
            raise BuildError(f"<{header}> is missing: apt-get install {package}")
    with tempfile.TemporaryDirectory() as scratch:
        glue = Path(scratch) / "_mirrorfs.c"
        glue.write_text(_mirrorfs_source((folder / "api.h").read_text()))
        command = [compiler, "-std=gnu11", "-O2", "-g0", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]
        command += ["-Wno-unused-parameter", f"-I{folder}", f"-I{sysconfig.get_path('include')}", str(glue)]
        libraries = ["-lssl", "-lcrypto", "-lxxhash"]
        _replace(target, lambda out: _run([*command, *map(str, sources), *libraries, "-o", str(out)], root))
    return target


def _mirrorfs_source(api: str) -> str:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("\n".join(line for line in api.splitlines() if not line.startswith("#")))
    ffi.set_source("farmd._mirrorfs", '#include "api.h"')
    with tempfile.TemporaryDirectory() as folder:
        generated = Path(folder) / "generated.c"
        with contextlib.redirect_stdout(io.StringIO()):
            ffi.emit_c_code(str(generated))
        return "#define Py_LIMITED_API 0x030b0000\n" + generated.read_text()


def abi_declarations(header: str) -> str:
    """The text of `farm_abi.h` as cffi wants it: no preprocessor lines, fixed-width types by their C names."""
    text = "\n".join(line for line in header.splitlines() if not line.startswith("#"))
    text = text.replace("__u64", "unsigned long long").replace("__s64", "long long")
    return re.sub(r"__u(8|16|32)\b", r"uint\1_t", text)


def _binding_source(module: str, declarations: list[str], glue: str) -> str:
    import cffi  # only needed here: `build_filter` alone must work without it

    ffi = cffi.FFI()
    for each in declarations:
        ffi.cdef(each)
    ffi.set_source(module, glue)
    with tempfile.TemporaryDirectory() as folder:
        generated = Path(folder) / "generated.c"
        with contextlib.redirect_stdout(io.StringIO()):  # it says "generating"
            ffi.emit_c_code(str(generated))
        return "#define Py_LIMITED_API 0x030b0000\n" + generated.read_text()


def _multiarch_includes() -> list[Path]:
    """Where Debian keeps <asm/types.h>; other distributions have it in /usr/include, where clang looks anyway."""
    return [path.parent.parent for path in Path("/usr/include").glob("*-linux-gnu/asm/types.h")][:1]


def _is_fresh(target: Path, sources: list[Path]) -> bool:
    return target.exists() and all(target.stat().st_mtime > source.stat().st_mtime for source in sources)


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a new file beside `target`, then put it in place at once: others may be running the old one."""
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(new)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed:\n{done.stderr.strip()}")


def main() -> int:
    """Build in place and say what was built; 1 and one sentence if something is missing."""
    try:
        for path in build():
            print(path.relative_to(ROOT))
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
