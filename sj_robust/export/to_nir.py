"""The Neuromorphic Intermediate Representation (Pedersen et al., Nature Communications 2024): the network of one step as a graph.

NIR describes a neuron by a differential equation and leaves the time step to whoever runs it. With steps of `dt`, Euler's method on

    IF:   v' = r·I                     LIF:   τ·v' = (v_leak − v) + r·I

is our update h = leak·v + x where

    leak = 1:  IF with r = 1/dt        leak < 1:  LIF with τ = dt/(1 − leak), r = 1, v_leak = 0

In the second, v is (1 − leak) times our potential, and the threshold is (1 − leak) times ours (r = τ/dt would keep the scale, but
importers that leave r out would then be wrong). NIR's neuron fires above its threshold, ours at it: what is written is the largest
float below ours. v_reset = 0 is the hard reset. The default dt = 1 counts time in steps, and makes r = 1, which some importers take
for granted. Several edges into a node add up, which is how residual connections are written.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sj_robust.errors import SJRobustError
from sj_robust.export.files import Exported, classifier, described, image_size, needs, writing
from sj_robust.export.trace import Step, trace_step
from sj_robust.model import SpikingClassifier
from sj_robust.neuron import ThresholdLIF

INPUT, OUTPUT, NORMALISATION = "input", "output", "normalize"


def export_nir(
    snn: SpikingClassifier, path: str | os.PathLike[str], *, input_size: Sequence[int] | None = None, dt: float = 1.0
) -> Exported:
    """Write one step of `snn`, in eval mode, as a NIR graph: images [C,H,W] in [0,1] at its input, logits [K] of that step at its output.

    To get `snn.forward_sequence(x)`, feed the same image at each of `snn.timesteps` steps of `dt`, from rest; the mean over the
    steps is `snn(x)`. Batch norms are folded into the layer before them, or become a 1×1 convolution of their own where there is none.
    So does the normalisation of the images: the first layer's zero padding is that of normalised images, so it cannot be folded.

    Args: input_size: [C,H,W], known for a timm network. dt: the time step that the importer will use, above 0; see the module.
    Values are written in the network's own precision. An existing file is replaced, whole or not at all.

    Raises SJRobustError, naming the layer, for what NIR cannot say: soft reset, max pooling, gates, attention, concatenation; where
    the extra `nir` is not installed, the image size is not known, or the file cannot be written.
    """
    nir = needs("nir", "nir")
    if not isinstance(classifier(snn), SpikingClassifier):
        raise SJRobustError("NIR describes spiking networks, and this one is an ANN: convert it first, or export it as onnx or torch")
    if not (math.isfinite(dt) and dt > 0):
        raise SJRobustError(f"dt is {dt}: expected a time step above 0")
    size = image_size(snn, input_size)
    with writing(path) as temporary:
        graph = _Builder(nir, snn, size, dt).graph()
        nir.write(temporary, graph)
    kinds = Counter(type(node).__name__ for node in graph.nodes.values())
    return described(
        path, "nir", nodes=dict(kinds), timesteps=snn.timesteps, dt=dt, input=f"an image {list(size)} in [0,1], the same at each step",
        output=f"logits of each step [{snn.num_classes}]",
        not_included=(f"the mean of the logits over {snn.timesteps} steps", "surrogate gradients"),
    )  # fmt: skip


class _Builder:
    """Goes through the operations of one step and writes down nodes and edges. The value of an operation is a sum of NIR nodes."""

    def __init__(self, nir: Any, snn: SpikingClassifier, size: tuple[int, int, int], dt: float) -> None:
        self.nir, self.snn, self.size, self.dt = nir, snn, size, dt
        self.neurons = snn.nodes()
        for name, neuron in self.neurons.items():
            if neuron.soft_reset:
                raise SJRobustError(f"NIR cannot say the soft reset of {name}: its neurons jump to a value; export as onnx or torch")
        self.step: Step = trace_step(snn, size)
        self.nodes: dict[str, Any] = {INPUT: nir.Input(input_type={"input": np.array(size)})}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[fx.Node, tuple[str, ...]] = {}
        self.made: dict[str, fx.Node] = {}  # the weights that a batch norm may still be folded into, and the operation they are

    def graph(self) -> Any:
        mean, std = self.snn.mean.double().cpu().flatten(), self.snn.std.double().cpu().flatten()
        self.values[self.step.images] = self._scale_and_shift(NORMALISATION, (INPUT,), 1 / std, -mean / std, self.size)
        for operation in self.step.operations:
            name = _name(operation)
            handler = _HANDLERS.get(name)
            if handler is None:
                raise SJRobustError(f"NIR cannot say {name} ({_place(operation)}); export the network as onnx or torch")
            self.values[operation] = handler(self, operation)
        self.nodes[OUTPUT] = self.nir.Output(output_type={"output": np.array(_shape(self.step.logits))})
        self.edges += [(source, OUTPUT) for source in self.values[self.step.logits]]
        facts = {
            "made_by": "sj-robust", "timesteps": self.snn.timesteps, "dt": self.dt, "input": "the image, in [0,1], at every step",
            "output": "logits of the step; their mean over all steps classifies",
        }  # fmt: skip
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=facts)

    # --- writing down ----------------------------------------------------------------------------------------------

    def _add(self, name: str, node: Any, sources: Sequence[str]) -> tuple[str, ...]:
        free = (name, *(f"{name}_{number}" for number in range(2, len(self.nodes) + 3)))
        name = next(key for key in free if key not in self.nodes and key != OUTPUT)
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return (name,)

    def _convolution_node(self, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, size: Sequence[int]) -> Any:
        zeros = weight.new_zeros(weight.shape[0])
        return self.nir.Conv2d(input_shape=tuple(size[1:]), weight=self._array(weight), bias=self._array(zeros if bias is None else bias),
                               stride=_pair(stride), padding=padding if isinstance(padding, str) else _pair(padding),
                               dilation=_pair(dilation), groups=1)  # fmt: skip

    def _scale_and_shift(self, name: str, sources: Sequence[str], scale: Tensor, shift: Tensor, size: Sequence[int]) -> tuple[str, ...]:
        """One factor and one addend per channel, as a diagonal matrix or 1×1 convolution."""
        if len(size) == 1:
            return self._add(name, self.nir.Affine(weight=self._array(scale.diag()), bias=self._array(shift)), sources)
        return self._add(name, self._convolution_node(scale.diag()[:, :, None, None], shift, 1, 0, 1, size), sources)

    def _array(self, tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().to("cpu", self.snn.mean.dtype).numpy())

    def _arguments(self, operation: fx.Node) -> dict[str, Any]:
        """By name, with defaults; parameters and other constants by their values."""
        schema = operation.target._schema.arguments  # type: ignore[union-attr]
        given = {argument.name: value for argument, value in zip(schema, operation.args, strict=False)} | operation.kwargs
        found = {argument.name: given.get(argument.name, argument.default_value) for argument in schema}
        return {key: self.step.constants.get(value, value) if isinstance(value, fx.Node) else value for key, value in found.items()}

    def _input(self, operation: fx.Node) -> tuple[fx.Node, tuple[str, ...]]:
        """The one input that depends on the image, and the nodes whose sum it is."""
        inputs = [source for source in operation.all_input_nodes if source not in self.step.constants]
        if len(inputs) != 1:
            raise SJRobustError(f"NIR cannot say {_name(operation)} of {len(inputs)} activations ({_place(operation)})")
        return inputs[0], self.values[inputs[0]]

    # --- one operation each ----------------------------------------------------------------------------------------

    def _spiking(self, operation: fx.Node) -> tuple[str, ...]:
        name = str(operation.args[1])
        return self._add(name, self._neuron(self.neurons[name], _shape(operation)), self._input(operation)[1])

    def _neuron(self, neuron: ThresholdLIF, shape: tuple[int, ...]) -> Any:
        threshold = neuron.v_threshold.detach().cpu()
        threshold = threshold.view(-1, *(1,) * (len(shape) - 1)) if threshold.dim() else threshold
        full, zeros = np.ones(shape, self._array(threshold).dtype), np.zeros(shape, self._array(threshold).dtype)
        input_share = 1 - neuron.leak if neuron.leak < 1 else 1.0
        below = self._array(threshold.double() * input_share)
        below = full * np.nextafter(below, np.zeros_like(below))
        if neuron.leak == 1:
            return self.nir.IF(r=full * full.dtype.type(1 / self.dt), v_threshold=below, v_reset=zeros)
        return self.nir.LIF(tau=full * full.dtype.type(self.dt / input_share), r=full, v_leak=zeros, v_threshold=below, v_reset=zeros)

    def _convolution(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self._arguments(operation), self._input(operation)
        weight = given["weight"]
        if given.get("transposed") or weight.dim() != 4 or isinstance(weight, fx.Node):
            raise SJRobustError(f"NIR cannot say this convolution ({_place(operation)}): only 2d ones with fixed weights")
        node = self._convolution_node(_ungrouped(weight, given["groups"]), given["bias"], given["stride"], given["padding"],
                                      given["dilation"], _shape(before))  # fmt: skip
        return self._foldable(operation, node, sources)

    def _linear(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self._arguments(operation), self._input(operation)
        if isinstance(given["weight"], fx.Node) or len(_shape(before)) != 1:
            raise SJRobustError(f"NIR cannot say this linear layer ({_place(operation)}): only those on one vector per image")
        weight = given["weight"]
        bias = weight.new_zeros(len(weight)) if given["bias"] is None else given["bias"]
        return self._foldable(operation, self.nir.Affine(weight=self._array(weight), bias=self._array(bias)), sources)

    def _foldable(self, operation: fx.Node, node: Any, sources: Sequence[str]) -> tuple[str, ...]:
        (name,) = self._add(_place(operation), node, sources)
        self.made[name] = operation
        return (name,)

    def _scaling(self, operation: fx.Node) -> tuple[str, ...]:
        """An operation that is a·x + b per channel, batch norm above all: what a and b are is seen at x = 0, 1, 2."""
        before, sources = self._input(operation)
        size = _shape(before)
        probe = torch.arange(3, dtype=torch.float64).view(3, *(1,) * len(size)).expand(3, size[0], *(1,) * (len(size) - 1))
        values = {node: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
                  for node, value in self.step.constants.items()} | {before: probe}  # fmt: skip
        arguments, named = fx.map_arg((operation.args, operation.kwargs), lambda node: values[node])
        result = operation.target(*arguments, **named)  # type: ignore[operator]
        result = result[0] if isinstance(result, tuple) else result
        if result.shape != probe.shape or not torch.allclose(result[2] - result[1], result[1] - result[0]):
            raise SJRobustError(f"NIR cannot say {_name(operation)} ({_place(operation)}): it is no factor and addend per channel")
        shift, scale = result[0].flatten(), (result[1] - result[0]).flatten()
        layer = self.nodes[sources[0]]
        if self.made.get(sources[0]) is not before or len(before.users) > 1:
            return self._scale_and_shift(_place(operation), sources, scale, shift, size)
        # in double precision, from the weights as they are: one rounding
        weight, bias = torch.from_numpy(layer.weight).double(), torch.from_numpy(layer.bias).double()
        layer.weight = self._array(weight * scale.view(-1, *(1,) * (weight.dim() - 1)))
        layer.bias = self._array(bias * scale + shift)
        del self.made[sources[0]]
        return sources

    def _sum(self, operation: fx.Node) -> tuple[str, ...]:
        inputs = [source for source in operation.args if isinstance(source, fx.Node) and source not in self.step.constants]
        if len(inputs) == 1:
            return self._scaling(operation)
        summed = self.values[inputs[0]] + self.values[inputs[1]]
        same = _shape(inputs[0]) == _shape(inputs[1])
        if operation.kwargs.get("alpha", 1) != 1 or len(set(summed)) < len(summed) or not same:
            raise SJRobustError(f"NIR cannot say this sum ({_place(operation)}): only of two different activations of one shape")
        return summed

    def _average(self, operation: fx.Node) -> tuple[str, ...]:
        """Average pooling: of windows, to a size that divides the input's, or the mean over all pixels."""
        given, (before, sources) = self._arguments(operation), self._input(operation)
        size, result = _shape(before), _shape(operation)
        if len(size) != 3:
            raise SJRobustError(f"NIR cannot say this average ({_place(operation)}): only over height and width")
        padding: Any = 0
        if "kernel_size" in given:
            window, stride, padding = given["kernel_size"], given["stride"] or given["kernel_size"], given["padding"]
            padded = any(_pair(padding))
            plain = given["divisor_override"] is None and (given["count_include_pad"] or not padded)
        else:
            over_pixels = "output_size" in given or sorted(axis % 4 for axis in given["dim"]) == [2, 3]
            rows, columns = result[1:] if len(result) == 3 else (1, 1)
            plain = over_pixels and result[0] == size[0] and size[1] % rows == 0 and size[2] % columns == 0
            window = stride = (size[1] // rows, size[2] // columns)
        pixels = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size[1:], _pair(padding), _pair(window), _pair(stride), strict=True)]
        if not plain or (len(result) == 3 and tuple(pixels) != result[1:]):
            raise SJRobustError(f"NIR cannot say this average ({_place(operation)}): windows of one size, with padding counted")
        node = self.nir.AvgPool2d(kernel_size=np.array(_pair(window)), stride=np.array(_pair(stride)), padding=np.array(_pair(padding)))
        pooled = (size[0], *pixels)
        node.input_type, node.output_type = {"input": np.array(size)}, {"output": np.array(pooled)}
        name = self._add(_place(operation), node, sources)
        return name if len(result) == 3 else self._flatten_node(operation, name, pooled)

    def _reshape(self, operation: fx.Node) -> tuple[str, ...]:
        before, sources = self._input(operation)
        size, result = _shape(before), _shape(operation)
        if result == size:
            return sources
        if result != (math.prod(size),):
            shapes = f"{list(size)} to {list(result)}"
            raise SJRobustError(f"NIR cannot say {_name(operation)} of {shapes} ({_place(operation)}): only flattening")
        return self._flatten_node(operation, sources, size)

    def _flatten_node(self, operation: fx.Node, sources: Sequence[str], size: Sequence[int]) -> tuple[str, ...]:
        # counted from the end, the dimensions are the same for importers that add one for the batch and for those that do not
        node = self.nir.Flatten(input_type={"input": np.array(size)}, start_dim=-len(size), end_dim=-1)
        return self._add(f"{_place(operation)}.flatten", node, sources)

    def _same(self, operation: fx.Node) -> tuple[str, ...]:
        return self._input(operation)[1]

    def _dropout(self, operation: fx.Node) -> tuple[str, ...]:
        if self._arguments(operation)["train"]:
            raise SJRobustError(f"NIR cannot say dropout ({_place(operation)}) that stays on in eval mode")
        return self._same(operation)


_HANDLERS = {
    "sj_robust::spiking_node": _Builder._spiking,
    **dict.fromkeys(("conv2d", "convolution"), _Builder._convolution),
    "linear": _Builder._linear,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training", "sub", "rsub", "mul", "div", "neg"), _Builder._scaling),
    "add": _Builder._sum,
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "mean"), _Builder._average),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "_unsafe_view"), _Builder._reshape),
    **dict.fromkeys(("contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy", "getitem"), _Builder._same),
    **dict.fromkeys(("dropout", "feature_dropout"), _Builder._dropout),
}


def _shape(operation: fx.Node) -> tuple[int, ...]:
    """Of what an operation gives for one image."""
    value = operation.meta["val"]
    return tuple(map(int, (value[0] if isinstance(value, tuple | list) else value).shape[1:]))


def _name(operation: fx.Node) -> str:
    schema = getattr(operation.target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema else str(getattr(operation.target, "__name__", operation.target))


def _place(operation: fx.Node) -> str:
    """The innermost module that an operation belongs to, by its name in the backbone."""
    stack = list((operation.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack and stack[-1][0] else operation.name


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return (int(values[0]), int(values[-1]))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution as those of a full one, with zeros between the groups: few importers know groups."""
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        full[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return full
