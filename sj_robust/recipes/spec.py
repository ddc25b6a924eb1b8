"""A recipe: everything that decides one model, as a small YAML file."""

from __future__ import annotations

import os
from typing import Annotated, Any

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sj_robust.checkpoint.config import TIMM_RUNTIME
from sj_robust.conversion import ConversionSettings
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.settings import EvaluationSettings
from sj_robust.reading import MAX_RECIPE_BYTES, parse_yaml, read_text
from sj_robust.settings import Strict, checked
from sj_robust.training import TrainConfig, preset
from sj_robust.training.config import Kind

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}$"


def _training(kind: Kind) -> BeforeValidator:
    """Let `preset:` name what the other settings change; without it they change the preset
    "default"."""

    def complete(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        changes = {key: setting for key, setting in value.items() if key != "preset"}
        if unknown := [key for key in changes if key not in TrainConfig.model_fields]:
            raise ValueError(f"has no setting {str(unknown[0])!r}")
        return preset(kind, str(value.get("preset") or "default"), **changes)

    return BeforeValidator(complete)


class AnnSettings(Strict):
    """The source network: exactly one of `architecture`, `model` and `checkpoint`.

    Attributes:
        architecture: a timm name; timm's `hf-hub:owner/name[@revision]` and `local-dir:PATH` bring
            their weights.
        model: module:function; also beside the checkpoint of a network that timm cannot build.
        checkpoint: a folder, a zoo name or owner/name[@revision] on the Hub.
        args: of architecture or model.
        weights: loaded before any training.
        scratch: keep the random weights of an architecture, for a spiking network trained from end
            to end.
        mean: as stored in the weights, else by default the data set's where it is a named one, else
            (for random weights) that of the network's pretrained_cfg; pretrained weights bring
            theirs.
        std: as `mean`.
        train: a preset and what it changes (a network of other classes than the data's then gets a
            fresh classifier layer); without it the network is taken as it is.
    """

    name: str | None = Field(
        None,
        pattern=_NAME,
        description="what its checkpoint calls itself: ARCH.DATASET_THREAT_METHOD",
    )
    architecture: str | None = None
    model: str | None = None
    checkpoint: str | None = None
    args: dict[str, JsonValue] = Field({})
    num_classes: int | None = Field(None, ge=1)
    weights: str | None = None
    pretrained: bool = False
    scratch: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    train: Annotated[TrainConfig | None, _training("ann")] = None

    @model_validator(mode="after")
    def _one_source(self) -> AnnSettings:
        given = [name for name in ("architecture", "model", "checkpoint") if getattr(self, name)]
        if len(given) != 1 and given != ["model", "checkpoint"]:
            raise ValueError(
                "give exactly one of architecture, model and checkpoint, not"
                f" {' and '.join(given) or 'none'}"
            )
        begun = bool(self.weights or self.brings_weights or self.train)
        if self.architecture and not (begun or self.scratch):
            raise ValueError(
                f"{self.architecture} would keep its random weights: give weights (--weights),"
                " pretrained (--pretrained), train (sj-robust train-ann, then convert its"
                " checkpoint), or in a recipe scratch: true"
            )
        if self.scratch and (begun or not self.architecture):
            raise ValueError(
                "scratch keeps the random weights of an architecture: leave weights, pretrained,"
                " train and checkpoint away"
            )
        if self.checkpoint and (self.weights or self.pretrained):
            raise ValueError(
                "a checkpoint brings its own weights: leave weights and pretrained away"
            )
        if self.architecture and (
            odd := next((key for key in self.args if key in TIMM_RUNTIME), None)
        ):
            raise ValueError(
                f"args may not set {odd!r}, which is no argument of the architecture: there are"
                " weights, pretrained and num_classes"
            )
        if self.checkpoint and self.args and not self.model:
            raise ValueError("a checkpoint brings its own args: leave args away")
        return self

    @property
    def brings_weights(self) -> bool:
        """Whether the architecture's name stands for pretrained weights too."""
        return self.pretrained or (":" in (self.architecture or "") and not self.weights)


class CalibratedConversion(ConversionSettings):
    """How a recipe or the command line converts.

    Calibration images are `batches` × `batch_size` training images drawn by the seed.
    """

    model_config = ConfigDict(protected_namespaces=())

    batches: int = Field(11, ge=1, description="calibration batches")
    batch_size: int = Field(64, ge=1, description="images in each")


class Measurements(EvaluationSettings):
    """How both networks of a recipe are measured.

    The ANN is measured on the same images and eps as the spiking one, which a protocol also attacks
    with the gradients of its ANN.

    Attributes:
        further: protocols that both are measured under besides; their reports lie beside the first
            in the checkpoints.
        converted: measure the network as converted too, which tells what finetuning is worth
            (without checks).
    """

    attacks: list[str] = Field(["fgsm", "pgd10"])
    check_images: int = Field(32, ge=0)
    further: list[str] | None = None
    converted: bool = False

    @model_serializer(mode="wrap")
    def _in_the_order_of_recipes(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = self._without_what_came_later(dump)
        order = [key for key in ("eps", "protocol", "further") if key in found]
        return {**{key: found[key] for key in order}, **found}


class Recipe(Strict):
    """One model from source to measured checkpoint.

    Paths in it are relative to the working directory.
    """

    name: str = Field(pattern=_NAME, description="ARCH-snn-tT.DATASET_THREAT_METHOD")
    license: str | None = Field(
        None, max_length=200, description="of the weights, for the card: mit, bsd-2-clause, ..."
    )
    dataset: str
    image_size: int | None = Field(None, ge=1)
    resize: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    ann: AnnSettings
    convert: CalibratedConversion = CalibratedConversion()
    finetune: Annotated[TrainConfig | None, _training("finetune")] = None
    evaluate: Measurements = Measurements()

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, fields: Any) -> Any:
        """The recipe's seed is also the trainings' where they name none."""
        if not isinstance(fields, dict):
            return fields
        fields, seed = dict(fields), fields.get("seed", 0)
        ann = fields.get("ann")
        if isinstance(ann, dict) and isinstance(ann.get("train"), dict):
            fields["ann"] = {**ann, "train": {"seed": seed, **ann["train"]}}
        if isinstance(fields.get("finetune"), dict):
            fields["finetune"] = {"seed": seed, **fields["finetune"]}
        return fields

    def to_yaml(self) -> str:
        """The recipe with every default and preset written out.

        So it stays what it was when those change.
        """
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
        )


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and validate a YAML recipe.

    Raises:
        SJRobustError: names the file and the first thing wrong with it.
    """
    origin = f"recipe {path}"
    try:
        text = read_text(path, MAX_RECIPE_BYTES)
    except SJRobustError as error:
        raise SJRobustError(f"recipe {error}") from None
    return make_recipe(parse_yaml(text, origin), str(path))


def make_recipe(fields: Any, origin: str = "recipe") -> Recipe:
    """A Recipe from plain fields.

    Raises:
        SJRobustError: names `origin` and the first thing wrong with them.
    """
    return checked(Recipe, fields, f"{origin}: ")
