"""The command line: `sj-robust COMMAND`. Importing it, and `--help`, import no torch."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from sj_robust.cli.app import app
from sj_robust.cli.common import several_processes
from sj_robust.secrets import masked

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 a failure named in one line on stderr, 2 wrong usage."""
    format_before, warnings.formatwarning = warnings.formatwarning, _unsaid if _another_speaks() else _one_line
    try:
        try:
            app()
        finally:
            warnings.formatwarning = format_before
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone. Whatever is still buffered must not raise again when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _one_line(message: Warning | str, *details: Any, **more: Any) -> str:
    """A warning as a user reads it: without the line of our code that gave it."""
    return f"sj-robust: warning: {masked(' '.join(str(message).split()))}\n"


def _unsaid(message: Warning | str, *details: Any, **more: Any) -> str:
    return ""


def _another_speaks() -> bool:
    """Whether this is one of several processes, and not the first."""
    if not several_processes():
        return False
    from sj_robust.distributed import rank

    return rank() > 0
