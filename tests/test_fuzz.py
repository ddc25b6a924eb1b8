"""A slice of what scripts/fuzz.py does by the thousand: damaged files end in one line, or change
nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

COUNTS = {"configs": 16, "weights": 8, "evaluations": 8, "recipes": 24}


@pytest.fixture(scope="module")
def fuzz() -> Any:
    path = Path(__file__).resolve().parents[1] / "scripts" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_damaged_file_is_more_than_one_line_or_changes_a_figure(fuzz: Any) -> None:
    outcomes, wrong = fuzz.fuzz(COUNTS, seed=7)
    assert wrong == []
    for kind, count in COUNTS.items():
        assert sum(outcomes[kind].values()) == count
        assert outcomes[kind]["refused"] > 0
