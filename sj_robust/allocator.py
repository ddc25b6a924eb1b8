"""Keeping freed memory: glibc hands large blocks back to the system, and fetching them anew costs a
quarter of a training step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEEP = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1}
# where glibc's own adjustment ends up in a program with large tensors
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_depth = 0


@contextmanager
def keep_large_blocks() -> Iterator[None]:
    """While the block runs, this process reuses the large blocks it frees; on exit what is free
    goes back to the system.

    For loops that allocate the same sizes again and again. Does nothing where the C library is not
    glibc, or where the user tunes it (MALLOC_… or GLIBC_TUNABLES in the environment).
    """
    global _depth
    libc = _glibc()
    if libc is None:
        yield
        return
    if not _depth:
        _set(libc, _KEEP)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            _set(libc, _USUAL)
            libc.malloc_trim(0)


def _set(libc: Any, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


def allocator_name() -> str:
    """How memory is allocated within `keep_large_blocks`, for reports."""
    tuned = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    if tuned:
        return " ".join(f"{name}={value}" for name, value in tuned.items())
    return "the system's" if _glibc() is None else "glibc, large blocks kept"


@cache
def _glibc() -> Any:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim and libc.gnu_get_libc_version else None
    except (AttributeError, OSError, TypeError):
        return None
