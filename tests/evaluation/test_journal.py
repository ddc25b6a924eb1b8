"""An evaluation that was stopped goes on where it was, to the report that it would have made."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sj_robust
from sj_robust.attack import PGD
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Report
from sj_robust.evaluation import evaluate as evaluate_and_check
from sj_robust.evaluation.journal import Journal, UnitKey
from sj_robust.evaluation.judge import Passes
from sj_robust.evaluation.starts import Starts
from sj_robust.model import SpikingClassifier

# test_checks has the checks; here they would only take time
evaluate = partial(evaluate_and_check, check_images=0)

SETTINGS = dict(eps=[4 / 255, 16 / 255], views=["PCW:1", "activation", "rate"], max_images=40)


UNIT = UnitKey("8/255", "pgd3", "exact")


def facts(report: Report) -> dict[str, object]:
    """Everything but what it cost: FGSM's gradients are kept in memory alone, so that a resumed
    evaluation takes some again."""
    return without_cost(report.model_dump())  # type: ignore[return-value]


def without_cost(thing: object) -> object:
    if isinstance(thing, dict):
        return {
            name: without_cost(value)
            for name, value in thing.items()
            if name not in ("seconds", "forward_images", "backward_images")
        }
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
    assert facts(
        evaluate(snn, dataset, attacks=["fgsm", attack], journal=journal, **SETTINGS)
    ) == facts(expected)
    assert Interrupted.left == 100 - (6 - done)


@pytest.mark.parametrize(
    ("change", "called"),
    [
        (dict(seed=1), "seed"),
        (dict(eps=[8 / 255]), "eps 4/255 16/255, now 8/255"),
        (dict(views=["PCW:1"]), "attacks or views"),
        (dict(survivors_only=False), "who is attacked"),
    ],
)
def test_notes_of_another_evaluation_are_refused_and_kept(
    snn: SpikingClassifier,
    dataset: ImageDataset,
    tmp_path: Path,
    change: dict[str, Any],
    called: str,
) -> None:
    journal = tmp_path / "notes.partial"
    settings: dict[str, Any] = {"attacks": ["pgd3"], **SETTINGS}
    evaluate(snn, dataset, journal=journal, **settings)
    before = journal.read_bytes()
    with pytest.raises(
        SJRobustError, match=rf"notes.partial .* \(not the same: {called}\): .* remove it"
    ):
        evaluate(snn, dataset, journal=journal, **settings | change)
    assert journal.read_bytes() == before


def test_notes_go_on_with_more_images_and_are_kept_from_fewer(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"attacks": ["pgd3"], **SETTINGS}
    evaluate(snn, dataset, journal=tmp_path / "notes", **settings)
    with pytest.raises(SJRobustError, match="of more images than the 20 of this evaluation"):
        evaluate(snn, dataset, journal=tmp_path / "notes", **settings | {"max_images": 20})
    settings["max_images"] = 50
    found = evaluate(snn, dataset, journal=tmp_path / "notes", **settings)
    expected = evaluate(snn, dataset, **settings)
    assert found.per_image == expected.per_image
    assert found.joint == expected.joint


def test_a_file_that_is_no_notes_is_kept(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    journal = tmp_path / "notes.partial"
    settings: dict[str, Any] = {"attacks": ["pgd3"], **SETTINGS}
    evaluate(snn, dataset, journal=journal, **settings)
    for text in (journal.read_text()[:-20], "my notes", "[" * 100_000, '{"key": 1}'):
        journal.write_text(text)
        with pytest.raises(SJRobustError, match=r"notes.partial cannot be read as .* remove it"):
            evaluate(snn, dataset, journal=journal, **settings)
        assert journal.read_text() == text


def test_notes_go_on_where_another_processor_sees_other_classes(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    """Older notes name the classes seen; what was found of an image does not depend on those of
    others."""
    journal = tmp_path / "notes.partial"
    settings: dict[str, Any] = {"attacks": [attack], **SETTINGS}
    Interrupted.left = 100
    expected = evaluate(snn, dataset, journal=journal, **settings)
    notes = json.loads(journal.read_text())
    notes["key"]["predicted"] = [0] * expected.dataset.evaluated
    journal.write_text(json.dumps(notes))
    before = Interrupted.left
    assert facts(evaluate(snn, dataset, journal=journal, **settings)) == facts(expected)
    assert Interrupted.left == before


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
@pytest.mark.parametrize(
    "change",
    [
        lambda notes: notes["units"][0][1].update(fallen=[]),
        lambda notes: notes["units"][0][1].update(seen=["a"]),
        lambda notes: notes["starts"].update({"1": [0.5, -1.0, 0.1, "", 0]}),
    ],
)
def test_notes_that_somebody_changed_count_for_nothing(
    tmp_path: Path, change: Callable[[Any], object]
) -> None:
    path = tmp_path / "notes"
    journal = Journal.open(path, {"seed": 0}, starts=Starts("linf"))
    image = torch.tensor([3])
    hit = lambda chosen, x, y: (torch.tensor([True]), lambda: None)  # noqa: E731
    journal.work(UNIT, [(image, torch.zeros(1, 1), image)], Passes(), hit)
    journal.save()
    again = Journal.open(path, {"seed": 0}, starts=Starts("linf"))
    assert again.units == journal.units == {UNIT: again.units[UNIT]}
    notes = json.loads(path.read_text())
    change(notes)
    path.write_text(json.dumps(notes))
    assert not Journal.open(path, {"seed": 0}, starts=Starts("linf")).units


def test_notes_of_before_there_was_a_digest_are_read(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    key = json.loads(json.dumps(Journal.open(path, {"seed": 0}).key))
    unit = {"seen": [3], "fallen": [], "seconds": 1.0, "forward": 1, "backward": 0}
    path.write_text(json.dumps({"key": key, "units": [[UNIT, unit]], "starts": {}}))
    assert Journal.open(path, {"seed": 0}).units[UNIT].seen == [3]


def test_a_killed_command_goes_on_and_leaves_nothing_but_its_report(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from sj_robust.cli import main; main()",
        "evaluate",
        "resnet20.cifar10_linf_pgd",
        "--data",
        "sample",
        "--eps",
        "2/255",
        "--attacks",
        "fgsm,pgd3,pgd10",
        "--max-images",
        "16",
        "--batch-size",
        "8",
        "--check-images",
        "0",
        "--out",
        str(tmp_path / "report.json"),
    ]
    journal = tmp_path / "report.json.partial"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (journal.exists() and len(json.loads(journal.read_text())["units"]) >= 1):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    whole = evaluate(
        sj_robust.load("resnet20.cifar10_linf_pgd"),
        sj_robust.load_dataset("sample", "test"),
        eps=[2 / 255],
        attacks=["fgsm", "pgd3", "pgd10"],
        batch_size=8,
        max_images=16,
    )
    assert facts(Report.from_json((tmp_path / "report.json").read_text())) == facts(whole)


def test_what_processes_did_is_counted_once_however_often_they_were_stopped(tmp_path: Path) -> None:
    def piece(images: list[int], passes: Passes) -> torch.Tensor:
        passes.forward, passes.backward = (
            passes.forward + 2 * len(images),
            passes.backward + len(images),
        )
        return torch.tensor([image % 2 == 0 for image in images])

    def session(work: dict[int, list[int]]) -> list[Journal]:
        """Every process opens its journal, attacks its images, two a batch, and learns what the
        others did."""
        opened = {rank: Journal.open(tmp_path / "notes", {"a": 1}, rank) for rank in work}
        for rank, images in work.items():
            passes, given = Passes(), opened[rank].missing(UNIT, torch.tensor(images))
            batches = [(batch, batch, batch) for batch in given.split(2)]
            opened[rank].work(
                UNIT,
                batches,
                passes,
                lambda chosen, x, y, passes=passes: (piece(chosen.tolist(), passes), lambda: None),
            )
            opened[rank].save()
        done = [journal.done for journal in opened.values()]
        for journal in opened.values():
            for units in done:
                journal.merge(units)
        return list(opened.values())

    session({0: [0, 2], 1: [1]})
    session({0: [0, 2, 4], 1: [1, 3]})
    for journal in [
        *session({0: [0, 2, 4, 6], 1: [1, 3, 5]}),
        Journal.open(tmp_path / "notes", {"a": 1}),
    ]:
        unit = journal.unit(UNIT)
        assert (sorted(unit.seen), sorted(unit.fallen), unit.forward, unit.backward) == (
            list(range(7)),
            [0, 2, 4, 6],
            14,
            7,
        )


class Counted(PGD):
    """PGD that counts the images it is given."""

    images = 0

    def __call__(
        self, model: object, x: torch.Tensor, *args: object, **kwargs: object
    ) -> torch.Tensor:
        Counted.images += len(x)
        return super().__call__(model, x, *args, **kwargs)  # type: ignore[arg-type]


def test_a_report_on_more_images_takes_over_what_is_known_of_the_first(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    def measured(images: int, extend: Report | None = None) -> Report:
        attacks = ["fgsm", lambda eps: Counted(eps=eps, steps=3)]
        return evaluate(
            snn, dataset, attacks=attacks, extend=extend, **{**SETTINGS, "max_images": images}
        )  # type: ignore[arg-type]

    expected, small = measured(40), Report.from_json(measured(24).to_json())
    Counted.images = 0
    extended = measured(40, small)
    assert (
        Counted.images
        == sum(
            view.attempted
            for result in expected.robust
            if result.attack == "pgd3"
            for view in result.per_view.values()
        )
        - sum(
            view.attempted
            for result in small.robust
            if result.attack == "pgd3"
            for view in result.per_view.values()
        )
        > 0
    )
    found, known = facts(extended), facts(expected)
    assert found.pop("limits") != known.pop(
        "limits"
    ) and "first 24 images is taken from an earlier report" in str(extended.limits)
    assert found == known
    Counted.images = 0
    again = measured(40, extended)
    assert Counted.images == 0
    # what the outcomes cost, not what repeating them did
    assert again.forward_images - 40 == extended.forward_images - 40


def test_a_report_through_another_model_s_gradients_is_extended_with_that_model_alone(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    def measured(images: int, other: nn.Module, extend: Report | None = None) -> Report:
        settings = {**SETTINGS, "max_images": images, "transfer": {"ann": other}}
        return evaluate(snn, dataset, attacks=["fgsm"], extend=extend, **settings)  # type: ignore[arg-type]

    torch.manual_seed(3)
    one, two = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2))
    small = Report.from_json(measured(8, one).to_json())
    assert measured(16, one, small).joint == measured(16, one).joint
    with pytest.raises(SJRobustError, match="not the same: the models to transfer from"):
        measured(16, two, small)
    before = small.model_copy(
        update={"settings": small.settings.model_copy(update={"transfer": None})}
    )
    measured(16, two, before)  # a report of before this was noted does not say


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=1), "same: seed"),
        (dict(attacks=["pgd2"]), "same: attacks"),
        (dict(eps=[4 / 255]), "same: eps .*, now 4/255"),
        (dict(views=["PCW:1"]), "same: attacks"),
        (dict(max_images=8), "16 images, this evaluation 8"),
        (dict(survivors_only=False), "gives every view all images"),
        ("weights", "same: the model.s weights"),
        ("images", "same: the images"),
        ("stopped", "stopped before its end"),
    ],
)
def test_a_report_of_another_evaluation_is_not_extended(
    snn: SpikingClassifier, dataset: ImageDataset, change: object, message: str
) -> None:
    settings: dict[str, object] = {**SETTINGS, "attacks": ["pgd3"], "max_images": 16}
    report = evaluate(snn, dataset, **settings)  # type: ignore[arg-type]
    if isinstance(change, dict):
        settings |= change
    elif change == "weights":
        snn = copy.deepcopy(snn)
        with torch.no_grad():
            next(snn.parameters()).add_(1e-3)
    elif change == "images":
        dataset = ImageDataset(
            dataset.images.flip(3), dataset.labels, dataset.classes, dataset.name, dataset.split
        )
    else:
        report = report.model_copy(update={"stopped": "after 3 s (time_limit)"})
    with pytest.raises(SJRobustError, match=message):
        evaluate(snn, dataset, extend=report, **settings)  # type: ignore[arg-type]
