"""scale="auto": the threshold at which a node's firing rates agree most with the ANN's
activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_robust.conversion.norms import batch_statistics
from sj_robust.model.classifier import SpikingActivation, SpikingClassifier
from sj_robust.model.hooks import hooked
from sj_robust.model.mode import evaluation_mode
from sj_robust.neuron import Reset, ThresholdLIF

FACTORS = tuple(0.05 * 2 ** (step / 4) for step in range(19))
"""On a node's balanced threshold, 0.05 to 1.13: what is tried."""

OVERALL = (0.55, 0.65, 0.8, 1.0)
"""On all thresholds together."""


_SAMPLES = 50_000  # neurons times images, of each layer
_IMAGES = 128


@torch.no_grad()
def agree_thresholds(
    model: SpikingClassifier,
    batches: Sequence[Tensor],
    on_layer: Callable[[str, float], None] | None = None,
) -> None:
    """Lower balanced thresholds to where the spiking network agrees most with its ANN, in place.

    First layer by layer, front to back, at the model's own T: each threshold is multiplied by the
    one of FACTORS at which the cosine between firing rates and the activations of a ReLU in the
    node's place is highest (of any factor on all rates, which a batch norm would take out). Low
    thresholds saturate strong activations, high ones round weak ones to 0; where the best lies
    depends on T, the reset and the noise that comes in. Then all of them by the one of OVERALL that
    brings the logits nearest to those of the network of ReLUs: noise adds up with depth, and a
    layer that looks at itself alone does not see what its own does to those behind it.

    It takes 128 images at most of the `batches` [N, C, H, W] in [0,1], of the first one's height
    and width, as one batch at the model's T, and of each layer 50,000 pairs of rate and activation;
    it costs one pass of the ANN and 1 + len(OVERALL) of the spiking network. `on_layer` is called
    with a node's name and threshold whenever it is set.
    """
    images = _some(batches)
    activations, logits = _seen(model, images)
    nodes = model.nodes()

    def set_threshold(name: str, value: float) -> None:
        nodes[name].v_threshold.fill_(value)
        if on_layer:
            on_layer(name, value)

    def at_node(name: str) -> Any:
        def choose(activation: SpikingActivation, inputs: tuple[Tensor, ...]) -> None:
            raw, (index, y) = float(nodes[name].v_threshold.amax()), activations[name]
            x = _sampled(activation, inputs[0], index)
            set_threshold(name, raw * _best_factor(nodes[name], x, y, raw))

        return choose

    spiking = model.activations().items()
    handles = [each.register_forward_pre_hook(at_node(name)) for name, each in spiking]
    with hooked(handles), batch_statistics(model):
        model(images)
    chosen = {name: float(node.v_threshold.amax()) for name, node in nodes.items()}

    def set_all(factor: float) -> None:
        for name, value in chosen.items():
            set_threshold(name, value * factor)

    def distance(factor: float) -> float:
        set_all(factor)
        with batch_statistics(model):
            return _distance(model(images), logits)

    set_all(min(OVERALL, key=distance))


def _some(batches: Sequence[Tensor]) -> Tensor:
    """Images: an equal share of each batch, and more of some where others are short."""
    fitting = [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
    share = math.ceil(_IMAGES / len(fitting))
    taken = [batch[:share] for batch in fitting] + [batch[share:] for batch in fitting]
    return torch.cat(taken)[:_IMAGES]


def _seen(
    model: SpikingClassifier, images: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Of each node, places [K] in one step of it, flattened, and what a ReLU emits there [K]; and
    the logits of the network of these ReLUs, the ANN's."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def at_node(name: str) -> Any:
        def keep(activation: SpikingActivation, inputs: Any, output: Tensor) -> None:
            index = torch.randint(output.numel(), (_SAMPLES,), generator=generator)
            index = index.to(output.device)
            found[name] = index, output.flatten()[index]

        return keep

    spiking = model.activations().items()
    handles = [each.register_forward_hook(at_node(name)) for name, each in spiking]
    with hooked(handles), evaluation_mode(model), model.gradient("activation"):
        return found, model(images)


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
        agreement.append(float(F.cosine_similarity(rates, y, dim=0)))
    return max(zip(agreement, FACTORS, strict=True))[1]


def _distance(logits: Tensor, expected: Tensor) -> float:
    """KL divergence from the classes of `expected` [N, K] to those of `logits`, at the temperature
    that suits these best: how sure a network is, finetuning changes in a few steps."""
    log_p = expected.log_softmax(1)
    return min(
        float(F.kl_div((t * logits).log_softmax(1), log_p, log_target=True, reduction="batchmean"))
        for t in (2 ** (step / 2) for step in range(-6, 13))
    )
