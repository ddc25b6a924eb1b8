"""Two models on the same images: what holds on one alone, and the exact test of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import pytest

from sj_robust.compare import compare_paired, paired
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Report

ONE, OTHER = "resnet20-snn-t4.cifar10_linf_pgd", "resnet20-snn-t4.cifar10_linf_pgd_scratch"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def recorded(name: str) -> dict[str, Any]:
    import sj_robust

    entry = next(entry for entry in sj_robust.list_models() if entry.name == name)
    return json.loads((entry.folder / "evaluation.json").read_text())


def held(report: dict[str, Any], at: int | None) -> list[bool]:
    outcome = report["per_image"]
    right = [
        label == found for label, found in zip(outcome["label"], outcome["predicted"], strict=True)
    ]
    if at is None:
        return right
    return [ok and by is None for ok, by in zip(right, outcome["broken_by"][at], strict=True)]


def test_it_counts_images_and_is_the_exact_binomial_test() -> None:
    first, second = recorded(ONE), recorded(OTHER)
    pairs = compare_paired(ONE, OTHER)
    assert [round(pair.eps * 255) for pair in pairs] == [0, 2, 4, 8]
    for at, pair in zip((None, 0, 1, 2), pairs, strict=True):
        a, b = held(first, at), held(second, at)
        alone = sum(x > y for x, y in zip(a, b, strict=True))
        beside = sum(y > x for x, y in zip(a, b, strict=True))
        assert (pair.first_alone, pair.second_alone) == (alone, beside)
        assert (pair.first.correct, pair.second.correct, pair.images) == (sum(a), sum(b), len(a))
        n, least = alone + beside, min(alone, beside)
        tail = sum(comb(n, k) for k in range(least + 1)) / 2**n
        assert pair.p == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_the_command_says_the_same(cli: Cli, tmp_path: Path) -> None:
    told = json.loads(cli("compare", ONE, OTHER, "--paired", "--json").stdout)
    assert told == [pair.model_dump(mode="json") for pair in compare_paired(ONE, OTHER)]
    shown = cli("compare", ONE, OTHER, "--paired")
    assert shown.returncode == 0, shown.stderr
    assert f"{told[1]['first_alone']} " in shown.stdout
    assert "exact McNemar" in shown.stdout
    file = tmp_path / "one.json"
    file.write_text(json.dumps(recorded(ONE)))
    assert json.loads(cli("compare", file, OTHER, "--paired", "--json").stdout) == told
    whole = cli("compare", ONE, OTHER, "--paired", "--json", "--protocol", "strong@2")
    assert json.loads(whole.stdout) == told
    for wrong, code, message in (
        ((ONE, "--paired"), 2, "--paired takes two models"),
        ((ONE, OTHER, "--paired", "--markdown"), 2, "--paired takes two models"),
        ((ONE, OTHER, "--paired", "--dataset", "cifar10"), 2, "--paired takes two models"),
        ((ONE, OTHER, "--paired", "--protocol", "8bit"), 1, "unknown protocol '8bit'"),
        ((ONE, OTHER, "--paired", "--protocol", "strong@9"), 1, "unknown protocol 'strong@9'"),
        ((ONE, "nothing.json", "--paired"), 1, "no file nothing.json"),
        ((ONE, OTHER, "--paired", "--protocol", "quick"), 1, "has no evaluation under quick"),
        ((ONE, "resnet20.cifar100_linf_pgd", "--paired"), 1, "not the same: the data"),
    ):
        done = cli("compare", *wrong)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)
        assert message in " ".join(done.stderr.replace("│", " ").split())


def test_one_of_fewer_images_is_compared_on_these_and_a_stopped_one_is_not() -> None:
    whole = Report.model_validate(recorded(ONE))
    outcome = whole.per_image
    few = whole.model_copy(
        update={
            "per_image": outcome.model_copy(
                update={
                    "label": outcome.label[:100],
                    "predicted": outcome.predicted[:100],
                    "broken_by": [by[:100] for by in outcome.broken_by],
                }
            )
        }
    )
    assert {(pair.images, pair.p) for pair in paired(few, whole)} == {(100, 1.0)}
    stopped = whole.model_copy(update={"stopped": "after 3 s (time_limit)"})
    with pytest.raises(SJRobustError, match="one was stopped after 3 s"):
        paired(whole, stopped)
    other = whole.model_copy(
        update={"settings": whole.settings.model_copy(update={"protocol": None})}
    )
    for one, two in ((whole, other), (other, whole)):
        with pytest.raises(SJRobustError, match="these are not the same: protocol"):
            paired(one, two)
    again = other.model_copy(update={"settings": other.settings.model_copy(update={"restarts": 5})})
    with pytest.raises(SJRobustError, match="these are not the same: restarts"):
        paired(other, again)
