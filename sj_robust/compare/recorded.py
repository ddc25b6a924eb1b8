"""What a checkpoint's evaluation.json says, read without torch. It may come from strangers: every
text becomes one printable line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sj_robust.checkpoint.results import Fraction, Microjoules
from sj_robust.evaluation.report import Accuracy, Changed  # no torch
from sj_robust.evaluation.words import Status
from sj_robust.text import visible


def plain(text: str) -> str:
    """One printable line for a column of a table."""
    return visible(text, 300)


Text = Annotated[str, AfterValidator(plain)]
Texts = Annotated[list[Text], Field(max_length=1000)]
Size = Annotated[float, Field(ge=0, le=1e12)]
Operations = Annotated[float, Field(ge=0, le=1e20)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Radius = Annotated[float, Field(ge=0, le=1e6)]


class _Recorded(BaseModel):
    """A part of evaluation.json. `evaluation.report.Report` is all of it, for our own files; this
    bounds what a stranger may have written, and passes over what a later version may add."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Accuracy(Accuracy):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    value: Fraction
    low: Fraction
    high: Fraction


class _Joint(_Recorded):
    eps: Radius
    accuracy: _Accuracy
    carried: Count


class _View(_Recorded):
    attempted: Count
    broken: Count
    alone: _Accuracy | None


class _Robust(_Recorded):
    eps: Radius
    attack: Text
    settings: dict[str, Any]
    per_view: dict[Text, _View]
    joint: _Accuracy
    alone: _Accuracy | None
    forward_images: Count | None = None
    backward_images: Count | None = None


class _PerImage(_Recorded):
    label: list[int]
    predicted: list[int]
    broken_by: list[list[Text | None]]


class _Model(_Recorded):
    kind: Literal["ann", "snn"]
    architecture: Text
    parameters: Count
    num_classes: Count
    weights_sha256: Text
    timesteps: int | None
    settings: dict[str, Any] | None
    mean: list[float] | None = None
    std: list[float] | None = None
    model_args: dict[str, Any] | None = None


class _Dataset(_Recorded):
    name: Text
    split: Text
    size: Count
    evaluated: Count
    fingerprint: Text


class _Layer(_Recorded):
    neurons: Count
    spikes_per_neuron: Size
    rate: Size


class _Activity(_Recorded):
    layers: dict[str, _Layer]
    neurons: Count
    spikes_per_neuron: Size
    spikes_per_image: Size


class _Energy(_Recorded):
    images: Count
    acs: Operations
    macs: Operations
    microjoules: Microjoules
    ann_macs: Operations | None
    ann_microjoules: Microjoules | None
    dense_acs: Operations | None = None
    dense_macs: Operations | None = None
    dense_microjoules: Microjoules | None = None
    picojoules: dict[str, float]


class _Check(_Recorded):
    name: Text
    status: Status
    found: Annotated[str, AfterValidator(visible)] = ""


class _Changed(Changed):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    changed: Count
    images: Count
    value: Fraction
    low: Fraction
    high: Fraction


class _Roughness(_Recorded):
    points: Count
    model: Annotated[list[_Changed], Field(max_length=100)]
    others: Annotated[
        dict[Text, Annotated[list[_Changed], Field(max_length=100)]], Field(max_length=100)
    ]


class _Settings(_Recorded):
    protocol: Text | None = None
    norm: Text = "linf"
    grid: Literal["8bit"] | None = None
    restarts: int = 1
    eps: list[Radius]
    attacks: Texts
    views: Texts
    survivors_only: bool


class Evaluation(_Recorded):
    format: Literal[1] = 1
    model: _Model
    dataset: _Dataset
    clean: _Accuracy
    joint: Annotated[list[_Joint], Field(max_length=1000)]
    robust: Annotated[list[_Robust], Field(max_length=10_000)]
    per_image: _PerImage
    activity: _Activity | None
    energy: _Energy | None = None
    roughness: _Roughness | None = None
    checks: Annotated[list[_Check], Field(max_length=1000)] = []
    verdict: Annotated[str, AfterValidator(visible)] | None = None
    stopped: Text | None = None
    settings: _Settings
    forward_images: Count
    backward_images: Count
