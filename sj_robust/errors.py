"""The one exception a user is meant to read."""

from __future__ import annotations

from sj_robust.secrets import masked


class SJRobustError(Exception):
    """A failure that can be named in one line: what is wrong, what was expected, what to do.

    The command line prints the message without a traceback and exits with 1. No token and no password gets into the message,
    whatever it was made of.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(masked(str(message)))


def first_line(error: Exception) -> str:
    """The first line of what `error` says that is not blank; what it is where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
