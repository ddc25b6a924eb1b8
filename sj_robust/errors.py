"""The one exception a user is meant to read."""

from __future__ import annotations

from sj_robust.text import visible


class SJRobustError(Exception):
    """A failure that can be named in one line: what is wrong, what was expected, what to do.

    The command line prints the message without a traceback and exits with 1. Whatever names and
    values a message quotes, it is one line of bounded length that does nothing to the terminal it
    is shown on, and holds no token and no password.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(message))


def first_line(error: Exception) -> str:
    """The first line of what `error` says that is not blank; what it is where it says nothing."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
