"""The one exception a user is meant to read."""

from __future__ import annotations


class SJRobustError(Exception):
    """A failure that can be named in one line: what is wrong, what was expected, what to do.

    The command line prints the message without a traceback and exits with 1.
    """
