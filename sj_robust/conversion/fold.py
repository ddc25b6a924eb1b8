"""What a spike is worth in a network without batch norm: its node's threshold, held by the weights
around the nodes.

A node fires about x / v_th times a step where the ANN's activation is x: its spikes are the
activation in units of v_th. A batch norm takes that factor out again; without one, every tensor
between layers and nodes has such a unit, and

    a layer takes in any unit, channel by channel, and gives any: its weights are multiplied by the
    one and, like its bias, divided by the other; so a concatenation needs nothing;
    a node takes in any: with its threshold divided by the unit it fires as before, its update being
    homogeneous; a sum needs one unit. Where spikes of one node are in it, as on a residual
    connection, it is that node's, and the layers of the other branch give it. Where there are none,
    it is chosen for the node that reads it, whose threshold becomes 0.9: potentials are then as
    wide as those behind a batch norm, which surrogates of width 1 and learning rates suit, and a
    silent neuron is within reach of such a surrogate.

What is left are sums of the spikes of several nodes, and spikes that reach something that does not
scale with them: a gate, a group norm, the logits. There a node emits `worth` in place of 1, which
is exact but no spike to the layers that read it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn

from sj_robust.conversion.activations import on_path
from sj_robust.conversion.watch import recorded_calls
from sj_robust.model.classifier import SpikingClassifier
from sj_robust.model.hooks import hooked

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_THRESHOLD = 0.9  # of a node that reads layers alone
_ENDS = ""  # the name of the image as a source, and of the logits as what they reach


@torch.no_grad()
def fold_thresholds(model: SpikingClassifier, images: Tensor) -> None:
    """Move what spikes are worth from the nodes, each of which emits its threshold, into weights
    and thresholds, in place.

    No node fires otherwise than before. The result is checked on `images` [N,C,H,W] in [0,1], a
    few: where the logits (with ReLUs in the place of nodes) are not what they were, nothing is
    moved.
    """
    worth = {
        name: float(activation.node.v_threshold.amax())
        for name, activation in model.activations().items()
    }
    before = [(parameter, parameter.clone()) for parameter in model.backbone.parameters()]
    model.worth = worth
    with model.gradient("activation"):
        expected = model(images)
        _fold(model, _flow(model, model.normalize(images)), worth)
        logits = model(images)
    if not torch.allclose(
        logits, expected, rtol=1e-3, atol=1e-3 * max(1.0, float(expected.abs().max()))
    ):
        model.worth = worth
        for parameter, value in before:
            parameter.copy_(value)


@dataclass
class _Flow:
    """Which sources (layers, nodes, the image) reach what (layers, nodes, the logits), with no
    layer or node between."""

    layers: dict[str, nn.Module]
    # what is reached → source → which of the channels there
    reached: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    sums: list[list[str]] = field(default_factory=list)  # sources that have to have one unit
    fixed: set[str] = field(default_factory=lambda: {_ENDS})  # sources whose unit has to be 1


def _fold(model: SpikingClassifier, flow: _Flow, worth: dict[str, float]) -> None:
    units = _units(flow, worth)
    for name, layer in flow.layers.items():
        _multiply_input(
            layer,
            [
                (units[source], mask)
                for source, mask in flow.reached[name].items()
                if units[source] != 1
            ],
        )
        if units[name] != 1:
            _multiply_output(layer, 1 / units[name])
    for name, node in model.nodes().items():
        for source in list(flow.reached[name])[:1]:  # all of them have one unit
            node.v_threshold.div_(units[source])
    model.worth = {name: value / units[name] for name, value in worth.items()}


def _units(flow: _Flow, worth: dict[str, float]) -> dict[str, float]:
    """The unit of every source: that of the first node it is added up with, if any, else for the
    first node that reads it, else 1."""
    together = {name: {name} for name in (_ENDS, *flow.layers, *worth)}
    for sources in flow.sums:
        merged = set().union(*(together[source] for source in sources))
        together |= dict.fromkeys(merged, merged)

    def unit(group: set[str]) -> float:
        if group & flow.fixed:
            return 1.0
        in_it = (value for node, value in worth.items() if node in group)
        reading = (
            value / _THRESHOLD for node, value in worth.items() if flow.reached[node].keys() & group
        )
        return next(in_it, next(reading, 1.0))

    return {name: unit(group) for name, group in together.items()}


def _flow(model: SpikingClassifier, x: Tensor) -> _Flow:
    """Seen in two passes in which layers and nodes give values of our own, in the second twice
    those of the first."""
    flow = _Flow(_layers(model, x))
    once = _Pass(model, x, flow.layers, {})
    twice = _Pass(
        model, x, flow.layers, {name: 2 * leaf.detach() for name, leaf in once.leaves.items()}
    )
    for name, seen in once.reached.items():
        sources = once.sources(seen)
        if name == _ENDS or not torch.allclose(twice.reached[name], 2 * seen, rtol=1e-4, atol=1e-5):
            flow.fixed.update(sources)
        layer = flow.layers.get(name)
        if len(sources) < 2 or layer is None or hasattr(layer, "gain"):
            # one unit for all of it
            masks = {source: seen.new_ones((), dtype=torch.bool) for source in sources}
        else:
            masks = {
                source: _reached_channels(
                    seen, once.leaves[source], -1 if isinstance(layer, nn.Linear) else 1
                )
                for source in sources
            }
        flow.reached[name] = masks
        flow.sums += [
            [one, other]
            for one, other in combinations(sources, 2)
            if bool((masks[one] & masks[other]).any())
        ]
    return flow


class _Pass:
    """One pass in which every layer and node, and the image, is a source: it gives the value in
    `given` or one from 0.5 to 1.5."""

    def __init__(
        self,
        model: SpikingClassifier,
        x: Tensor,
        layers: dict[str, nn.Module],
        given: dict[str, Tensor],
    ) -> None:
        self.given = given
        self.leaves: dict[str, Tensor] = {}
        self.reached: dict[str, Tensor] = {}
        self._made_by: dict[torch.autograd.graph.Node | None, str] = {}
        handles = []
        for name, module in {**layers, **model.activations()}.items():
            handles.append(
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name: self._reach(name, inputs[0])
                )
            )  # type: ignore[misc]
            handles.append(
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: self._give(name, output)
                )
            )  # type: ignore[misc]
        with hooked(handles), torch.enable_grad():
            self._reach(_ENDS, model.backbone(self._give(_ENDS, x)))

    def _give(self, name: str, output: Tensor) -> Tensor:
        value = self.given[name] if name in self.given else output.detach().sigmoid() + 0.5
        self.leaves[name] = value.requires_grad_()
        given = value.clone()
        self._made_by[given.grad_fn] = name
        return given

    def _reach(self, name: str, x: Tensor) -> None:
        self.reached[name] = x.clone()  # what comes later may work in place

    def sources(self, reached: Tensor) -> list[str]:
        found = on_path(reached, set(self._made_by))
        return [name for made_by, name in self._made_by.items() if made_by in found]


def _reached_channels(reached: Tensor, source: Tensor, axis: int) -> Tensor:
    """For each channel of `reached`, along `axis`, whether it changes along with `source`: the
    derivative in its direction, by two derivatives backwards."""
    with torch.enable_grad():
        weights = torch.ones_like(reached, requires_grad=True)
        (backwards,) = torch.autograd.grad(reached, source, weights, create_graph=True)
        (change,) = torch.autograd.grad(backwards, weights, source.detach(), retain_graph=True)
    return change.movedim(axis, 0).flatten(1).any(1)


# --- layers ---------------------------------------------------------------------------------------


def _layers(model: SpikingClassifier, x: Tensor) -> dict[str, nn.Module]:
    """The layers that are called once, and whose output is doubled by doubling what
    `_multiply_output` multiplies."""
    inputs: dict[str, Tensor] = {}
    candidates = {
        name: module
        for name, module in model.backbone.named_modules()
        if isinstance(module, _LAYERS)
    }
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, given, name=name: inputs.update({name: given[0]} if given else {})
        )  # type: ignore[misc]
        for name, layer in candidates.items()
    ]
    with hooked(handles), recorded_calls(model.backbone) as calls:
        model.backbone(x)
    shared = Counter(id(layer.weight) for layer in candidates.values())
    return {
        name: layer
        for name, layer in candidates.items()
        if calls[name] == 1
        and name in inputs
        and shared[id(layer.weight)] == 1
        and _scales(layer, inputs[name])
    }


def _scales(layer: nn.Module, x: Tensor) -> bool:
    expected = 2 * layer(x)
    _multiply_output(layer, 2)
    output = layer(x)
    _multiply_output(layer, 0.5)
    return torch.allclose(output, expected, rtol=1e-4, atol=1e-5)


def _multiply_output(layer: nn.Module, factor: float) -> None:
    # gain: timm's layers that standardise their weights
    for parameter in (getattr(layer, "gain", layer.weight), layer.bias):
        if isinstance(parameter, Tensor):
            parameter.mul_(factor)


def _multiply_input(layer: nn.Module, factors: list[tuple[float, Tensor]]) -> None:
    """Multiply the weights by factors, each for the input channels in its mask [C] or [] (all of
    them)."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    assert isinstance(weight, Tensor)
    by_channel = weight.new_ones(weight.shape[1] * groups, dtype=torch.float64)
    for factor, mask in factors:
        by_channel = torch.where(mask, factor, by_channel)
    if isinstance(gain := getattr(layer, "gain", None), Tensor):
        gain.mul_(by_channel[0])
    elif factors:
        by_channel = by_channel.view(groups, 1, -1, *(1,) * (weight.dim() - 2))
        weight.copy_((weight.unflatten(0, (groups, -1)) * by_channel).flatten(0, 1))
