"""What a checkpoint's evaluation.json says, read without torch. It may come from strangers: every text becomes one printable line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sj_robust.hub.results import Fraction, Microjoules


def plain(text: str) -> str:
    """One printable line: no control characters, no marks that turn the direction of text."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= 300 else line[:297] + "..."


Text = Annotated[str, AfterValidator(plain)]
Texts = Annotated[list[Text], Field(max_length=1000)]
Size = Annotated[float, Field(ge=0, le=1e12)]


class _Recorded(BaseModel):
    """A part of evaluation.json. `evaluate.report.Report` is all of it, for our own files; this bounds what a stranger may have
    written, and passes over what a later version may add."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Accuracy(_Recorded):
    value: Fraction
    low: Fraction
    high: Fraction


class _Joint(_Recorded):
    eps: Annotated[float, Field(ge=0, le=1e6)]
    accuracy: _Accuracy


class _Model(_Recorded):
    kind: Literal["ann", "snn"]
    architecture: Text
    parameters: Annotated[int, Field(ge=0)]
    weights_sha256: Text
    timesteps: int | None


class _Dataset(_Recorded):
    name: Text
    split: Text
    size: Annotated[int, Field(ge=1)]
    evaluated: Annotated[int, Field(ge=1)]
    fingerprint: Text


class _Activity(_Recorded):
    spikes_per_neuron: Size
    spikes_per_image: Size


class _Energy(_Recorded):
    microjoules: Microjoules
    ann_microjoules: Microjoules | None


class _Check(_Recorded):
    name: Text
    status: Literal["pass", "warn", "fail", "not run"]


class _Settings(_Recorded):
    protocol: Text | None = None
    norm: Text = "linf"
    restarts: int = 1
    attacks: Texts
    views: Texts


class Evaluation(_Recorded):
    format: Literal[1] = 1
    model: _Model
    dataset: _Dataset
    clean: _Accuracy
    joint: Annotated[list[_Joint], Field(max_length=1000)]
    activity: _Activity | None
    energy: _Energy | None = None
    checks: Annotated[list[_Check], Field(max_length=1000)] = []
    verdict: Annotated[str, AfterValidator(lambda text: " ".join(text.split())[:4000])] | None = None
    stopped: Text | None = None
    settings: _Settings
