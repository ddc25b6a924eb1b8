"""What a spike is worth in a network without batch norm: its node's threshold, folded into the weights that read the spikes.

A node fires about x / v_th times a step where the ANN's activation is x. A batch norm takes that factor out again; without one the
layers behind would see activations that are too large or too small beside their biases.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sj_robust.convert.norms import norm_names
from sj_robust.model.classifier import SpikingClassifier

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Readers:
    """The layers that read spikes: node → (layer, for each of its input channels whether it comes from this node)."""

    def __init__(self, inputs: Mapping[str, list[tuple[nn.Module, Tensor]]]) -> None:
        self._inputs = inputs

    @torch.no_grad()
    def multiply(self, node: str, factor: float) -> None:
        """Make a spike of `node` worth `factor` times what it was, in all that reads it."""
        for layer, mask in self._inputs.get(node, []):
            weight, groups = layer.weight, getattr(layer, "groups", 1)
            assert isinstance(weight, Tensor)
            factors = torch.where(mask, factor, 1.0).to(weight).view(groups, 1, -1, *(1,) * (weight.dim() - 2))
            weight.copy_((weight.unflatten(0, (groups, -1)) * factors).flatten(0, 1))


@torch.no_grad()
def spike_readers(model: SpikingClassifier, images: Tensor) -> Readers | None:
    """The layers behind each node of a freshly converted network whose spikes have no fixed worth yet, else None.

    None where there is a batch norm, and where spikes reach something other than weights: a residual sum, a group norm, the logits.
    What a layer reads is found by letting each node emit one constant of its own; the result is checked by giving every node
    an arbitrary threshold, its activation divided by it, and comparing logits. `images` [N,C,H,W] in [0,1], a few.
    """
    if norm_names(model.backbone):
        return None
    readers = Readers(_inputs(model, images))
    return readers if _exact(model, images, readers) else None


def _inputs(model: SpikingClassifier, images: Tensor) -> dict[str, list[tuple[nn.Module, Tensor]]]:
    names = list(model.activations())
    constants = {name: 1 + (number + 1) / (len(names) + 1) for number, name in enumerate(names)}  # a sum of two is no third
    found: dict[str, list[tuple[nn.Module, Tensor]]] = {name: [] for name in names}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].movedim(-1, 0) if isinstance(layer, nn.Linear) else inputs[0].movedim(1, 0)
        x = x.flatten(1)
        for name, constant in constants.items():
            if (mask := ((x - constant).abs() < 0.1 / len(names)).all(1)).any():
                found[name].append((layer, mask))

    handles = [layer.register_forward_pre_hook(look) for layer in model.backbone.modules() if isinstance(layer, _LAYERS)]
    handles += [
        activation.register_forward_hook(lambda module, inputs, output, value=constants[name]: torch.full_like(output, value))  # type: ignore[misc]
        for name, activation in model.activations().items()
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _exact(model: SpikingClassifier, images: Tensor, readers: Readers) -> bool:
    """Whether the logits stay when every node's activation is divided by a number that its readers multiply by."""
    factors = {name: 0.5 + number % 7 / 4 for number, name in enumerate(model.activations())}
    weights = [(parameter, parameter.clone()) for parameter in model.backbone.parameters()]
    handles = []
    with model.gradient("activation"):
        expected = model(images)
        try:
            for name, activation in model.activations().items():
                readers.multiply(name, factors[name])
                handles.append(activation.register_forward_hook(lambda module, inputs, output, by=factors[name]: output / by))  # type: ignore[misc]
            logits = model(images)
        finally:
            for handle in handles:
                handle.remove()
            for parameter, value in weights:
                parameter.copy_(value)
    return torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * max(1.0, float(expected.abs().max())))
