"""README.md of a checkpoint as text: its metadata, the part that is generated, and what somebody
wrote around that. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from sj_robust.checkpoint.config import CARD
from sj_robust.errors import SJRobustError
from sj_robust.reading import parse_yaml

BEGIN = (
    "<!-- sj-robust: `sj-robust card` writes what is between this line and the one that ends it,"
    " and keeps what is around them -->"
)
END = "<!-- sj-robust: end of what `sj-robust card` writes -->"
# What cards had before they had these lines: they end with a table of versions, and every section
# has one of these headings.
_HEADINGS = (
    "## Load",
    "## Results",
    "### Can these numbers be trusted?",
    "### What the checks found",
    "### Limits of this evaluation",
    "## Spikes",
    "## Energy",
    "## How it was made",
)
_LAST_ROW = re.compile(r"^\| (?:made with \|.*|training \| \| not recorded) \|\n", re.MULTILINE)
WEIGHTS_ROW = re.compile(r"sha256 of model\.safetensors \| `([0-9a-f]{64})`")
# metadata that `card` writes from what is recorded; a licence and a base model may stand in the
# card alone
_OURS = frozenset(
    {"library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index", "sj_robust"}
)


def split(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and body of a card. Raises SJRobustError where it has no metadata, or some that is
    no YAML."""
    match = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    advice = "write it again with `sj-robust card FOLDER`"
    metadata = parse_yaml(match[1], f"the metadata of {CARD}", advice) if match else None
    if match is None or not isinstance(metadata, dict):
        raise SJRobustError(
            f"{CARD} has no metadata between two lines of ---: write it again with `sj-robust card"
            " FOLDER`"
        )
    return metadata, text[match.end() :]


def join(metadata: dict[str, Any], body: str) -> str:
    """The text of a card."""
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n{body}"


def parts(body: str) -> tuple[str, str, str] | None:
    """What is before the generated part of a card, that part with its two lines, and what is after
    it; None for a card without them."""
    begin, end = body.find(f"{BEGIN}\n"), body.rfind(f"{END}\n")
    if begin < 0 or end < begin:
        return None
    end += len(END) + 1
    return body[:begin], body[begin:end], body[end:]


def keep_own(old: str, new: str, tags: frozenset[str]) -> str:
    """The generated card `new`, with what somebody wrote into the `old` one outside of its
    generated part: text, metadata, and tags other than `tags`, which are ours."""
    metadata, body = split(new)
    generated = parts(body)
    assert generated is not None
    try:
        theirs, old_body = split(old)
    except SJRobustError:  # metadata that nobody can read is replaced; the text after it is not
        theirs, old_body = {}, re.sub(r"\A---\n.*?\n---\n", "", old, count=1, flags=re.DOTALL)
    around = parts(old_body)
    before, after = (around[0], around[2]) if around else ("\n", _own_text(old_body))
    added = {
        key: value for key, value in theirs.items() if key not in _OURS and key not in metadata
    }
    own_tags = [
        tag for tag in _listed(theirs.get("tags")) if isinstance(tag, str) and tag not in tags
    ]
    if added or own_tags:
        metadata = {
            **metadata,
            "tags": [*dict.fromkeys([*_listed(metadata.get("tags")), *own_tags])],
            **added,
        }
        return join(metadata, before + generated[1] + after)
    return new[: len(new) - len(body)] + before + generated[1] + after


def _own_text(body: str) -> str:
    """What was written by hand into a card without our two lines: all of one that was not
    generated, else sections that are none of ours and what follows the last table. What was changed
    inside of our sections cannot be told from what we wrote.
    """
    if not WEIGHTS_ROW.search(body):
        return f"\n{body.strip()}\n" if body.strip() else ""
    rows = list(_LAST_ROW.finditer(body))
    end = rows[-1].end() if rows else len(body)
    own = [
        section
        for heading, section in _sections(body[:end])
        if heading not in _HEADINGS and not heading.startswith("# ")
    ]
    text = "\n\n".join(piece.strip() for piece in (*own, body[end:]) if piece.strip())
    return f"\n{text}\n" if text else ""


def _sections(body: str) -> Iterator[tuple[str, str]]:
    """(heading, text with its heading) of each section; lines of code are no headings."""
    lines: list[str] = []
    heading, code = "# ", False
    for line in body.splitlines(keepends=True):
        code ^= line.startswith("```")
        if not code and re.match(r"#{1,6} ", line):
            yield heading, "".join(lines)
            heading, lines = line.strip(), []
        lines.append(line)
    yield heading, "".join(lines)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
