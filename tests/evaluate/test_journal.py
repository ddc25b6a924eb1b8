"""An evaluation that was stopped goes on where it was, to the report that it would have made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import sj_robust
from sj_robust.attack import PGD
from sj_robust.data import ImageDataset
from sj_robust.evaluate import Report
from sj_robust.evaluate import evaluate as evaluate_and_check
from sj_robust.model import SpikingClassifier

evaluate = partial(evaluate_and_check, check_images=0)  # test_checks has the checks; here they would only take time

SETTINGS = dict(eps=[4 / 255, 16 / 255], views=["PCW:1", "activation", "rate"], max_images=40)


def facts(report: Report) -> dict[str, object]:
    """Everything but what it cost: FGSM's gradients are kept in memory alone, so that a resumed evaluation takes some again."""
    return without_cost(report.model_dump())  # type: ignore[return-value]


def without_cost(thing: object) -> object:
    if isinstance(thing, dict):
        return {name: without_cost(value) for name, value in thing.items() if name not in ("seconds", "forward_images", "backward_images")}
    return [without_cost(value) for value in thing] if isinstance(thing, list) else thing


class Interrupted(PGD):
    """PGD that is interrupted at its n-th call."""

    left = 0

    def __call__(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        Interrupted.left -= 1
        return super().__call__(*args, **kwargs)  # type: ignore[arg-type]


def attack(eps: float) -> PGD:
    return Interrupted(eps=eps, steps=3)


@pytest.mark.parametrize("done", [1, 4])
def test_an_interrupted_evaluation_ends_with_the_same_report(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path, done: int
) -> None:
    Interrupted.left = 100
    expected = evaluate(snn, dataset, attacks=["fgsm", attack], **SETTINGS)
    journal = tmp_path / "notes.partial"
    Interrupted.left = done
    with pytest.raises(KeyboardInterrupt):
        evaluate(snn, dataset, attacks=["fgsm", attack], journal=journal, **SETTINGS)
    Interrupted.left = 100
    report = evaluate(snn, dataset, attacks=["fgsm", attack], journal=journal, **SETTINGS)
    assert Interrupted.left == 100 - (6 - done)  # 2 eps, 3 views: what was done is not done again
    assert facts(report) == facts(expected)
    assert facts(evaluate(snn, dataset, attacks=["fgsm", attack], journal=journal, **SETTINGS)) == facts(expected)
    assert Interrupted.left == 100 - (6 - done)


@pytest.mark.parametrize("change", [dict(seed=1), dict(eps=[8 / 255]), dict(max_images=30), dict(views=["PCW:1"]), "damage"])
def test_notes_of_another_evaluation_or_damaged_ones_count_for_nothing(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path, change: object
) -> None:
    journal = tmp_path / "notes.partial"
    settings = {"attacks": ["pgd3"], **SETTINGS}
    evaluate(snn, dataset, journal=journal, **settings)
    if isinstance(change, dict):
        settings |= change
    else:
        journal.write_text(journal.read_text()[:-20])
    assert facts(evaluate(snn, dataset, journal=journal, **settings)) == facts(evaluate(snn, dataset, **settings))


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_killed_command_goes_on_and_leaves_nothing_but_its_report(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sj_robust.cli import main; main()", "evaluate", "resnet20.cifar10_linf_pgd", "--data", "sample",
               "--eps", "2/255", "--attacks", "fgsm,pgd3,pgd20", "--max-images", "32", "--batch-size", "16",
               "--check-images", "0", "--out", str(tmp_path / "report.json")]  # fmt: skip
    journal = tmp_path / "report.json.partial"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (journal.exists() and len(json.loads(journal.read_text())["units"]) >= 1):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    whole = evaluate(sj_robust.load("resnet20.cifar10_linf_pgd"), sj_robust.load_dataset("sample", "test"), eps=[2 / 255],
                     attacks=["fgsm", "pgd3", "pgd20"], batch_size=16, max_images=32)  # fmt: skip
    assert facts(Report.from_json((tmp_path / "report.json").read_text())) == facts(whole)
