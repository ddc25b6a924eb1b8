"""Text of others is one bounded line that a terminal only prints."""

from __future__ import annotations

import json

import pytest

from sj_robust import SJRobustError
from sj_robust.text import LONGEST, visible, visible_json, visible_lines

RAW = [
    "\x1b]0;owned\x07",
    "\x1b[2J",
    "a\nsj-robust: verified",
    "a\r\nb",
    "\x9b31m",
    "\x85",
    "\u2028line",
    "\u202etxt.exe",
    "\u2066x\u2069",
    "\u200bhidden",
    "\x00",
    "\x7f",
    "\x08\x08",
    "\ud800",
    "\udcff",
    "\ufeff",
    "\U000e0041tag",
    "\t",
]


@pytest.mark.parametrize("raw", RAW, ids=ascii)
def test_what_is_not_simply_printed_is_seen(raw: str) -> None:
    shown = visible(f"model {raw}")
    assert shown.isprintable()
    assert shown.startswith("model ")
    assert "\\" in shown
    assert visible(shown) == shown
    assert str(SJRobustError(f"no {raw}")).isprintable()
    document = visible_json(json.dumps({raw: [raw]}, indent=2, ensure_ascii=False))
    assert document.replace("\n", "").isprintable()
    assert json.loads(document) == {raw: [raw]}


@pytest.mark.parametrize(
    "plain", ["resnet20", "l∞ 8/255, µJ – naïve 模型 ", "[red]x[/red]", "a|b <c> `d` \\n", ""]
)
def test_other_text_stays_as_it_is(plain: str) -> None:
    assert visible(plain) == visible_json(plain) == plain


def test_lengths_are_bounded_and_the_end_is_kept() -> None:
    for text in ("x" * 10**6 + "advice", "\x1b" * 10**6 + "advice", "\U0010ffff" * 10**5):
        shown = visible(text)
        assert len(shown) <= LONGEST
        assert shown.isprintable()
    assert visible("x" * 10**6 + "advice").endswith("advice")
    assert len(visible("x" * 300, 80)) <= 80
    assert visible_lines("one\ntwo\x1b[1m") == "one\ntwo\\x1b[1m"
