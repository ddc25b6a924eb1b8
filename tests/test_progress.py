"""What is said of work under way where stderr is no terminal, and what is not counted into a
rate."""

from __future__ import annotations

import re

import pytest

from sj_robust import progress
from sj_robust.progress import bar


def test_a_log_gets_a_line_a_minute_with_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 70.0, 80.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with bar("attacks", 1000, unit="passes") as shown:
        shown.note("eps 2/255")
        shown.skip(500)  # by an earlier session: done, and no part of the rate
        for _ in range(3):
            shown.advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["attacks 70 %, 2.86 passes/s, 0:01:45 left; eps 2/255"]


def test_what_is_left_at_most_is_said_anew_when_less_is_to_be_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 30.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with bar("attacks", 1000, unit="passes") as shown:
        shown.left(1000)
        shown.advance(50)
        shown.left(150)  # most images fell to the first attack
        shown.advance(50)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["attacks 50 %, 1.67 passes/s, at most 0:01:00 left"]


def test_a_bar_on_a_terminal_of_80_columns_stays_on_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bar("attacks", 1000, unit="passes", show=True) as shown:
        shown.note("eps 2/255 rotating30+square250x6 PCW:1+ASSG+transfer: 1000 images")
        shown.skip(500)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", drawn) if line.strip()]
    assert lines and all(len(line) <= 80 for line in lines)
    assert re.match(r"attacks \S+ +50 %.* eps 2/255", lines[-1])
    assert len({line[:7] for line in lines}) == 1  # no line begins with the rest of the note


def test_nothing_is_shown_where_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("clean", 10, show=False) as shown:
        shown.advance(10)
    assert capsys.readouterr().err == ""
