"""Compiling the CPU kernel: once per machine, with whatever C compiler is there, into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from sj_robust.files import atomic_path, cache_folder

KERNELS = Path(__file__).resolve().parent / "kernels"

_ALWAYS = ("-O3", "-std=c11", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_TRIES = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())  # the first that compiles and loads
_SECONDS = 120

log = logging.getLogger(__name__)


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be had; then the reason is logged, once, as a warning.

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
            reason = f"{compiler[0]} failed: {next((line for line in lines if 'error' in line), lines[-1] if lines else error)}"
        except (OSError, subprocess.TimeoutExpired, AttributeError) as error:
            reason = str(error)
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
    """The kernel for this source, compiler and processor, from the cache or made now."""
    macros = _run([*command, "-dM", "-E", "-x", "c", os.devnull])  # compiler version and instruction set
    sources = [KERNELS / "lif.h", KERNELS / "lif_cpu.c"]
    key = hashlib.sha256("\0".join([macros, *command, *(source.read_text() for source in sources)]).encode()).hexdigest()
    try:
        library = cache_folder() / "kernels" / f"lif_cpu-{key[:24]}.so"
        if library.exists() and library.stat().st_uid == os.getuid():  # nobody else's code, even in a shared folder
            with suppress(OSError, AttributeError):  # damaged: made again
                return _open(library)
        with atomic_path(library) as temporary:
            return _build(command, temporary)
    except (OSError, RuntimeError):  # the cache cannot be used: compile for this process alone
        with tempfile.TemporaryDirectory() as work:
            return _build(command, Path(work) / "lif_cpu.so")


def _build(command: list[str], library: Path) -> ctypes.CDLL:
    """Compile into `library` and open it, so that nothing is kept that does not load."""
    with tempfile.TemporaryDirectory() as work:
        built = str(Path(work) / "lif_cpu.o")
        _run([*command, "-c", str(KERNELS / "lif_cpu.c"), "-o", built])
        # Linked without OpenMP's library: the symbols are those of the one that torch has loaded, with torch's own threads.
        undefined = ["-undefined", "dynamic_lookup"] if os.uname().sysname == "Darwin" else []
        _run([*(flag for flag in command if flag != "-fopenmp"), "-shared", *undefined, built, "-o", str(library)])
    return _open(library)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL).stdout


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    pointer, long, number, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    library.lif_forward_layer.argtypes = [pointer] * 4 + [long] * 5 + [number, whole, whole]
    library.lif_backward_layer.argtypes = [pointer] * 6 + [long] * 4 + [number, whole, whole, number, whole]
    library.lif_adapt_layer.argtypes = [pointer] * 5 + [long] * 4 + [number] * 3 + [whole]
    library.lif_blocks.argtypes = [long]
    library.lif_forward_layer.restype = library.lif_backward_layer.restype = library.lif_adapt_layer.restype = None
    library.lif_blocks.restype = long
    return library
