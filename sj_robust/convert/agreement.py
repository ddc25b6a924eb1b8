"""scale="auto": the threshold at which a node's firing rates agree most with the ANN's
activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor

from sj_robust.convert.norms import batch_statistics
from sj_robust.model.classifier import SpikingActivation, SpikingClassifier
from sj_robust.model.mode import evaluation_mode
from sj_robust.neuron import Reset, ThresholdLIF

FACTORS = tuple(0.05 * 2 ** (step / 4) for step in range(19))
"""Of the balanced threshold, 0.05 to 1.13: what is tried."""


def _scale(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= 10:
        raise ValueError("expected auto or a number above 0, at most 10")
    return number


Scale = Annotated[float | Literal["auto"], PlainValidator(_scale)]
"""Of a conversion: one factor on all thresholds, or found layer by layer."""

_SAMPLES = 50_000  # neurons times images, of each layer
_IMAGES = 128


@torch.no_grad()
def agree_thresholds(
    model: SpikingClassifier,
    batches: Sequence[Tensor],
    on_layer: Callable[[str, float], None] | None = None,
) -> dict[str, float]:
    """Multiply every balanced threshold by the one of FACTORS at which the node agrees most with
    the ReLU in its place, in place.

    Layer by layer, front to back, at the model's own T and with the thresholds already chosen
    before it: one pass of the ANN and one of the spiking network. Agreement is the cosine between
    firing rates and the ANN's activations, over neurons and images (about 128 of the `batches` [N,
    C, H, W] in [0,1], 50,000 pairs of each layer): what a factor on all rates would do, the next
    layer's batch norm or weights do. Low thresholds saturate strong activations, high ones round
    weak ones to 0; where the best lies depends on T, the reset and what noise comes in.

    Returns the chosen factors by node name, in the order in which the nodes run. `on_layer` is
    called with name and threshold.
    """
    images = torch.cat([batch[: math.ceil(_IMAGES / len(batches))] for batch in batches])
    expected = _activations(model, images)
    chosen: dict[str, float] = {}

    def at_node(name: str) -> Any:
        def choose(activation: SpikingActivation, inputs: tuple[Tensor, ...]) -> None:
            node, (index, y) = activation.node, expected[name]
            raw = float(node.v_threshold.amax())
            chosen[name] = _best_factor(node, _sampled(activation, inputs[0], index), y, raw)
            node.v_threshold.mul_(chosen[name])
            if on_layer:
                on_layer(name, raw * chosen[name])

        return choose

    handles = [
        activation.register_forward_pre_hook(at_node(name))
        for name, activation in model.activations().items()
    ]
    try:
        with batch_statistics(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return chosen


def _activations(model: SpikingClassifier, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each node, places [K] in one step of it, flattened, and what a ReLU emits there [K]."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def at_node(name: str) -> Any:
        def keep(activation: SpikingActivation, inputs: Any, output: Tensor) -> None:
            index = torch.randint(output.numel(), (_SAMPLES,), generator=generator)
            index = index.to(output.device)
            found[name] = index, output.flatten()[index]

        return keep

    handles = [
        activation.register_forward_hook(at_node(name))
        for name, activation in model.activations().items()
    ]
    try:
        with evaluation_mode(model), model.gradient("activation"):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _sampled(activation: SpikingActivation, x: Tensor, index: Tensor) -> Tensor:
    """Of a node's input, what those places get: [T, 1, K]."""
    steps = 1 if activation.repeats else activation.timesteps
    sampled = x.reshape(steps, -1)[:, index]
    return sampled.expand(activation.timesteps, -1).unsqueeze(1).contiguous()


def _best_factor(node: ThresholdLIF, x: Tensor, y: Tensor, raw: float) -> float:
    """The largest of equals: where nothing was active, nothing fires more than before."""
    reset: Reset = "soft" if node.soft_reset else "hard"
    agreement = []
    for factor in FACTORS:
        rates = ThresholdLIF(raw * factor, node.leak, reset).to(x.device)(x).mean(0).flatten()
        agreement.append(float(torch.nn.functional.cosine_similarity(rates, y, dim=0)))
    return max(zip(agreement, FACTORS, strict=True))[1]
