"""What NIR says of neurons and of layers with weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sj_robust.errors import SJRobustError
from sj_robust.export.nir_graph import Graph, name_of, place_of, shape_of
from sj_robust.export.windows import pair, ungrouped
from sj_robust.neuron import ThresholdLIF


def spiking(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    """A neuron. Importers want one threshold for all: where each channel has its own, the input
    is scaled instead."""
    name, sources = str(operation.args[1]), graph.input(operation)[1]
    neuron = graph.neurons[name]
    threshold = neuron.v_threshold.detach().cpu()
    if threshold.dim() and bool((threshold > 0).all()):
        own, threshold = threshold.double(), threshold.max()
        sources = _scaled(graph, operation, f"{name}.scale", threshold / own, torch.zeros_like(own))
    return graph.add(name, _neuron(graph, neuron, threshold, shape_of(operation)), sources)


def _neuron(graph: Graph, neuron: ThresholdLIF, threshold: Tensor, shape: tuple[int, ...]) -> Any:
    threshold = threshold.view(-1, *(1,) * (len(shape) - 1)) if threshold.dim() else threshold
    full, zeros = (
        np.ones(shape, graph.array(threshold).dtype),
        np.zeros(shape, graph.array(threshold).dtype),
    )
    input_share = 1 - neuron.leak if neuron.leak < 1 else 1.0
    below = graph.array(threshold.double() * input_share)
    below = full * np.nextafter(below, np.full_like(below, -np.inf))
    if neuron.leak == 1:
        return graph.nir.IF(
            r=full * full.dtype.type(1 / graph.dt), v_threshold=below, v_reset=zeros
        )
    return graph.nir.LIF(
        tau=full * full.dtype.type(graph.dt / input_share),
        r=full,
        v_leak=zeros,
        v_threshold=below,
        v_reset=zeros,
    )


def convolution(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    given, (before, sources) = graph.arguments(operation), graph.input(operation)
    weight = given["weight"]
    if given.get("transposed") or weight.dim() != 4 or isinstance(weight, fx.Node):
        raise SJRobustError(
            f"NIR cannot say this convolution ({place_of(operation)}): only 2d ones with fixed"
            " weights"
        )
    padding, spread = given["padding"], pair(given["dilation"])
    if isinstance(padding, str):  # "same" puts an odd one below and to the right
        padding = [
            gap * (side - 1) // 2 if padding == "same" else 0
            for gap, side in zip(spread, weight.shape[2:], strict=True)
        ]
    weight = ungrouped(weight, given["groups"])
    name = graph.convolve(
        place_of(operation),
        sources,
        weight,
        given["bias"],
        shape_of(before),
        shape_of(operation),
        stride=given["stride"],
        padding=padding,
        dilation=spread,
    )
    return _foldable(graph, operation, name)


def linear(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    given, (before, sources) = graph.arguments(operation), graph.input(operation)
    if isinstance(given["weight"], fx.Node) or len(shape_of(before)) != 1:
        raise SJRobustError(
            f"NIR cannot say this linear layer ({place_of(operation)}): only those on one"
            " vector per image"
        )
    return _foldable(
        graph,
        operation,
        graph.mix(place_of(operation), sources, given["weight"], given["bias"], shape_of(before)),
    )


def _foldable(graph: Graph, operation: fx.Node, name: tuple[str, ...]) -> tuple[str, ...]:
    graph.made[name[0]] = operation
    return name


def scaling(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    """An operation that is a·x + b per channel, batch norm above all: what a and b are is seen
    at x = 0, 1, 2."""
    before, _ = graph.input(operation)
    size = shape_of(before)
    probe = (
        torch.arange(3, dtype=torch.float64)
        .view(3, *(1,) * len(size))
        .expand(3, size[0], *(1,) * (len(size) - 1))
    )
    values = {
        node: (value.double() if isinstance(value, Tensor) and value.is_floating_point() else value)
        for node, value in graph.step.constants.items()
    } | {before: probe}
    arguments, named = fx.map_arg((operation.args, operation.kwargs), lambda node: values[node])
    result = operation.target(*arguments, **named)  # type: ignore[operator]
    result = result[0] if isinstance(result, tuple) else result
    if result.shape != probe.shape or not torch.allclose(
        result[2] - result[1], result[1] - result[0]
    ):
        raise SJRobustError(
            f"NIR cannot say {name_of(operation)} ({place_of(operation)}): it is no factor and"
            " addend per channel"
        )
    return _scaled(
        graph,
        operation,
        place_of(operation),
        (result[1] - result[0]).flatten(),
        result[0].flatten(),
    )


def _scaled(
    graph: Graph, operation: fx.Node, name: str, scale: Tensor, shift: Tensor
) -> tuple[str, ...]:
    """The operation's input by one factor and one addend per channel: folded into the layer
    that made it, or a layer of its own."""
    before, sources = graph.input(operation)
    if graph.made.get(sources[0]) is not before or len(before.users) > 1:
        return graph.mix(name, sources, scale.diag(), shift, shape_of(before))
    layer = graph.nodes[sources[0]]
    # in double precision, from the weights as they are: one rounding
    weight, bias = (
        torch.from_numpy(layer.weight).double(),
        torch.from_numpy(layer.bias).double(),
    )
    layer.weight = graph.array(weight * scale.view(-1, *(1,) * (weight.dim() - 1)))
    layer.bias = graph.array(bias * scale + shift)
    graph.made[sources[0]] = operation
    return sources


def total(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    inputs = [
        source
        for source in operation.args
        if isinstance(source, fx.Node) and source not in graph.step.constants
    ]
    if len(inputs) == 1:
        return scaling(graph, operation)
    size, factor = shape_of(operation), operation.kwargs.get("alpha", 1)
    first, second = (graph.values[source] for source in inputs)
    if any(shape_of(source) != size for source in inputs) or not isinstance(factor, int | float):
        raise SJRobustError(
            f"NIR cannot say this sum ({place_of(operation)}): only of activations of one shape"
        )
    if factor != 1 or set(first) & set(second):  # an edge exists once
        second = graph.mix(
            f"{place_of(operation)}.again", second, factor * torch.eye(size[0]), None, size
        )
    return first + second


# by the operation's name: what reads it into the graph
HANDLERS = {
    "sj_robust::spiking_node": spiking,
    **dict.fromkeys(("conv2d", "convolution"), convolution),
    "linear": linear,
    **dict.fromkeys(
        ("batch_norm", "_native_batch_norm_legit_no_training", "sub", "rsub", "mul", "div", "neg"),
        scaling,
    ),
    "add": total,
}
