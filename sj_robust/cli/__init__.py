"""The command line: `sj-robust COMMAND`. Importing it, and `--help`, import no torch."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from sj_robust.cli.app import app
from sj_robust.cli.common import several_processes
from sj_robust.text import visible

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 a failure named in one line on stderr, 2 wrong usage."""
    format_before, warnings.formatwarning = warnings.formatwarning, _unsaid if _another_speaks() else _one_line
    try:
        try:
            app()
        finally:
            warnings.formatwarning = format_before
            if sys.stdout is not None:  # closed: nobody wants to see it
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        print(f"sj-robust: the output cannot be written ({error.strerror or error}): make room, or send it elsewhere", file=sys.stderr)
        sys.exit(1)


def _drop_output() -> None:
    """The reader (head, less) has gone, or the disk is full. Whatever is still buffered must not raise again when Python closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(message: Warning | str, *details: Any, **more: Any) -> str:
    """A warning as a user reads it: without the line of our code that gave it."""
    return f"sj-robust: warning: {visible(' '.join(str(message).split()))}\n"


def _unsaid(message: Warning | str, *details: Any, **more: Any) -> str:
    return ""


def _another_speaks() -> bool:
    """Whether this is one of several processes, and not the first."""
    if not several_processes():
        return False
    from sj_robust.distributed import rank

    return rank() > 0
