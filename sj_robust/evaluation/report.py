"""What an evaluation found: facts only, as JSON and as text."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, ValidationError

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.accuracy import Accuracy as Accuracy
from sj_robust.evaluation.accuracy import Facts as Facts
from sj_robust.evaluation.accuracy import wilson as wilson
from sj_robust.evaluation.consistency import check_figures
from sj_robust.evaluation.table import summary
from sj_robust.evaluation.words import Status
from sj_robust.evaluation.words import attempt as attempt
from sj_robust.evaluation.words import attempt_view as attempt_view
from sj_robust.evaluation.words import energy_name as energy_name
from sj_robust.evaluation.words import eps_name as eps_name
from sj_robust.evaluation.words import interval_name as interval_name
from sj_robust.settings import first_error
from sj_robust.text import visible


class ViewResult(Facts):
    """One attack through one gradient view.

    Attributes:
        attempted: how many images it was given.
        broken: how many of these it broke.
        alone: accuracy of all evaluated images against this view and nothing else. None where the
            view was given the survivors of others only, because then it was not measured.
    """

    attempted: int
    broken: int
    alone: Accuracy | None
    seconds: float | None = None


class RobustResult(Facts):
    """One attack at one eps through all views.

    Attributes:
        joint: images that survive every view of this attack and everything run before it (attacks
            listed earlier, smaller eps).
        alone: images that survive every view of this attack at this eps, whatever other attacks
            did; None where not measured.
    """

    eps: float
    attack: str
    settings: dict[str, Any]
    per_view: dict[str, ViewResult]
    joint: Accuracy
    alone: Accuracy | None
    seconds: float | None = None
    forward_images: int | None = None
    backward_images: int | None = None

    @property
    def attempted(self) -> int:
        """How many images it was given, over all views."""
        return sum(view.attempted for view in self.per_view.values())


class JointResult(Facts):
    """All attacks and views at one eps: robust is what survived every one of them.

    Attributes:
        carried: images counted as broken because a smaller eps broke them; that adversarial image
            lies in this ball too.
    """

    eps: float
    accuracy: Accuracy
    carried: int


class ModelFacts(Facts):
    kind: Literal["snn", "ann"]
    architecture: str
    parameters: int
    num_classes: int
    timesteps: int | None
    weights_sha256: str  # of the state dict: names, types, shapes, values
    source: dict[str, Any] | None
    settings: dict[str, Any] | None  # of the conversion
    # of the input, inside the model; None in reports that did not record it
    mean: list[float] | None = None
    std: list[float] | None = None
    # with which timm builds the architecture, where that is known
    model_args: dict[str, Any] | None = None


class DatasetFacts(Facts):
    """`evaluated` images, the first ones of `size`."""

    name: str
    split: str
    size: int
    evaluated: int
    image_shape: tuple[int, ...]
    classes: int
    fingerprint: str


class PerImage(Facts):
    """Outcome of each evaluated image, in the order of the data set.

    Attributes:
        broken_by: `broken_by[e][i]` is "ATTACK VIEW" that first broke image i at or below the e-th
            eps of the report. None where it is robust there, and where `predicted[i] != label[i]`:
            an image misclassified as it is counts as not robust at every eps and is not attacked.
    """

    label: list[int]
    predicted: list[int]
    broken_by: list[list[str | None]]

    def standing(self, at: int) -> list[bool]:
        """Of each image: whether it is right, and stays so at the `at`-th eps."""
        outcomes = zip(self.label, self.predicted, self.broken_by[at], strict=True)
        return [label == predicted and by is None for label, predicted, by in outcomes]


class LayerActivity(Facts):
    """One spiking layer.

    Attributes:
        neurons: per image.
        spikes_per_neuron: mean over all timesteps.
        rate: the same per timestep.
    """

    neurons: int
    spikes_per_neuron: float
    rate: float


class Activity(Facts):
    """Spikes on the evaluated clean images; means are over images and neurons.

    Attributes:
        spikes_per_image: the total of one inference.
    """

    layers: dict[str, LayerActivity]
    neurons: int
    spikes_per_neuron: float
    spikes_per_image: float


class EnergyEstimate(Facts):
    """Operations of one inference and the energy they stand for, means per image.

    `evaluation.energy` says what is counted and what is left out. `acs`, `macs` and `microjoules`
    are of this model, `ann_…` of the same architecture with dense activations (None for an ANN),
    `dense_…` with sums and means of spikes multiplied (None without any).

    Attributes:
        images: counted on the first so many of those evaluated.
        picojoules: what a MAC and an AC were taken to cost.
    """

    images: int
    acs: float
    macs: float
    microjoules: float
    ann_macs: float | None
    ann_microjoules: float | None
    dense_acs: float | None = None
    dense_macs: float | None = None
    dense_microjoules: float | None = None
    picojoules: dict[str, float]

    def __str__(self) -> str:
        acs = "" if self.ann_microjoules is None else f"{_millions(self.acs)} ACs, "
        ann = (
            ""
            if self.ann_microjoules is None
            else f"; its ANN {energy_name(self.ann_microjoules)} µJ"
        )
        return (
            f"{energy_name(self.microjoules)} µJ per image (estimate: {acs}{_millions(self.macs)}"
            f" MACs{ann})"
        )


class Settings(Facts):
    """How the evaluation was made.

    Attributes:
        views: in the order of attack.
    """

    protocol: str | None = None
    norm: str = "linf"
    grid: Literal["8bit"] | None = None  # adversarial images on the grid of 256 values
    restarts: int = 1
    eps: list[float]
    attacks: list[str]
    views: list[str]
    # SHA-256 of the other models' weights; None before it was noted
    transfer: dict[str, str] | None = None
    survivors_only: bool
    batch_size: int
    # of the checks and of roughness; None before it was noted
    check_images: int | None = None
    roughness_images: int | None = None
    seed: int
    ball_tolerance: float
    device: str


class Check(Facts):
    """One look for signs that the robust accuracies are too high.

    Attributes:
        status: "too few": there were not enough images to tell.
        found: in words.
        numbers: behind these.
    """

    name: str
    status: Status
    found: str
    numbers: dict[str, Any]


class Changed(Facts):
    """`changed` of `images` rightly classified ones, as a fraction with its Wilson 95 % interval,
    within `eps`."""

    eps: float
    changed: int
    images: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, eps: float, changed: int, images: int) -> Changed:
        low, high = wilson(changed, images)
        return cls(
            eps=eps, changed=changed, images=images, value=changed / images, low=low, high=high
        )

    def __str__(self) -> str:
        return f"{interval_name(self.value, self.low, self.high)} within {eps_name(self.eps)}"


class Roughness(Facts):
    """Rightly classified images that random points change.

    Attributes:
        points: uniform ones within eps (l∞), at least one of which changes the image.
        others: the same of the models that were given to transfer from, on those of these images
            that they get right themselves.
    """

    points: int
    model: list[Changed]
    others: dict[str, list[Changed]]

    def lines(self) -> list[str]:
        """In words: of the model itself, then of each other one."""

        def said(found: list[Changed]) -> str:
            return (
                f"{'; '.join(map(str, found))} (one of {self.points} random points changes the"
                f" class; {found[0].images} images)"
            )

        return [
            said(self.model),
            *(f"of {name}: {said(found)}" for name, found in self.others.items()),
        ]


class Measurement(Facts):
    """What every measurement of one model on one data set says beside its results."""

    format: Literal[1] = 1
    model: ModelFacts
    dataset: DatasetFacts
    limits: list[str]
    seconds: float
    versions: dict[str, str]

    def to_json(self) -> str:
        """JSON with one line per field.

        The outcomes of thousands of images must not fill thousands of lines.
        """
        fields = (
            f"  {json.dumps(name)}: {json.dumps(value)}"
            for name, value in self.model_dump(mode="json").items()
        )
        return "{\n" + ",\n".join(fields) + "\n}\n"

    def heading(self) -> str:
        """One line on what was measured."""
        model, data = self.model, self.dataset
        kind = f"SNN, T={model.timesteps}" if model.kind == "snn" else "ANN"
        extent = (
            f"all {data.size}"
            if data.evaluated == data.size
            else f"first {data.evaluated} of {data.size}"
        )
        return visible(
            f"{model.architecture} ({kind}) on {data.name} {data.split}, {extent} images"
        )


class Report(Measurement):
    """The result of `sj_robust.evaluate`.

    Accuracies are fractions of the evaluated images; intervals are Wilson 95 %.
    """

    clean: Accuracy
    joint: list[JointResult]
    robust: list[RobustResult]
    per_image: PerImage
    activity: Activity | None
    energy: EnergyEstimate | None = None
    roughness: Roughness | None = None
    checks: list[Check] = Field([])
    verdict: str | None = None
    stopped: str | None = None
    settings: Settings
    forward_images: int
    backward_images: int

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that `to_json` wrote.

        Raises:
            SJRobustError: `text` is no report; it names the first field that is wrong or
                contradicts another one.
        """
        try:
            report = cls.model_validate_json(text)
        except ValidationError as error:
            raise SJRobustError(
                f"not an evaluation report of this version: {first_error(error)}"
            ) from None
        check_figures(report)
        return report

    def summary(self) -> str:
        """A text table: rows eps, columns the joint accuracy after each attack, then over all.

        Below it the views that broke most.
        """
        return summary(self)


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count >= 5e4 else f"{count:.0f}"
