"""config.json of a checkpoint folder: its schema, and reading it without trusting it.

A checkpoint may come from a stranger, so every field is typed and bounded, unknown keys are
refused, and nothing in it is ever imported, opened or executed: the architecture is a timm name,
and a user's own class is only named, never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sj_robust import reading
from sj_robust.errors import SJRobustError
from sj_robust.settings import first_error
from sj_robust.text import visible

FORMAT_VERSION = 1
LIBRARY = "sj-robust"
CONFIG, WEIGHTS, EVALUATION, SOURCE_EVALUATION = (
    "config.json",
    "model.safetensors",
    "evaluation.json",
    "evaluation_source.json",
)
CARD, RECIPE, FIGURES = "README.md", "recipe.yaml", "figures"
ATTACKED = f"{FIGURES}/attacked.png"  # the picture that `show --record` keeps
THREATS = "threats.json"  # what was measured of backdoors
CERTIFICATES = "certificates.json"
ORIGIN = ".sj_robust.json"  # where a folder was pulled from or pushed to; never on the Hub itself
# evaluation.json is that of the strongest protocol, as spiking networks were measured under them;
# the others lie beside it
# custom: attacks without a protocol's name; 8bit: any protocol by an attacker who has to write a
# file, which never stands alone
GRID = "8bit"
STRONGEST_FIRST = ("strong", "autoattack", "paper", "quick", "custom", GRID)
BESIDE = {protocol: f"evaluation_{protocol}.json" for protocol in STRONGEST_FIRST}
EVALUATIONS = (EVALUATION, *BESIDE.values())
MEASURED = frozenset({*EVALUATIONS, SOURCE_EVALUATION, THREATS, CERTIFICATES})
FILES = frozenset(
    {
        *(CONFIG, WEIGHTS, *MEASURED),
        *(CARD, RECIPE, FIGURES, ORIGIN),
    }
)
LARGEST_SIDE = 4096  # pixels, of the images a network takes
MAX_CONFIG_BYTES = 1 << 20
MAX_TEXT_BYTES = 64 << 20  # evaluation.json carries one outcome per image, eps and view

# arguments of timm.create_model that read files, reach for the network or change what is built, and
# so are none of a config's business
TIMM_RUNTIME = frozenset(
    {
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "pretrained_strict",
        "checkpoint_path",
        "cache_dir",
        "scriptable",
        "exportable",
        "no_jit",
        "features_only",
        "device",
        "dtype",
        "model_name",
        "num_classes",
    }
)


def _bounded(value: Any, where: str = "", depth: int = 0) -> Any:
    """Refuse JSON that only an attacker would write: nested beyond reason, or numbers that would
    exhaust memory."""
    if depth > 8:
        raise ValueError("it is nested more than 8 deep")
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _bounded(item, str(key)[:40], depth + 1)
    elif isinstance(value, int | float):
        if not abs(value) < 1e18:  # NaN too
            raise ValueError(f"{where} is {_short(value)}, out of any sensible range")
    elif not isinstance(value, str | None):
        raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")
    return value


def _architecture_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    for key, value in arguments.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", key):
            raise ValueError(f"has the key {_short(key)}")
        if key in TIMM_RUNTIME:
            raise ValueError(f"may not set {key!r}")
        for item in plain_values(value):
            if isinstance(item, (int, float)) and not abs(item) <= 65536:
                raise ValueError(f"sets {key!r} to {item!r}, above 65536")
            if isinstance(item, str) and not re.fullmatch(r"[A-Za-z0-9_.\-]{0,64}", item):
                raise ValueError(f"sets {key!r} to {_short(item)}")
    return arguments


def plain_values(value: Any) -> Iterator[Any]:
    """The plain values in lists and dicts of any depth, and the keys of dicts."""
    if isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from plain_values(item)
    else:
        yield value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}$")]
Architecture = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,95}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Facts = Annotated[dict[str, Any], AfterValidator(_bounded)]
ModelArgs = Annotated[
    dict[str, Any], AfterValidator(_bounded), AfterValidator(_architecture_arguments)
]
Channel = Annotated[float, Field(ge=-1e4, le=1e4)]
Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Weights(_Strict):
    """model.safetensors as it was written; `state_sha256` is the classifier's own state, which an
    evaluation names."""

    sha256: Sha256
    state_sha256: Sha256
    bytes: Annotated[int, Field(ge=8, le=1 << 38)]
    tensors: Annotated[int, Field(ge=1, le=1_000_000)]
    parameters: Annotated[int, Field(ge=0)]


class TimmConfig(_Strict):
    """The part of timm's pretrained_cfg that describes these weights, for
    `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

    input_size: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=LARGEST_SIDE)]], Field(min_length=3, max_length=3)
        ]
        | None
    ) = None
    mean: list[Channel]
    std: list[Channel]
    first_conv: str | list[str] | None = None
    classifier: str | list[str] | None = None


class Config(_Strict):
    """Everything needed to rebuild a model beside its weights.

    The settings of a network of SpikingJelly's nodes (`from_spikingjelly`) say what these `nodes`
    are.

    Attributes:
        kind: tells a spiking network ("snn") from its source ("ann").
        architecture: a timm name built with `model_args` and `num_classes`; None for a user's own
            class.
        model: the "module:function" that built a user's own class, with `model_args`, for the
            reader's information: only a function that the loading user names is ever called.
    """

    format_version: Literal[1]
    library_name: Literal["sj-robust"]
    kind: Literal["ann", "snn"]
    name: Name | None = None
    architecture: Architecture | None
    model_args: ModelArgs = {}
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    model: (
        Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9_.]+:[A-Za-z0-9_.]+$")] | None
    ) = None
    input_size: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=LARGEST_SIDE)]], Field(min_length=3, max_length=3)
        ]
        | None
    ) = None
    classes: Annotated[list[Line], Field(max_length=100_000)] | None = None
    settings: Facts
    thresholds: Annotated[dict[Line, float], Field(max_length=100_000)] | None = None
    source: Facts = {}
    training: Facts | None = None
    license: Line | None = None
    base_model: (
        Annotated[
            str, Field(max_length=193, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*/[A-Za-z0-9_.\-]+$")
        ]
        | None
    ) = None
    weights: Weights
    created_with: dict[Line, Line]
    memory_format: Literal["contiguous_format", "channels_last"] = "contiguous_format"
    pretrained_cfg: TimmConfig | None = None

    @property
    def poison(self) -> tuple[str, int] | None:
        """(poison, seed) of the training set of the network, or of the ANN that it was made from.

        None where nothing says that it was poisoned.
        """
        settings = (self.training or {}).get("config")
        settings = settings if isinstance(settings, dict) else {}
        for text, seed in (
            (settings.get("poison"), settings.get("seed")),
            (self.source.get("poison"), self.source.get("poison_seed")),
        ):
            if isinstance(text, str):
                return text, seed if _integer(seed) else 0  # type: ignore[return-value]
        return None

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """What is recorded of each training after the conversion, or of an ANN's; the first one
        first."""
        before = (self.training or {}).get("before")
        earlier = before if isinstance(before, list) else [before]  # once one stood alone
        return [one for one in (*earlier, self.training) if isinstance(one, dict) and one]

    @property
    def ann_sha256(self) -> str | None:
        """The hash of the weights file of the ANN that a spiking network was converted from.

        None where it was not recorded.
        """
        found = self.source.get("weights_sha256")
        named = isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) is not None
        return found if self.kind == "snn" and named else None

    @field_validator("settings")
    @classmethod
    def _settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key in ("mean", "std"):
            values = settings.get(key)
            if (
                not isinstance(values, list)
                or not 1 <= len(values) <= 4096
                or not all(_number(v) and abs(v) <= 1e4 for v in values)
            ):
                raise ValueError(
                    f"{key} is {_short(values)}, expected a list of one number per channel"
                )
        if len(settings["mean"]) != len(settings["std"]) or not all(v > 0 for v in settings["std"]):
            raise ValueError("std must be as long as mean and positive")
        if "timesteps" in settings and not (
            _integer(settings["timesteps"]) and 1 <= settings["timesteps"] <= 1024
        ):
            raise ValueError(
                f"timesteps is {_short(settings['timesteps'])}, expected an integer from 1 to 1024"
            )
        nodes = settings.get("nodes", {})
        if not (isinstance(nodes, dict) and all(isinstance(text, str) for text in nodes.values())):
            raise ValueError(f"nodes is {_short(nodes)}, expected a text for each")
        channels = settings.get("channels") or {}
        if not (
            isinstance(channels, dict)
            and all(_integer(count) and 1 <= count <= 65536 for count in channels.values())
        ):
            raise ValueError(
                f"channels is {_short(channels)}, expected an integer from 1 to 65536 for each"
                " layer"
            )
        return settings

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.kind == "snn" and "timesteps" not in self.settings:
            raise ValueError("settings of an snn need timesteps")
        if self.kind == "ann" and (
            self.thresholds is not None or self.settings.keys() != {"mean", "std"}
        ):
            raise ValueError("an ann has a mean and a std as settings and no thresholds")
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(
                f"classes has {len(self.classes)} names for {self.num_classes} classes"
            )
        for_timm = self.pretrained_cfg
        if for_timm and (for_timm.mean, for_timm.std) != (
            self.settings["mean"],
            self.settings["std"],
        ):
            raise ValueError("pretrained_cfg has another mean or std than settings")
        if for_timm and for_timm.input_size not in (None, self.input_size):
            raise ValueError(
                f"pretrained_cfg has the input_size {for_timm.input_size}, the model"
                f" {self.input_size}"
            )
        return self

    @property
    def timesteps(self) -> int | None:
        """Time steps T of a spiking network, None for an ANN."""
        return self.settings["timesteps"] if self.kind == "snn" else None

    @property
    def layers_by_node(self) -> dict[str, list[str]]:
        """{what a node is: the layers that are such nodes} of a network that was not converted.

        Else empty.
        """
        found: dict[str, list[str]] = {}
        for layer, text in self.settings.get("nodes", {}).items():
            found.setdefault(text, []).append(layer)
        return found


def read_config(folder: Path) -> Config:
    """Read and validate config.json of a checkpoint folder.

    Raises:
        SJRobustError: names the file and the first thing wrong with it.
    """
    path = folder / CONFIG
    content = parse_json(path, MAX_CONFIG_BYTES)
    version = content.get("format_version")
    if content.get("library_name") != LIBRARY or version is None:
        raise SJRobustError(
            f"{path} was not written by sj-robust (no library_name {LIBRARY!r}, format_version):"
            " expected a checkpoint"
        )
    if _integer(version) and version > FORMAT_VERSION:
        raise SJRobustError(
            f"{path} has format {version}, made by a newer sj-robust (this one reads"
            f" {FORMAT_VERSION}): upgrade sj-robust"
        )
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise SJRobustError(
            f"{path} is not a valid checkpoint config: {first_error(error)}"
        ) from None


def parse_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes of a checkpoint folder. Raises
    SJRobustError where it is none."""
    return reading.parse_json(read_bounded(path, limit), path)


def read_bounded(path: Path, limit: int) -> str:
    """The UTF-8 text of a file of at most `limit` bytes of a checkpoint folder. Raises
    SJRobustError where it is missing, no regular file, larger or not text."""
    return reading.read_text(path, limit, needs=f"a checkpoint folder needs {CONFIG} and {WEIGHTS}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    return visible(repr(value), 80)
