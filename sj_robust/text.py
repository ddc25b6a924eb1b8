"""The one filter for text that others wrote: what leaves the program is one bounded line that a
terminal only prints."""

from __future__ import annotations

import re

from sj_robust.masking import masked

LONGEST = 4000
"""Characters of one line on a terminal, in an error or in a warning."""


def visible(text: object, longest: int = LONGEST) -> str:
    """`text` as one line of at most `longest` characters, in which everything that would not simply
    be printed can be seen, and secrets cannot.

    Control characters (a terminal's escape sequences begin with one), line ends, marks that turn
    the direction of text and halves of surrogate pairs become escapes such as \\x1b. Of a text that
    is too long the end is kept too: there an error says what to do.
    """
    line = masked(str(text))
    if len(line) > longest:
        line = f"{line[: longest * 2 // 3 - 5]} ... {line[-(longest // 3) :]}"
    if line.isprintable():
        return line
    line = "".join(
        character if character.isprintable() else _escape(character) for character in line
    )
    return line if len(line) <= longest else line[: longest - 3] + "..."


def visible_lines(text: object) -> str:
    """The same for a text that consists of lines: each of them is filtered and may be `LONGEST`
    characters long."""
    return "\n".join(visible(line) for line in str(text).split("\n"))


def visible_json(text: str, *, ascii_only: bool = False) -> str:
    """JSON with everything in its strings escaped that a terminal would not simply print, or that
    is not ASCII."""
    if ascii_only:
        return re.sub(r"[^\x20-\x7e\n]", lambda match: _units(match[0]), text)
    return (
        text
        if text.replace("\n", "").isprintable()
        else re.sub(r"[^\x20-\x7e\n]", _escape_in_json, text)
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _escape_in_json(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else _units(match[0])


def _units(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
