"""How lists and tables are put into words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """ "did you mean a, b?" with up to three of `names`, the nearest first and case aside; empty
    where none is near."""
    known = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=cutoff)
    return f"did you mean {', '.join(known[match] for match in near)}?" if near else ""


def few(items: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Rows as lines with columns one below the other: all to the left, or with `numbers` those
    behind the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    put = str.rjust if numbers else str.ljust
    return [
        "  ".join([row[0].ljust(widths[0]), *map(put, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def ruled(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of numbers, with a rule below its header."""
    header, *lines = aligned(rows, numbers=True)
    return [header, "-" * len(header), *lines]
