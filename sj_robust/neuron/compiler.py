"""Compiling the CPU kernel: once per machine, with whatever C compiler is there, into the user's
cache.

A library in the cache runs as code of ours, and damage to it need not show: it may crash every
start, or flip spikes. So its name holds the hash of its content, which is checked before it is
opened, and opened is what was checked, not what lies there by then. A hash says nothing against
somebody who can write both: of folders and files that another user may write, nothing is run.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from sj_robust.errors import SJRobustError
from sj_robust.files import private_cache, write_atomic
from sj_robust.neuron.fused import HELD_STEPS

KERNELS = Path(__file__).resolve().parent / "kernels"

_ALWAYS = (
    f"-DMOST_STEPS={HELD_STEPS}",
    "-O3",
    "-std=c11",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# the first that compiles and loads
_TRIES = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
_SECONDS = 120

log = logging.getLogger(__name__)


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be had; then the reason is logged, once, as a
    warning.

    The compiler is $CC, else cc, gcc or clang. SJ_ROBUST_KERNELS=0 does without.
    """
    library, reason = _load()
    if library is None and os.environ.get("SJ_ROBUST_KERNELS") != "0":
        log.warning("sj-robust: no fused CPU kernel, the slower torch backend is used: %s", reason)
    return library


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("SJ_ROBUST_KERNELS") == "0":
        return None, "SJ_ROBUST_KERNELS=0"
    compiler = _compiler()
    if not compiler:
        return None, "no C compiler found (set CC, or install gcc or clang)"
    reason = ""
    for flags in _TRIES:
        try:
            return _compiled([*compiler, *_ALWAYS, *flags]), ""
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or "").strip().splitlines()
            last = lines[-1] if lines else error
            said = next((line for line in lines if "error" in line), last)
            reason = f"{compiler[0]} failed: {said}"
        except (OSError, subprocess.TimeoutExpired, AttributeError) as error:
            reason = str(error)
        except SJRobustError as error:
            return None, str(error)
    return None, reason


def cpu_kernel_status() -> str:
    """One line on the fused CPU kernel for `sj-robust doctor`."""
    library, reason = _load()
    return f"not available: {reason}" if library is None else "fused"


def _compiler() -> list[str]:
    if named := shlex.split(os.environ.get("CC", "")):
        return named if shutil.which(named[0]) else []
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), [])


def _compiled(command: list[str]) -> ctypes.CDLL:
    """The kernel for this source, compiler and processor, from the cache or made now.

    Raises SJRobustError where another user may write the cache. One that cannot be used at all
    costs only the compilation.
    """
    # compiler version and instruction set
    macros = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    sources = [(KERNELS / name).read_bytes() for name in ("lif.h", "lif_cpu.c")]
    key = hashlib.sha256(
        b"\0".join([macros.encode(), *map(os.fsencode, command), *sources])
    ).hexdigest()[:24]
    try:
        folder = private_cache("kernels")
    except (OSError, RuntimeError):
        return _open(_build(command))
    for path in sorted(folder.glob(f"lif_cpu-{key}-*.so")):
        with suppress(OSError, AttributeError):
            if (content := _checked(path)) is not None:
                return _open(content)
        log.warning(
            "sj-robust: %s is damaged, or another user may have written it: the CPU kernel is"
            " compiled again",
            path,
        )
        with suppress(OSError):
            path.unlink()
    library = _open(content := _build(command))  # opened first: nothing is kept that does not load
    with suppress(OSError):
        write_atomic(folder / f"lif_cpu-{key}-{_digest(content)}.so", content, mode=0o600)
    return library


def _checked(path: Path) -> bytes | None:
    """The content, where it is as its name says and nobody else could have written it."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_uid != os.geteuid()
            or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            return None
        content = file.read()
    return content if path.stem.endswith(f"-{_digest(content)}") else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _build(command: list[str]) -> bytes:
    """The library that `command` makes of the source."""
    with tempfile.TemporaryDirectory() as work:
        built, library = Path(work) / "lif_cpu.o", Path(work) / "lif_cpu.so"
        _run([*command, "-c", str(KERNELS / "lif_cpu.c"), "-o", str(built)])
        # Linked without OpenMP's library: the symbols are those of the one that torch has loaded,
        # with torch's own threads.
        undefined = ["-undefined", "dynamic_lookup"] if os.uname().sysname == "Darwin" else []
        _run(
            [
                *(flag for flag in command if flag != "-fopenmp"),
                "-shared",
                *undefined,
                str(built),
                "-o",
                str(library),
            ]
        )
        return library.read_bytes()


def _run(command: list[str]) -> str:
    # else a compiler speaks the user's language, in an encoding of its own
    plain = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_SECONDS,
        stdin=subprocess.DEVNULL,
        env=plain,
    ).stdout


def _open(content: bytes) -> ctypes.CDLL:
    """Open just these bytes, from memory or a copy of our own: a file in the cache may be replaced,
    or cut off under the process."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # not open to all
            # left open: a library is known by its path, so that no other may get this number
            memory = os.memfd_create("lif_cpu")
            with open(memory, "wb", closefd=False) as file:
                file.write(content)
            return _declared(
                ctypes.CDLL(f"/proc/self/fd/{memory}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
            )
    with tempfile.TemporaryDirectory() as work:
        library = Path(work) / "lif_cpu.so"
        library.write_bytes(content)
        return _declared(ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_LOCAL))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, long, number, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    library.lif_forward_layer.argtypes = [pointer] * 4 + [long] * 5 + [number] + [whole] * 3
    library.lif_backward_layer.argtypes = (
        [pointer] * 7 + [long] * 5 + [number, whole, whole, number, whole, whole]
    )
    library.lif_adapt_layer.argtypes = [pointer] * 5 + [long] * 4 + [number] * 3 + [whole]
    library.lif_blocks.argtypes = [long]
    library.lif_forward_layer.restype = library.lif_backward_layer.restype = (
        library.lif_adapt_layer.restype
    ) = None
    library.lif_blocks.restype = long
    return library
