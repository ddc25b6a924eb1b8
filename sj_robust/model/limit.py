"""A bound on what building a network may cost, for names and arguments that a stranger chose."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules import module as torch_module

from sj_robust.errors import SJRobustError
from sj_robust.model.hooks import hooked

LARGEST = 4000
"""More tensors than any network of timm has."""


@contextmanager
def within_size(what: str, tensors: int) -> Iterator[None]:
    """While the block runs, this thread may build a network of about `tensors` tensors and no far
    larger one.

    timm builds whatever its arguments say: 65,536 layers for minutes, or a table in a loop that
    makes no layer at all. So the parameters and modules registered are counted, and the calls of
    functions, of which timm's networks take at most 5,000 for each tensor. Counted, not timed: a
    slow machine refuses nothing else. Nested blocks count for the outermost alone.

    Raises SJRobustError naming `what` beyond that. Where a profiler is at work already, calls are
    not counted.
    """
    registered, calls, mine = 0, 0, threading.get_ident()
    most, most_calls = 8 * tensors + 2000, 8_000 * tensors + 300_000

    def refuse() -> None:
        raise SJRobustError(
            f"{what} asks for a network far larger than {tensors} tensors: refused before it is"
            " built"
        )

    def register(module: Any, name: str, part: Any) -> None:
        nonlocal registered
        if threading.get_ident() == mine:
            registered += 1
            if registered > most:
                refuse()

    def call(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > most_calls:
            sys.setprofile(None)
            refuse()

    profiled = sys.getprofile() is not None
    hooks = [
        torch_module.register_module_parameter_registration_hook(register),
        torch_module.register_module_module_registration_hook(register),
    ]
    with hooked(hooks):
        if not profiled:
            sys.setprofile(call)
        try:
            yield
        finally:
            if not profiled:
                sys.setprofile(None)
