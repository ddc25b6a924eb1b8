"""The accuracies of a recorded evaluation and its energy, few enough for an index entry, a table
and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import eq
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sj_robust.checkpoint.config import (
    BESIDE,
    CERTIFICATES,
    CONFIG,
    EVALUATIONS,
    GRID,
    MAX_CONFIG_BYTES,
    MAX_TEXT_BYTES,
    THREATS,
    Config,
    read_bounded,
)
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.certified import Certificates, Certified  # no torch
from sj_robust.evaluation.report import Accuracy, Measurement, Report, interval_name  # no torch
from sj_robust.evaluation.words import gradient_views
from sj_robust.settings import first_error
from sj_robust.text import visible
from sj_robust.threats.report import ThreatReport  # no torch

Fraction = Annotated[float, Field(ge=0, le=1)]
Microjoules = Annotated[float, Field(ge=0, le=1e12)]


class Point(BaseModel):
    """Accuracy at one eps (0: clean) as a fraction, with its Wilson 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    eps: Annotated[float, Field(ge=0)]
    value: Fraction
    low: Fraction
    high: Fraction

    def __str__(self) -> str:
        return interval_name(self.value, self.low, self.high)


class Results(BaseModel):
    """Clean accuracy, and joint robust accuracy per eps: an image counts only if it survives all
    `attacks` through all `views`.

    `microjoules` is the estimate for one image, `ann_microjoules` that of the ANN of the same shape
    beside a spiking network; None where not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str
    split: str
    n: Annotated[int, Field(ge=1)]
    norm: str = "linf"
    named: str | None = None  # the protocol, such as strong@1
    # of adversarial images with 256 values, as a file holds them
    grid: Literal["8bit"] | None = None
    attacks: list[str]
    views: Annotated[int, Field(ge=0)]
    clean: Point
    robust: list[Point]
    microjoules: Microjoules | None = None
    ann_microjoules: Microjoules | None = None

    @property
    def protocol(self) -> str:
        """What "robust" meant, in a few words."""
        if not self.robust:
            return "clean accuracy only"
        name = f"{self.named}: " if self.named else ""
        views = f"{self.views} gradient view{'s' if self.views != 1 else ''}"
        grid = ", on the grid of 8-bit images" if self.grid else ""
        return f"{name}{' + '.join(self.attacks)}, {views}, worst case per image, {self.norm}{grid}"

    @property
    def short_protocol(self) -> str:
        """The same for a column of a table: strong@1, or fgsm + pgd10, 19 views."""
        name = protocol_name(self.named, self.attacks, self.views) + (
            ", 8-bit images" if self.grid else ""
        )
        return name if self.robust else "clean only"

    @property
    def place(self) -> str:
        """How it is told apart from the other evaluations of a checkpoint."""
        return GRID if self.grid else protocol_of(self.named)


def protocol_name(named: str | None, attacks: list[str], views: int) -> str:
    """The name of a protocol where it has one, else its attacks and how many gradient views they
    ran through."""
    return named or f"{' + '.join(attacks)}, {views} view{'s' if views != 1 else ''}"


def read_report(path: Path) -> Report | None:
    """The evaluation recorded at `path`, None where there is none. Raises SJRobustError where it is
    damaged."""
    if not path.exists():
        return None
    try:
        return Report.from_json(read_bounded(path, MAX_TEXT_BYTES))
    except SJRobustError as error:
        raise SJRobustError(f"{path}: {error}; evaluate the checkpoint again") from None


def read_reports(folder: Path) -> list[Report]:
    """Every evaluation of a checkpoint folder, that of the strongest protocol first, that of 8-bit
    images last."""
    found = [
        (file, report) for file in EVALUATIONS if (report := read_report(folder / file)) is not None
    ]
    for file, report in found:
        check_grid(report, folder / file)
    if found and found[0][1].settings.grid:
        raise SJRobustError(
            f"{folder} holds an evaluation of 8-bit images alone, beside which none stands:"
            " evaluate it without --grid"
        )
    return [report for _, report in found]


def read_threats(folder: Path, config: Config) -> ThreatReport | None:
    """What was measured of backdoors, None where nothing was. Raises SJRobustError where it is
    damaged, or of another network."""
    path = folder / THREATS
    if not path.exists():
        return None
    try:
        found = ThreatReport.from_json(read_bounded(path, MAX_TEXT_BYTES))
    except SJRobustError as error:
        raise SJRobustError(f"{path}: {error}; run sj-robust threats --record again") from None
    check_belongs(found, config, str(folder))
    return found


def read_certificates(folder: Path, config: Config) -> list[Certified]:
    """What was certified, of each method once. Raises SJRobustError where it is damaged, or of
    another network, and where an evaluation of the folder shows that it cannot be."""
    path = folder / CERTIFICATES
    if not path.exists():
        return []
    try:
        found = Certificates.from_json(read_bounded(path, MAX_CONFIG_BYTES)).found
        reports = read_reports(folder) if found else []
        for one in found:
            check_belongs(one, config, str(folder))
            for report in reports:
                _check_survived(one, report)
    except SJRobustError as error:
        raise SJRobustError(f"{path}: {error}; run sj-robust certify --record again") from None
    return found


def certificates_with(new: Certified, folder: Path, config: Config) -> Certificates:
    """`new` beside those recorded; damaged ones, or of other weights, count for nothing."""
    try:
        there = Certificates(found=read_certificates(folder, config))
    except SJRobustError:
        there = Certificates(found=[])
    return there.with_new(new)


def _check_survived(certified: Certified, report: Report) -> None:
    """Raise SJRobustError where more is certified of the network itself than attacks have left of
    the same images; of those that they were not given, everything may be."""
    data = certified.dataset.name, certified.dataset.split, certified.dataset.fingerprint
    if certified.norm != report.settings.norm or data != (
        report.dataset.name,
        report.dataset.split,
        report.dataset.fingerprint,
    ):
        return
    both = min(certified.images, report.dataset.evaluated)
    others = certified.images - both
    right = sum(map(eq, report.per_image.label[:both], report.per_image.predicted[:both]))
    for point in certified.points:
        at = round(point.eps, 9)
        left = [count for eps, count in _standing(report, both).items() if eps <= at]
        if point.accuracy.correct > (most := min([right, *left]) + others):
            raise SJRobustError(
                f"{point.accuracy.correct} images are certified by {certified.method} at eps"
                f" {point.eps:g}, at most {most} can be by the evaluation"
            )


def check_grid(report: Any, path: Path) -> None:
    """Raise SJRobustError where an evaluation of 8-bit images lies in the place of one without that
    restriction, or the other way."""
    if bool(report.settings.grid) != (path.name == BESIDE[GRID]):
        kind = "8-bit images" if report.settings.grid else "images of any values"
        raise SJRobustError(
            f"{path} is an evaluation of {kind}: only {BESIDE[GRID]} is of 8-bit ones; evaluate the"
            " checkpoint again"
        )


def protocol_of(named: str | None) -> str:
    """ "strong" for "strong@1", "custom" for attacks without a protocol's name: how a checkpoint's
    evaluations are told apart."""
    return named.partition("@")[0] if named else "custom"


def results(report: Report) -> Results:
    """The few numbers of a report. Raises SJRobustError where one is out of any range."""
    try:
        return _results(report)
    except ValidationError as error:
        raise SJRobustError(
            f"the evaluation has a figure out of range: {first_error(error)}; evaluate the"
            " checkpoint again"
        ) from None


def _results(report: Report) -> Results:
    energy = report.energy
    return Results(
        dataset=report.dataset.name,
        split=report.dataset.split,
        n=report.dataset.evaluated,
        norm=report.settings.norm,
        named=report.settings.protocol,
        grid=report.settings.grid,
        attacks=report.settings.attacks,
        views=len(gradient_views(report.settings.views)),
        clean=_point(0.0, report.clean),
        robust=[_point(joint.eps, joint.accuracy) for joint in report.joint],
        microjoules=energy and energy.microjoules,
        ann_microjoules=energy and energy.ann_microjoules,
    )


def kept(report: Report, source: Report) -> dict[float, float]:
    """The share of its ANN's robust accuracy that a spiking network keeps, by eps: of the first
    images, those that both evaluations have.

    Empty unless both are on the same data, under the same norm and protocol, and went to the end;
    an eps is left out at which the ANN keeps nothing.
    """

    def measured(one: Report) -> tuple[object, ...]:
        said, data = one.settings, one.dataset
        attacks = said.protocol or (tuple(said.attacks), len(gradient_views(said.views)))
        return data.name, data.split, data.fingerprint, said.norm, said.grid, attacks

    if measured(report) != measured(source) or report.stopped or source.stopped:
        return {}
    n = min(report.dataset.evaluated, source.dataset.evaluated)
    of_ann = _standing(source, n)
    return {
        eps: count / of_ann[round(eps, 9)]
        for eps, count in _standing(report, n).items()
        if of_ann.get(round(eps, 9))
    }


def _standing(report: Report, n: int) -> dict[float, int]:
    """How many of the first n images are right and robust, by eps."""
    return {
        round(joint.eps, 9): sum(report.per_image.standing(at)[:n])
        for at, joint in enumerate(report.joint)
    }


def lowest(found: Sequence[Results]) -> list[tuple[Point, Results]]:
    """For each eps, ascending, the lowest accuracy that was found there or at a smaller eps, whose
    ball lies inside, and by which of `found`; of equals the first. Only evaluations under the norm
    and on the data of the first, and none of 8-bit images.
    """
    same = [
        one
        for one in found
        if one.grid is None
        and (one.dataset, one.split, one.norm) == (found[0].dataset, found[0].split, found[0].norm)
    ]
    points = [(point, one) for one in same for point in one.robust]
    chosen = []
    for eps in {
        round(point.eps, 9): point.eps for point, _ in sorted(points, key=lambda at: at[0].eps)
    }.values():
        inside = [at for at in points if at[0].eps <= eps + 1e-9]
        point, one = min(inside, key=lambda at: (at[0].value, abs(at[0].eps - eps) > 1e-9))
        chosen.append((point.model_copy(update={"eps": eps}), one))
    return chosen


def headline(found: Sequence[Results]) -> Results:
    """What to say of a model that was evaluated several times: the first, with the lowest accuracy
    of all at each eps."""
    robust = [point for point, _ in lowest(found)]
    return (
        found[0]
        if robust == found[0].robust
        else found[0].model_copy(update={"robust": robust, "named": by_whom(found)})
    )


def by_whom(found: Sequence[Results]) -> str:
    """The protocols that `lowest` figures are of: strong@1, or strong@1 / paper@1."""
    return " / ".join(dict.fromkeys(one.short_protocol for _, one in lowest(found)))


def check_belongs(report: Measurement | Certified, config: Config, where: str) -> None:
    """Raise SJRobustError unless `report` was made with these very weights, time steps and
    settings, as far as it names them."""
    found, weights = report.model, config.weights
    if found.weights_sha256 != weights.state_sha256 or found.timesteps != config.timesteps:
        raise SJRobustError(
            f"the evaluation is of another model than {where} (weights"
            f" {found.weights_sha256[:12]}…, T={found.timesteps}; expected"
            f" {weights.state_sha256[:12]}…, T={config.timesteps}): evaluate this one"
        )
    named: dict[str, tuple[object, object]] = {
        "kind": (found.kind, config.kind),
        "parameters": (found.parameters, weights.parameters),
        "number of classes": (found.num_classes, config.num_classes),
    }
    if config.architecture is not None and found.model_args is not None:
        named |= {
            "architecture": (found.architecture, config.architecture),
            "model_args": (found.model_args, config.model_args),
        }
    for key, measured in (("mean", found.mean), ("std", found.std)):
        if measured is not None:
            named[key] = (_rounded(measured), _rounded(config.settings[key]))
    if found.settings is not None:
        keys = sorted({*found.settings, *config.settings})
        named |= {
            f"setting {key}": (found.settings.get(key), config.settings.get(key)) for key in keys
        }
    for name, (said, described) in named.items():
        if _plain(said) != _plain(described):
            raise SJRobustError(
                f"the evaluation is of another model than {where}: its {visible(name, 60)} is"
                f" {visible(said, 100)}, and {visible(described, 100)} in {CONFIG}. One was"
                " altered: get the checkpoint again, or evaluate it anew"
            )


def _rounded(values: list[float]) -> list[str]:
    """To what float32 holds: a setting may be the number as it was typed, the model's own is a
    buffer."""
    return [f"{value:.6g}" for value in values]


def _plain(value: object) -> object:
    """As a file has it, where tuples are lists."""
    return json.loads(json.dumps(value))


def _point(eps: float, accuracy: Accuracy) -> Point:
    return Point(eps=eps, value=accuracy.value, low=accuracy.low, high=accuracy.high)
