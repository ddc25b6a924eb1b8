"""Stages that start from each image's best adversarial image of the stages before."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sj_robust.attack import PGD, GradientView, Rotating, Sources, Square, parse_attack
from sj_robust.attack.base import project
from sj_robust.attack.loss import margin
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Protocol, Report, Stage
from sj_robust.evaluation import evaluate as evaluate_and_check
from sj_robust.evaluation.ensemble import noise_seed
from sj_robust.evaluation.judge import check_ball
from sj_robust.evaluation.starts import Starts
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import parse_view

evaluate = partial(evaluate_and_check, check_images=0)

EPS = 8 / 255


def outcome(report: Report) -> object:
    return (
        report.joint,
        report.per_image,
        [(result.attack, result.settings, result.joint, result.alone) for result in report.robust],
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_is_kept_within_a_hundredth_of_its_offset(norm: str) -> None:
    x = 0.1 + 0.8 * torch.rand(5, 3, 4, 4)
    x_adv = project(x + 0.1 * torch.randn_like(x), x, EPS, norm)  # type: ignore[arg-type]
    if norm == "linf":
        x_adv[0] = project(x[0] + EPS * torch.randn_like(x[0]).sign(), x[0], EPS)  # a corner
    starts, chosen = Starts(norm), torch.tensor([4, 7, 1, 0, 9])  # type: ignore[arg-type]
    starts.offer(chosen, x, x_adv, torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1]), EPS)
    read = Starts.from_json(norm, starts.to_json())  # type: ignore[arg-type]
    found = read.of(chosen, x, EPS)
    scale = (x_adv - x).flatten(1).abs().amax(1)
    assert ((found - x_adv).flatten(1).abs().amax(1) <= scale / 127).all()
    if norm == "linf":
        assert torch.allclose(found[0], x_adv[0], atol=1e-7)
    assert torch.allclose(project(found, x, EPS, norm), found, rtol=0, atol=1e-6)  # type: ignore[arg-type]
    # the second alone is better
    read.offer(chosen[:2], x[:2], x[:2], torch.tensor([0.6, -0.1]), EPS)
    again = read.of(chosen, x, EPS)
    assert torch.equal(again[0], found[0]) and torch.equal(again[1], x[1])
    assert torch.equal(read.of(chosen, x, 2 * EPS), x)  # a larger ball begins anew
    read.offer(chosen[2:3], x[2:3], x_adv[2:3], torch.tensor([9.0]), 2 * EPS)
    other = Starts.from_json(norm, starts.to_json())  # type: ignore[arg-type]
    other.merge(read)
    assert torch.equal(read.of(chosen[2:3], x[2:3], EPS), x[2:3])
    assert torch.equal(
        other.of(chosen, x, 2 * EPS), read.of(chosen, x, 2 * EPS)
    ) and not torch.equal(other.of(chosen, x, 2 * EPS), x)
    read.drop(chosen[:1])
    assert torch.equal(read.of(chosen, x, EPS)[0], x[0])


def test_a_stage_starts_from_the_best_of_those_before(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    stages = Stage("pgd2", ("STE", "PCW:1")), Stage("square6", (), start="best")
    report = evaluate(snn, dataset, protocol=Protocol("two", 1, stages, ""), eps=EPS, max_images=40)
    x, y = dataset.floats(range(40)), dataset.labels[:40]
    with torch.no_grad():
        standing = snn(x).argmax(1) == y
    starts, attack = Starts("linf"), PGD(eps=EPS, steps=2)
    for view in ("STE", "PCW:1"):
        at = standing.nonzero().flatten()
        x_adv = attack(
            GradientView(snn, parse_view(view)),
            x[at],
            y[at],
            seed=noise_seed(0, attack, view),
            ids=at,
        )
        with torch.no_grad():
            margins = margin(snn(x_adv), y[at])
        standing[at[margins < 0]] = False
        starts.offer(at, x[at], x_adv, margins, EPS)
    at, square = standing.nonzero().flatten(), Square(eps=EPS, queries=6)
    x_adv = square(
        snn,
        x[at],
        y[at],
        seed=noise_seed(0, square, "black-box"),
        ids=at,
        start=starts.of(at, x[at], EPS),
    )
    with torch.no_grad():
        broken = snn(x_adv).argmax(1) != y[at]
    result = report.robust[1]
    assert (result.per_view["black-box"].attempted, result.per_view["black-box"].broken) == (
        len(at),
        int(broken.sum()),
    )
    assert (
        result.settings["start"] == "best"
        and result.alone is None
        and report.robust[0].alone is not None
    )


def test_a_stage_may_begin_anew_and_those_behind_it_go_on_from_there(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    stages = (
        Stage("pgd1", ("STE",)),
        Stage("noise1", (), start="anew"),
        Stage("rotating3", ("PCW:1",), start="best"),
        Stage("square20", (), start="best"),
    )
    report = evaluate(
        snn, dataset, protocol=Protocol("anew", 1, stages, ""), eps=EPS, max_images=60
    )
    assert [result.settings.get("start") for result in report.robust] == [
        None,
        "anew",
        "best",
        "best",
    ]
    x, y = dataset.floats(range(60)), dataset.labels[:60]
    with torch.no_grad():
        standing = snn(x).argmax(1) == y
    starts, broken = Starts("linf"), []
    for stage, view in zip(stages, ("STE", "black-box", "PCW:1", "black-box"), strict=True):
        at, attack = standing.nonzero().flatten(), parse_attack(str(stage.attack), EPS)
        model = snn if view == "black-box" else GradientView(snn, parse_view(view))
        start = {"start": starts.of(at, x[at], EPS)} if stage.start == "best" else {}
        if stage.start == "anew":
            starts = Starts("linf")  # by hand: what was found so far counts for nothing
        seed = noise_seed(0, attack, view)
        x_adv = attack(
            model if not attack.many_sources else Sources(snn, [model]),
            x[at],
            y[at],
            seed=seed,
            ids=at,
            **start,
        )
        with torch.no_grad():
            margins = margin(snn(x_adv), y[at])
        standing[at[margins < 0]] = False
        starts.offer(at, x[at], x_adv, margins, EPS)
        broken.append(int((margins < 0).sum()))
    assert [next(iter(result.per_view.values())).broken for result in report.robust] == broken
    assert broken[2] + broken[3] > 0


STAGES = (
    Stage("noise2", ()),
    Stage("pgd2", ("STE",)),
    Stage("rotating4", ("PCW:1", "transfer", "rate"), start="best", restarts=2),
    Stage("square5", (), start="best"),
    Stage("pgd1+square2", ("rate",), start="anew", restarts=2),
)


class Interrupted(Square):
    """Square that is interrupted at its n-th call."""

    left = 100

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        Interrupted.left -= 1
        return super().__call__(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("survivors_only", [True, False])
def test_outcomes_depend_neither_on_batches_nor_on_an_interruption(
    snn: SpikingClassifier,
    ann: NormalizedClassifier,
    dataset: ImageDataset,
    tmp_path: Path,
    survivors_only: bool,
) -> None:
    stages = (*STAGES, Stage(partial(Interrupted, queries=7), (), start="best"))
    measure = partial(
        evaluate,
        snn,
        dataset,
        protocol=Protocol("five", 1, stages, ""),
        eps=(4 / 255, EPS),
        max_images=30,
        transfer={"ann": ann},
        survivors_only=survivors_only,
    )
    whole = measure()
    assert whole.settings.views == ["black-box", "STE", "PCW:1", "transfer:ann", "rate"]
    rotating = whole.robust[2]
    assert (
        rotating.settings["sources"] == ["PCW:1", "transfer:ann", "rate"]
        and rotating.settings["restarts"] == 2
    )
    assert Report.from_json(whole.to_json()) == whole
    Interrupted.left = 2
    with pytest.raises(KeyboardInterrupt):
        measure(batch_size=7, journal=tmp_path / "notes")
    Interrupted.left = 100
    assert outcome(measure(batch_size=11, journal=tmp_path / "notes")) == outcome(whole)


def test_what_cannot_start_from_the_best_says_so(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    protocol = Protocol("wrong", 1, (Stage("pgd2", ("STE",), start="best"),), "")
    with pytest.raises(
        SJRobustError,
        match=r"pgd2 cannot start from an image that is given: expected rotatingN or squareN",
    ):
        evaluate(snn, dataset, protocol=protocol, eps=EPS)
    protocol = Protocol("blind", 1, (Stage("pgd2", ()),), "")
    with pytest.raises(SJRobustError, match="pgd2 takes gradients, and its stage names no views"):
        evaluate(snn, dataset, protocol=protocol, eps=EPS)
    for wrong in ({"start": "bset"}, {"only": "ann"}, {"restarts": 0}):
        with pytest.raises(SJRobustError, match=f"^{next(iter(wrong))} is .*: expected "):
            Stage("rotating2", ("STE",), **wrong)  # type: ignore[arg-type]


def test_a_rotation_of_one_source_is_that_source_and_the_model_decides(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    protocol = Protocol("one", 1, (Stage("rotating3", ("PCW:1", "ASSG", "transfer")),), "")
    report = evaluate(ann, dataset, protocol=protocol, eps=EPS, max_images=20)
    assert report.settings.views == ["exact"]
    x, y = dataset.floats(range(20)), dataset.labels[:20]
    attack = Rotating(eps=EPS, steps=3)

    def left(model: nn.Module, sources: Sources, view: str) -> int:
        """How many the attack leaves, in the batch that the evaluation makes of them: in another
        one a spike may flip."""
        with torch.no_grad():
            at = (model(x).argmax(1) == y).nonzero().flatten()
        x_adv = attack(sources, x[at], y[at], seed=noise_seed(0, attack, view), ids=at)
        with torch.no_grad():
            return int((model(x_adv).argmax(1) == y[at]).sum())

    assert report.joint[0].accuracy.correct == left(ann, Sources(ann, [ann]), "exact")
    transfer = Protocol("transfer", 1, (Stage("rotating3", ("transfer",)),), "")
    report = evaluate(
        snn, dataset, protocol=transfer, eps=EPS, max_images=20, transfer={"ann": ann}
    )
    assert report.settings.views == ["transfer:ann"] and "sources" not in report.robust[0].settings
    assert report.joint[0].accuracy.correct == left(snn, Sources(snn, [ann]), "transfer:ann")


def test_starts_of_large_images_stay_in_an_l2_ball() -> None:
    x = 0.2 + 0.6 * torch.rand(2, 3, 224, 224)
    x_adv = project(x + torch.randn_like(x), x, 3.0, "l2")
    starts, chosen = Starts("l2"), torch.arange(2)
    starts.offer(chosen, x, x_adv, torch.zeros(2), 3.0)
    for found in (x_adv, starts.of(chosen, x, 3.0)):
        assert float((found.double() - x.double()).flatten(1).norm(dim=1).max()) <= 3.0 + 1e-6
        check_ball(found, x, PGD(eps=3.0, norm="l2"), "exact")


def test_a_rotation_names_the_sources_that_it_comes_to_and_no_others(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    measure = partial(evaluate, dataset=dataset, eps=EPS, max_images=4)
    report = measure(snn, attacks=["rotating2"], views=["PCW:1", "ASSG", "rate"])
    assert report.robust[0].settings["sources"] == report.settings.views == ["PCW:1", "ASSG"]
    assert Report.from_json(report.to_json()) == report
    for sources in (None, ["PCW:1"], "PCW:1", 2):
        forged = json.loads(report.to_json())
        forged["robust"][0]["settings"]["sources"] = sources
        with pytest.raises(SJRobustError, match="names no views that took turns"):
            Report.from_json(json.dumps(forged))
    with pytest.raises(
        SJRobustError, match="none of the attacks takes the gradients of another model"
    ):
        measure(snn, attacks=["rotating2"], transfer={"ann": ann})
    report = measure(ann, attacks=["rotating4"], transfer={"ann": ann})
    assert report.robust[0].settings["sources"] == ["exact", "transfer:ann"]
