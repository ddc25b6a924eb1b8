"""The command line: `sj-robust COMMAND`. Importing it, and `--help`, import no torch."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from sj_robust.signals import Ended, ending_signals
from sj_robust.text import visible

if TYPE_CHECKING:
    from sj_robust.cli.app import app as app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 1 a failure named in one line on stderr, or Ctrl-C, 2 wrong usage, 143
    SIGTERM and 129 SIGHUP.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: nobody wants to see it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            # a terminal that has no ε shows ?, and no result is lost over it
            getattr(sys, name).reconfigure(errors="replace")
    format_before, warnings.formatwarning = (
        warnings.formatwarning,
        (_unsaid if _another_speaks() else _one_line),
    )
    try:
        try:
            with ending_signals(_say):
                _app()()
        finally:
            warnings.formatwarning = format_before
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        print(
            f"sj-robust: the output cannot be written ({error.strerror or error}): make room, or"
            " send it elsewhere",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:  # these two: no command was running yet, or none any more
        _say("interrupted")
        sys.exit(1)
    except Ended as end:
        _say(f"ended by {end.signal}")
        raise


def _drop_output() -> None:
    """The reader (head, less) has gone, or the disk is full. Whatever is still buffered must not
    raise again when Python closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _app() -> Any:
    from sj_robust.cli.app import app  # imported here, where a signal ends in one line

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _say(message: str) -> None:
    # Python's own stream may be in use at this moment
    os.write(2, f"sj-robust: {message}\n".encode())


def _one_line(message: Warning | str, *details: Any, **more: Any) -> str:
    """A warning as a user reads it: without the line of our code that gave it."""
    return f"sj-robust: warning: {visible(' '.join(str(message).split()))}\n"


def _unsaid(message: Warning | str, *details: Any, **more: Any) -> str:
    return ""


def _another_speaks() -> bool:
    """Whether this is one of several processes, and not the first."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from sj_robust.distributed import rank

    return rank() > 0
