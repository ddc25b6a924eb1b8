"""Two models on the same images: how many stay right on one of them alone, and whether chance could
have it so."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sj_robust.catalog import locate
from sj_robust.checkpoint.config import GRID, STRONGEST_FIRST
from sj_robust.checkpoint.results import protocol_of, read_report
from sj_robust.compare.entry import NO_REPORT, filed_under
from sj_robust.compare.rows import same_eps
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Accuracy, Report  # no torch


class Pair(BaseModel):
    """At one eps, 0 for images as they are.

    Attributes:
        eps: radius in units of [0, 1].
        images: the first so many, which both were given.
        first: the accuracy of the first one on these.
        second: that of the other.
        first_alone: images on which the first holds and the other does not.
        second_alone: the other way round.
        p: two-sided, of the exact McNemar test (McNemar, Psychometrika 1947): how likely chance
            splits as unevenly the images on which the two differ.
    """

    model_config = ConfigDict(frozen=True)

    eps: float
    images: int
    first: Accuracy
    second: Accuracy
    first_alone: int
    second_alone: int
    p: float


def compare_paired(
    first: str | Path, second: str | Path, protocol: str | None = None
) -> list[Pair]:
    """The pairs of two models at every eps that both were measured at.

    Args:
        first: a checkpoint folder, zoo model, model on the Hub, or report (.json).
        second: the other one.
        protocol: such as "paper", of those that were recorded; without it that of the strongest
            protocol.

    Raises:
        SJRobustError: they were not measured alike, on the same images, or are no models.
    """
    protocol = filed_under(protocol, [name for name in STRONGEST_FIRST if name != GRID])
    return paired(_report(first, protocol), _report(second, protocol))


def paired(first: Report, second: Report) -> list[Pair]:
    """The same of two reports.

    Raises:
        SJRobustError: they were not measured alike, on the same images.
    """
    here, there = _setup(first), _setup(second)
    if differing := [name for name in here | there if here.get(name) != there.get(name)]:
        raise SJRobustError(
            f"a paired test needs two models measured alike, and these are not the same:"
            f" {', '.join(differing)}; evaluate one as the other was"
        )
    for report in (first, second):
        if report.stopped:
            raise SJRobustError(
                f"a paired test needs complete evaluations, and one was stopped {report.stopped}:"
                " let it go on"
            )
    pairs = [_pair(0.0, *(_right(one) for one in (first, second)))]
    for at, joint in enumerate(first.joint):
        for beside, other in enumerate(second.joint):
            if same_eps(joint.eps, other.eps):
                standing = first.per_image.standing(at), second.per_image.standing(beside)
                pairs.append(_pair(joint.eps, *standing))
    return pairs


def _setup(report: Report) -> dict[str, object]:
    """What both have to have alike."""
    settings = report.settings
    alike: dict[str, object] = {
        "the data": report.dataset.fingerprint,
        "protocol": settings.protocol,
        "norm": settings.norm,
        "grid": settings.grid,
    }
    # a protocol may run other attacks on an ANN
    own = {
        "attacks": settings.attacks,
        "views": settings.views,
        "restarts": settings.restarts,
        "the models to transfer from": settings.transfer,
    }
    return alike if settings.protocol else {**alike, **own}


def _report(name: str | Path, protocol: str | None) -> Report:
    if str(name).endswith(".json"):
        found = read_report(Path(name))
        if found is None:
            raise SJRobustError(NO_REPORT.format(name))
        return found
    reports = [
        report
        for report in locate(name).reports()
        if protocol in (None, protocol_of(report.settings.protocol)) and not report.settings.grid
    ]
    if not reports:
        under = f" under {protocol}" if protocol else ""
        raise SJRobustError(
            f"{name} has no evaluation{under}: make one with sj-robust evaluate {name} --record"
        )
    return reports[0]


def _right(report: Report) -> list[bool]:
    outcomes = zip(report.per_image.label, report.per_image.predicted, strict=True)
    return [label == predicted for label, predicted in outcomes]


def _pair(eps: float, first: list[bool], second: list[bool]) -> Pair:
    from scipy.stats import binomtest

    both = list(zip(first, second, strict=False))  # of the shorter one's images
    alone = sum(a and not b for a, b in both), sum(b and not a for a, b in both)
    accuracies = [Accuracy.of(sum(held), len(both)) for held in zip(*both, strict=True)]
    return Pair(
        eps=eps,
        images=len(both),
        first=accuracies[0],
        second=accuracies[1],
        first_alone=alone[0],
        second_alone=alone[1],
        p=float(binomtest(alone[0], sum(alone)).pvalue) if any(alone) else 1.0,
    )
