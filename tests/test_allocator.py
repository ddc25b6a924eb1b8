"""Large blocks are fetched from the system once, and handed back at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sj_robust import allocator

pytestmark = pytest.mark.skipif(allocator._glibc() is None, reason="needs glibc, untuned")

PROGRAM = """
import resource, torch
from contextlib import nullcontext, suppress
from sj_robust.allocator import keep_large_blocks
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(40 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
print(faults())
with suppress(ZeroDivisionError), keep_large_blocks():
    with keep_large_blocks():
        torch.ones(40 * 2**20 // 4)
    print(faults())
    before = resident()
    1 / 0
print(before - resident())
"""


def test_blocks_are_kept_inside_and_handed_back_at_the_end_even_after_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    outside, inside, given_back = map(int, done.stdout.split())
    # page faults; a few blocks are lost to fragmentation before it settles
    assert inside < outside / 2
    assert given_back > 30 * 1024  # KiB


def test_a_user_who_tunes_the_allocator_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    allocator._glibc.cache_clear()
    assert allocator._glibc() is None
    assert "MALLOC_ARENA_MAX=1" in allocator.allocator_name()
    monkeypatch.undo()
    allocator._glibc.cache_clear()
