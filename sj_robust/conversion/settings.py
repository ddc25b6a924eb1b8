"""What decides a conversion: the one schema of `convert`, recipes and the command line. Nothing
here imports torch before it is used."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
)

from sj_robust.errors import SJRobustError
from sj_robust.settings import Growing

Norm = Literal["integrate", "fuse", "omit"]
Pooling = Literal["max", "average"]
Replace = Literal["relu"]


def _scale(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= 10:
        raise ValueError(f"expected auto or a number above 0, at most 10, not {value!r:.80}")
    return number


Scale = Annotated[float | Literal["auto"], PlainValidator(_scale)]
"""Of a conversion: one factor on all thresholds, or found layer by layer."""


def _surrogate(name: str) -> str:
    from sj_robust.neuron import Surrogate

    try:
        Surrogate.parse(name)
    except SJRobustError as error:  # which pydantic would let through without its place
        raise ValueError(str(error)) from None
    return name


class ConversionSettings(Growing):
    """Everything that is chosen of a conversion.

    The defaults are the values of Özdenizci & Legenstein (TMLR 2024).
    """

    LATE = ("replace_activation", "pooling")

    timesteps: int = Field(8, ge=1, le=1024, description="T, the steps of one inference")
    percentile: float = Field(
        99.7, gt=0, le=100, description="of a node's input, becomes its threshold"
    )
    scale: Scale = Field(0.3, description="factor on all thresholds, or auto: each layer's own")
    calibration_timesteps: int = Field(
        100, ge=1, le=4096, description="T while thresholds are balanced"
    )
    leak: float = Field(
        1.0, gt=0, le=1, description="factor on the potential from step to step; 1 is no leak"
    )
    reset: Literal["hard", "soft"] = Field(
        "hard", description="to zero, or by subtracting the threshold"
    )
    norm: Norm = Field(
        "integrate",
        description="batch norm: kept as a layer, folded into the layer before, or left out",
    )
    norm_statistics: Literal["calibrate", "reset"] = Field(
        "calibrate",
        description="running statistics of kept batch norms: re-estimated at T, or 0 and 1",
    )
    per_channel: bool = Field(False, description="one threshold per channel")
    replace_activation: Replace | None = Field(
        None,
        description=(
            "convert activations other than ReLU (ReLU6, SiLU, GELU, ...) as if they were ReLU"
        ),
    )
    pooling: Annotated[Pooling, BeforeValidator(lambda value: value or "max")] = Field(
        "max", description="max pooling: kept (an OR of spikes), or made average pooling"
    )
    surrogate: Annotated[str, AfterValidator(_surrogate)] = Field(
        "PCW:1", description="gradient of a spike in training: PCW, EXP, RECT or STE and its width"
    )
