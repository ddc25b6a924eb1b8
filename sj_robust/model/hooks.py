"""Hooks that end with a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """While the block runs, the hooks of `handles`; then they are removed."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
