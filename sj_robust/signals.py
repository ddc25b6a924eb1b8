"""Ctrl-C, and what a scheduler (SIGTERM) or a terminal that closes (SIGHUP) sends to end a
process."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sj_robust.files import remove_begun

# Windows has no SIGHUP
ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_TWINS = 2.0  # seconds: torchrun passes on what the terminal has sent to its processes already


class Ended(SystemExit):
    """A signal other than Ctrl-C asks for the end. Where nobody catches it, the exit status is a
    shell's, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


@contextmanager
def deferred_signals(*, patient: bool = False) -> Iterator[Callable[[], bool]]:
    """While the block runs these signals only ask, which the callable tells; at its end the first
    is delivered.

    A second one is delivered at once, or with `patient` waits for the end as well.
    """
    asked: list[tuple[int, float]] = []
    several = os.environ.get("WORLD_SIZE", "1") != "1"

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append((number, time.monotonic()))
        twin = several and asked[-1][1] - asked[0][1] < _TWINS
        if len(asked) > 1 and not patient and not twin:
            asked.clear()
            _restore(before)
            signal.raise_signal(number)

    before = _handle(ENDING, handler)
    try:
        yield lambda: bool(asked)
    finally:
        _restore(before)
        if asked:
            signal.raise_signal(asked[0][0])


@contextmanager
def ending_signals(say: Callable[[str], object]) -> Iterator[None]:
    """For a command: SIGTERM and SIGHUP raise Ended where they would kill, as Ctrl-C raises
    KeyboardInterrupt.

    During an import all three end the process at once, after a word to `say` and without the files
    that were begun: an exception could be swallowed there, or come out as another one. So does a
    second one, if it is not an echo of the first; while the interpreter is taken down they do
    nothing.
    """
    first: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        interrupted = number == signal.SIGINT
        if first and time.monotonic() - first[0] < _TWINS:
            return
        if first or _imports(frame):
            say("interrupted" if interrupted else f"ended by {signal.Signals(number).name}")
            remove_begun()
            os._exit(1 if interrupted else 128 + number)
        first.append(time.monotonic())
        raise KeyboardInterrupt if interrupted else Ended(number)

    def again(number: int) -> None:
        first.clear()
        if signal.getsignal(number) is handler:
            os.kill(os.getpid(), number)

    def lost(unraisable: Any) -> None:
        """The handler ran where Python drops exceptions, in a finalizer or a callback: the signal
        is sent again."""
        number = signal.SIGINT if isinstance(unraisable.exc_value, KeyboardInterrupt) else None
        if isinstance(unraisable.exc_value, Ended):
            number = int(unraisable.exc_value.code or 0) - 128  # type: ignore[assignment, arg-type]
        if number is None:
            hook(unraisable)
        else:
            threading.Timer(0.05, again, (number,)).start()

    atexit.register(_ignore_all)
    hook, sys.unraisablehook = sys.unraisablehook, lost
    before = _handle(
        [
            number
            for number in ENDING
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
        ],
        handler,
    )
    try:
        yield
    finally:
        _restore(before)
        sys.unraisablehook = hook


def _handle(numbers: list[int], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler for those that are not ignored (nohup, a job in the background); the handlers
    before. Only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }


def _ignore_all() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
