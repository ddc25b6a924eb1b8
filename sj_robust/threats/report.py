"""What was measured of a backdoor: facts only, as JSON and as text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Annotated, Any

from pydantic import Field, ValidationError

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Accuracy, Facts, Measurement
from sj_robust.phrases import few, ruled
from sj_robust.settings import Strict, first_error

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
RandomSeed = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

MAD = 1.4826  # makes the median absolute deviation that of a normal distribution
LEAST_SPREAD = 0.01  # of the median: what the norms are taken to vary by at least
ANOMALOUS = 2.0  # an index above it has a probability below 5 % there
LEADING = 0.9  # of the images at least: a mask that leads fewer to its class is no trigger
FLIP = "flip"  # a poison without a trigger
SMALL, SEPARATE = 0.35, 0.1  # a cluster's share at most, and the silhouette at least, of poisons


class PoisonFacts(Strict):
    """The record of a poisoned data set, from which it can be made again.

    Attributes:
        poison: as `parse_poison` reads it.
        images: of the whole data set.
        poisoned: of these.
        rows_sha256: of the numbers of their rows, ascending, as 64-bit little-endian integers.
        clean_fingerprint: of the data set before.
    """

    poison: str
    seed: RandomSeed
    images: Positive
    poisoned: Positive
    rows_sha256: Sha256
    clean_fingerprint: str


class Rates(Facts):
    """What a network does with and without the trigger.

    Attributes:
        timesteps: after which it is read; None of an ANN.
        clean: accuracy on the images as they are.
        success: images of other classes, triggered, that are taken for the target's; None where
            there is no trigger.
        before: the same images without the trigger, taken for the target's all the same.
    """

    timesteps: int | None
    clean: Accuracy
    success: Accuracy | None
    before: Accuracy | None


class ReversedTrigger(Facts):
    """The smallest trigger found that leads to one class.

    Attributes:
        norm: l1 norm of its mask: pixels, where each counts as far as it is replaced.
        success: images that it leads there.
        index: how far the norm lies below the median of all classes, in median absolute deviations
            × 1.4826.
    """

    label: int
    norm: float = Field(ge=0, allow_inf_nan=False)
    success: Accuracy
    index: float


class Cleanse(Facts):
    """What Neural Cleanse found (Wang et al., S&P 2019).

    Attributes:
        view: the gradients it took.
        images: clean ones, that the defender has.
        flagged: classes whose index is above 2, and whose trigger leads 90 % of the images there.
    """

    view: str
    steps: Positive
    images: Positive
    classes: list[ReversedTrigger] = Field(min_length=1)
    flagged: list[int]

    @classmethod
    def of(cls, view: str, steps: int, images: int, found: Sequence[tuple[float, int]]) -> Cleanse:
        """With indices and flags, from the (norm, successes) of each class."""
        indices = anomaly_indices([norm for norm, _ in found])
        return cls(
            view=view,
            steps=steps,
            images=images,
            classes=[
                ReversedTrigger(
                    label=label, norm=norm, success=Accuracy.of(hits, images), index=index
                )
                for label, ((norm, hits), index) in enumerate(zip(found, indices, strict=True))
            ],
            flagged=[
                label
                for label, (index, (_, hits)) in enumerate(zip(indices, found, strict=True))
                if index > ANOMALOUS and hits >= LEADING * images
            ],
        )


def anomaly_indices(norms: Sequence[float]) -> list[float]:
    """How far each norm lies below the median: (median − norm) / (1.4826 · MAD).

    Below 0 above the median. Source: Wang et al., S&P 2019, section V.B, who take the absolute
    value and look at the small norms alone. The divisor is 1 % of the median at least: where most
    norms are the same, MAD is 0, and the least difference would stand out.
    """
    middle = median(norms)
    spread = MAD * median(abs(norm - middle) for norm in norms)
    return [(middle - norm) / max(spread, LEAST_SPREAD * middle, 1e-12) for norm in norms]


class ClassClusters(Facts):
    """The training images of one label, in two clusters of their activations.

    Attributes:
        smaller: the smaller cluster's share of them.
        silhouette: mean silhouette width of the two, −1 to 1.
        poisoned: how many are poisoned.
        found: how many of these lie in the smaller cluster.
    """

    label: Count
    images: Positive
    smaller: float = Field(ge=0, le=0.5)
    silhouette: float = Field(ge=-1, le=1)
    poisoned: Count
    found: Count

    @property
    def flagged(self) -> bool:
        """Whether the clusters look like poisons beside clean images: small, and well apart."""
        return self.smaller <= SMALL and self.silhouette >= SEPARATE


class Clustering(Facts):
    """What activation clustering found (Chen et al., arXiv 1811.03728).

    Attributes:
        images: training images looked at.
        components: principal components that the activations were brought to.
        flagged: labels whose smaller cluster looks poisoned.
    """

    images: Positive
    components: Positive
    classes: list[ClassClusters] = Field(min_length=1)
    flagged: list[int]


class Pruning(Facts):
    """What fine-pruning does (Liu, Dolan-Gavitt & Garg, RAID 2018), before any finetuning.

    Attributes:
        images: clean ones, that the defender has.
        neurons: of the last hidden layer.
        pruned: of these, those least active on the clean images.
        most_lost: of the accuracy on them, as a fraction.
        kept: accuracy on them, before and after.
        rates: of the pruned network, on the test images.
    """

    images: Positive
    neurons: Positive
    pruned: Count
    most_lost: float = Field(ge=0, lt=1)
    kept: tuple[Accuracy, Accuracy]
    rates: Rates


class ThreatSettings(Facts):
    """How it was measured.

    Attributes:
        poison: as `parse_poison` reads it.
        training: the record of the training set that was clustered.
    """

    poison: str
    training: PoisonFacts | None
    batch_size: Positive
    seed: RandomSeed
    device: str


class ThreatReport(Measurement):
    """The result of `measure_threats`. Intervals are Wilson 95 %.

    Attributes:
        rates: after each time step, of an ANN one.
    """

    rates: list[Rates]
    cleanse: Cleanse | None = None
    clustering: Clustering | None = None
    pruning: Pruning | None = None
    settings: ThreatSettings

    @classmethod
    def from_json(cls, text: str | bytes) -> ThreatReport:
        """The report that `to_json` wrote.

        Raises:
            SJRobustError: `text` is no such report, or a figure contradicts another one.
        """
        try:
            report = cls.model_validate_json(text)
        except ValidationError as error:
            raise SJRobustError(
                f"not a report on threats of this version: {first_error(error)}"
            ) from None
        try:
            _check(report)
        except ArithmeticError as error:  # integers of a thousand digits
            _refuse(str(error))
        return report

    @property
    def last(self) -> Rates:
        """Those of all time steps."""
        return self.rates[-1]

    def summary(self) -> str:
        """A text table of rates by time step, and what each detector says."""
        rows = [
            [
                "ANN" if one.timesteps is None else f"t={one.timesteps}",
                *(str(value or "–") for value in (one.clean, one.success, one.before)),
            ]
            for one in self.rates
        ]
        return "\n".join(
            [
                f"{self.heading()}, poison {self.settings.poison}",
                "",
                *ruled([["", "clean accuracy", "attack success", "without trigger"], *rows]),
                "",
                *(f"{name}: {text}" for name, text in self.findings()),
                "",
                *self.limits,
            ]
        )

    def findings(self) -> Iterator[tuple[str, str]]:
        """(detector or defence, what it found) of each that ran, in words."""
        if found := self.cleanse:
            top = max(found.classes, key=lambda one: one.index)
            yield (
                "Neural Cleanse",
                f"{_flags(found.flagged)}; the largest index is {top.index:.1f}, of class"
                f" {top.label}, whose trigger covers {top.norm:.1f} pixels and leads"
                f" {top.success} of {found.images} images there (view {found.view},"
                f" {found.steps} steps)",
            )
        if clusters := self.clustering:
            poisons = sum(one.poisoned for one in clusters.classes)
            apart = sum(one.found for one in clusters.classes)
            yield (
                "activation clustering",
                f"{_flags(clusters.flagged)}; {apart} of the {poisons} poisons among"
                f" {clusters.images} training images lie in the smaller cluster of their label",
            )
        if pruning := self.pruning:
            before, after = pruning.kept
            yield (
                "pruning",
                f"{pruning.pruned} of {pruning.neurons} neurons off for"
                f" {100 * (before.value - after.value):.1f} points of accuracy on"
                f" {pruning.images} clean images; test accuracy {pruning.rates.clean}, attack"
                f" success {pruning.rates.success or '–'}",
            )


def _flags(labels: Sequence[int]) -> str:
    return f"flags class {few([*map(str, labels)], 5)}" if labels else "flags no class"


def _check(report: ThreatReport) -> None:
    """Raise SJRobustError where a figure does not follow from its counts, or a count from
    another."""
    model, data = report.model, report.dataset
    if not 1 <= data.evaluated <= data.size:
        _refuse(f"{data.evaluated} of {data.size} images were evaluated")
    if (model.kind == "snn") != (model.timesteps is not None) or (model.timesteps or 1) < 1:
        _refuse(f"kind is {model.kind} with T={model.timesteps}")
    for found in _accuracies(report):
        if not found.follows():
            _refuse(f"{found} is not {found.correct} of {found.total} images")
    if len(report.limits) > 100:
        _refuse(f"{len(report.limits)} limits")
    _check_rates(report)
    if (cleanse := report.cleanse) is not None:
        hits = [(one.norm, one.success.correct) for one in cleanse.classes]
        if Cleanse.of(cleanse.view, cleanse.steps, cleanse.images, hits) != cleanse:
            _refuse("indices and flags of Neural Cleanse do not follow from its norms")
        if len(cleanse.classes) != model.num_classes:
            _refuse(f"Neural Cleanse has {len(hits)} classes, the model {model.num_classes}")
    if (report.clustering is None) != (report.settings.training is None):
        _refuse("clustering and the record of the training set go together, one is there")
    if report.clustering and report.settings.training:
        _check_clusters(report.clustering, report.settings.training, model.num_classes)
    if (pruning := report.pruning) is not None:
        before, after = pruning.kept
        if pruning.pruned > pruning.neurons:
            _refuse(f"{pruning.pruned} of {pruning.neurons} neurons are pruned")
        if not before.total == after.total == pruning.images:
            _refuse(f"pruning is of {pruning.images} images and kept {before.total}")
        if before.value - after.value > pruning.most_lost + 1e-9:
            _refuse(f"pruning lost more than {pruning.most_lost:g}")


def _check_rates(report: ThreatReport) -> None:
    """One row for all steps, or for each; all of the same images."""
    steps, last = [one.timesteps for one in report.rates], report.model.timesteps
    if steps not in ([last], [*range(1, len(steps) + 1)]) or steps[-1:] != [last]:
        _refuse(f"the rates are after the time steps {steps[:9]}, T is {last}")
    images, triggered = report.dataset.evaluated, report.settings.poison.partition(":")[0] != FLIP
    others = {one.success.total for one in report.rates if one.success}
    for one in [*report.rates, *([report.pruning.rates] if report.pruning else [])]:
        if one.clean.total != images:
            _refuse(f"{images} images were evaluated, {one.clean.total} are clean")
        if (one.success is not None) != triggered or (one.before is not None) != triggered:
            _refuse(f"attack success of the poison {report.settings.poison[:80]!r}")
        if one.success and one.before:
            if {one.success.total, one.before.total} != others or one.success.total > images:
                _refuse(f"attack success is of {one.success.total} of {images} images")
            if one.before.correct > images - one.clean.correct:
                _refuse(f"{one.before.correct} images are wrong without trigger")
    if report.pruning and report.pruning.rates.timesteps != last:
        _refuse(f"pruning is after {report.pruning.rates.timesteps} time steps, T is {last}")


def _check_clusters(clusters: Clustering, training: PoisonFacts, num_classes: int) -> None:
    """Labels one by one, each with no more than there is."""
    labels = [one.label for one in clusters.classes]
    if labels != sorted(set(labels)) or labels[-1] >= num_classes:
        _refuse(f"a label is clustered twice, not in order, or none of {num_classes} classes")
    for one in clusters.classes:
        smaller = one.smaller * one.images
        if abs(smaller - round(smaller)) > 1e-6 * one.images:
            _refuse(f"{one.smaller:g} is no share of {one.images} images")
        if not (one.found <= one.poisoned <= one.images and one.found <= round(smaller)):
            _refuse(f"{one.found} of {one.poisoned} poisons among {one.images} images")
    poisons = sum(one.poisoned for one in clusters.classes)
    clustered = sum(one.images for one in clusters.classes)
    if not (clustered <= clusters.images <= training.images and poisons <= training.poisoned):
        _refuse(
            f"{poisons} poisons among {clustered} of {clusters.images} training images, of"
            f" {training.images} with {training.poisoned} poisons"
        )
    flagged = [one.label for one in clusters.classes if one.flagged]
    if flagged != clusters.flagged:
        _refuse(f"classes {clusters.flagged[:9]} are flagged, the clusters say {flagged[:9]}")


def _accuracies(facts: Any) -> Iterator[Accuracy]:
    """All of them, wherever they are."""
    if isinstance(facts, Accuracy):
        yield facts
    elif isinstance(facts, Facts):
        for _, value in facts:
            yield from _accuracies(value)
    elif isinstance(facts, list | tuple):
        for value in facts:
            yield from _accuracies(value)


def _refuse(why: str) -> None:
    raise SJRobustError(f"the report on threats contradicts itself: {why}")
