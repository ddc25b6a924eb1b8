"""The Neuromorphic Intermediate Representation (Pedersen et al., Nature Communications 2024): the
network of one step as a graph.

NIR describes a neuron by a differential equation and leaves the time step to whoever runs it. With
steps of `dt`, Euler's method on

    IF:   v' = r·I                     LIF:   τ·v' = (v_leak − v) + r·I

is our update h = leak·v + x where

    leak = 1:  IF with r = 1/dt        leak < 1:  LIF with τ = dt/(1 − leak), r = 1, v_leak = 0

In the second, v is (1 − leak) times our potential, and the threshold is (1 − leak) times ours (r =
τ/dt would keep the scale, but importers that leave r out would then be wrong). NIR's neuron fires
above its threshold, ours at it: what is written is the largest float below ours. v_reset = 0 is the
hard reset. The default dt = 1 counts time in steps, and makes r = 1, which some importers take for
granted. Several edges into a node add up, which is how residual connections are written, and
concatenations: each part is put in its place among channels of zeros.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from sj_robust.errors import SJRobustError
from sj_robust.export.files import Exported, classifier, described, image_size, needs, writing
from sj_robust.export.trace import Step, trace_step
from sj_robust.export.windows import Pair, border_kernels, fitted, pair, ungrouped, window_factors
from sj_robust.model import SpikingClassifier
from sj_robust.neuron import ThresholdLIF

INPUT, OUTPUT, NORMALISATION = "input", "output", "normalize"
SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split")


def export_nir(
    snn: SpikingClassifier,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
    dt: float = 1.0,
) -> Exported:
    """Write one step of `snn`, in eval mode, as a NIR graph: images [C,H,W] in [0,1] at its input,
    logits [K] of that step at its output.

    To get `snn.forward_sequence(x)`, feed the same image at each of `snn.timesteps` steps of `dt`,
    from rest; the mean over the steps is `snn(x)`. Batch norms are folded into the layer before
    them, or become a 1×1 convolution of their own where there is none.
    So does the normalisation of the images: the first layer's zero padding is that of normalised
    images, so it cannot be folded.

    Args: input_size: [C,H,W], known for a timm network. dt: the time step that the importer will
    use, above 0; see the module. Values are written in the network's own precision. An existing
    file is replaced, whole or not at all.

    Raises SJRobustError, naming the layer, for what NIR cannot say: soft reset, max pooling, gates,
    attention, upsampling; where the extra `nir` is not installed, the image size is not known, or
    the file cannot be written.
    """
    nir = needs("nir", "nir")
    network = classifier(snn)
    if not isinstance(network, SpikingClassifier):
        raise SJRobustError(
            "NIR describes spiking networks, and this one is an ANN: convert it first, or export it"
            " as onnx or torch"
        )
    if not (math.isfinite(dt) and dt > 0):
        raise SJRobustError(f"dt is {dt}: expected a time step above 0")
    snn = network
    size = image_size(snn, input_size)
    with writing(path) as temporary:
        graph = _Builder(nir, snn, size, dt).graph()
        nir.write(temporary, graph)
    kinds = Counter(type(node).__name__ for node in graph.nodes.values())
    return described(
        path,
        "nir",
        nodes=dict(kinds),
        timesteps=snn.timesteps,
        dt=dt,
        input=f"an image {list(size)} in [0,1], the same at each step",
        output=f"logits of each step [{snn.num_classes}]",
        not_included=(f"the mean of the logits over {snn.timesteps} steps", "surrogate gradients"),
    )


class _Builder:
    """Goes through the operations of one step and writes down nodes and edges. The value of an
    operation is a sum of NIR nodes."""

    def __init__(
        self, nir: Any, snn: SpikingClassifier, size: tuple[int, int, int], dt: float
    ) -> None:
        self.nir, self.snn, self.size, self.dt = nir, snn, size, dt
        self.neurons = snn.nodes()
        for name, neuron in self.neurons.items():
            if neuron.soft_reset:
                raise SJRobustError(
                    f"NIR cannot say the soft reset of {name}: its neurons jump to a value; export"
                    " as onnx or torch"
                )
        self.step: Step = trace_step(snn, size)
        self.nodes: dict[str, Any] = {INPUT: nir.Input(input_type={"input": np.array(size)})}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[fx.Node, tuple[str, ...]] = {}
        # the weights that a batch norm may still be folded into, and the operation they are
        self.made: dict[str, fx.Node] = {}

    def graph(self) -> Any:
        mean, std = self.snn.mean.double().cpu().flatten(), self.snn.std.double().cpu().flatten()
        self.values[self.step.images] = self._mix(
            NORMALISATION, (INPUT,), (1 / std).diag(), -mean / std, self.size
        )
        for operation in self.step.operations:
            name = _name(operation)
            handler = _HANDLERS.get(name)
            if handler is None:
                instead = "convert with pooling='average', or " if "max_pool" in name else ""
                raise SJRobustError(
                    f"NIR cannot say {name} ({_place(operation)}); {instead}export the network as"
                    " onnx or torch"
                )
            self.values[operation] = handler(self, operation)
        self.nodes[OUTPUT] = self.nir.Output(
            output_type={"output": np.array(_shape(self.step.logits))}
        )
        self.edges += [(source, OUTPUT) for source in self.values[self.step.logits]]
        facts = {
            "made_by": "sj-robust",
            "timesteps": self.snn.timesteps,
            "dt": self.dt,
            "input": "the image, in [0,1], at every step",
            "output": "logits of the step; their mean over all steps classifies",
        }
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=facts)

    # --- writing down -----------------------------------------------------------------------------

    def _add(self, name: str, node: Any, sources: Sequence[str]) -> tuple[str, ...]:
        free = (name, *(f"{name}_{number}" for number in range(2, len(self.nodes) + 3)))
        name = next(key for key in free if key not in self.nodes and key != OUTPUT)
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return (name,)

    def _convolve(
        self,
        name: str,
        sources: Sequence[str],
        weight: Tensor,
        bias: Tensor | None,
        size: Sequence[int],
        result: Sequence[int],
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
    ) -> tuple[str, ...]:
        """A convolution of activations of `size` [C,H,W] to `result` [O,H',W']; padding: that above
        and to the left."""
        steps, spread = pair(stride), pair(dilation)
        found = fitted(weight, steps, pair(padding), spread, pair(size[1:]), pair(result[1:]))
        if found is None:
            raise SJRobustError(
                f"NIR cannot say this convolution ({name}): no square kernel with padding alike on"
                " both sides computes it"
            )
        weight, padding = found
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        node = self.nir.Conv2d(
            input_shape=pair(size[1:]),
            weight=self._array(weight),
            bias=self._array(bias),
            stride=steps,
            padding=padding,
            dilation=spread,
            groups=1,
        )
        return self._add(name, node, sources)

    def _mix(
        self,
        name: str,
        sources: Sequence[str],
        matrix: Tensor,
        shift: Tensor | None,
        size: Sequence[int],
    ) -> tuple[str, ...]:
        """A matrix [O,C] and an addend [O] for the channels at each pixel of `size` [C,H,W] or
        [C]."""
        if len(size) == 3:
            return self._convolve(name, sources, matrix[:, :, None, None], shift, size, size)
        shift = matrix.new_zeros(len(matrix)) if shift is None else shift
        return self._add(
            name, self.nir.Affine(weight=self._array(matrix), bias=self._array(shift)), sources
        )

    def _array(self, tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().to("cpu", self.snn.mean.dtype).numpy())

    def _arguments(self, operation: fx.Node) -> dict[str, Any]:
        """By name, with defaults; parameters and other constants by their values."""
        schema = operation.target._schema.arguments  # type: ignore[union-attr]
        given = {
            argument.name: value for argument, value in zip(schema, operation.args, strict=False)
        } | operation.kwargs
        found = {
            argument.name: given.get(argument.name, argument.default_value) for argument in schema
        }
        return {
            key: self.step.constants.get(value, value) if isinstance(value, fx.Node) else value
            for key, value in found.items()
        }

    def _input(self, operation: fx.Node) -> tuple[fx.Node, tuple[str, ...]]:
        """The one input that depends on the image, and the nodes whose sum it is."""
        inputs = [
            source for source in operation.all_input_nodes if source not in self.step.constants
        ]
        if len(inputs) != 1:
            raise SJRobustError(
                f"NIR cannot say {_name(operation)} of {len(inputs)} activations"
                f" ({_place(operation)})"
            )
        return inputs[0], self.values[inputs[0]]

    # --- one operation each -----------------------------------------------------------------------

    def _spiking(self, operation: fx.Node) -> tuple[str, ...]:
        """A neuron. Importers want one threshold for all: where each channel has its own, the input
        is scaled instead."""
        name, sources = str(operation.args[1]), self._input(operation)[1]
        neuron = self.neurons[name]
        threshold = neuron.v_threshold.detach().cpu()
        if threshold.dim() and bool((threshold > 0).all()):
            own, threshold = threshold.double(), threshold.max()
            sources = self._scaled(
                operation, f"{name}.scale", threshold / own, torch.zeros_like(own)
            )
        return self._add(name, self._neuron(neuron, threshold, _shape(operation)), sources)

    def _neuron(self, neuron: ThresholdLIF, threshold: Tensor, shape: tuple[int, ...]) -> Any:
        threshold = threshold.view(-1, *(1,) * (len(shape) - 1)) if threshold.dim() else threshold
        full, zeros = (
            np.ones(shape, self._array(threshold).dtype),
            np.zeros(shape, self._array(threshold).dtype),
        )
        input_share = 1 - neuron.leak if neuron.leak < 1 else 1.0
        below = self._array(threshold.double() * input_share)
        below = full * np.nextafter(below, np.full_like(below, -np.inf))
        if neuron.leak == 1:
            return self.nir.IF(
                r=full * full.dtype.type(1 / self.dt), v_threshold=below, v_reset=zeros
            )
        return self.nir.LIF(
            tau=full * full.dtype.type(self.dt / input_share),
            r=full,
            v_leak=zeros,
            v_threshold=below,
            v_reset=zeros,
        )

    def _convolution(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self._arguments(operation), self._input(operation)
        weight = given["weight"]
        if given.get("transposed") or weight.dim() != 4 or isinstance(weight, fx.Node):
            raise SJRobustError(
                f"NIR cannot say this convolution ({_place(operation)}): only 2d ones with fixed"
                " weights"
            )
        padding, spread = given["padding"], pair(given["dilation"])
        if isinstance(padding, str):  # "same" puts an odd one below and to the right
            padding = [
                gap * (side - 1) // 2 if padding == "same" else 0
                for gap, side in zip(spread, weight.shape[2:], strict=True)
            ]
        weight = ungrouped(weight, given["groups"])
        name = self._convolve(
            _place(operation),
            sources,
            weight,
            given["bias"],
            _shape(before),
            _shape(operation),
            stride=given["stride"],
            padding=padding,
            dilation=spread,
        )
        return self._foldable(operation, name)

    def _linear(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self._arguments(operation), self._input(operation)
        if isinstance(given["weight"], fx.Node) or len(_shape(before)) != 1:
            raise SJRobustError(
                f"NIR cannot say this linear layer ({_place(operation)}): only those on one vector"
                " per image"
            )
        return self._foldable(
            operation,
            self._mix(_place(operation), sources, given["weight"], given["bias"], _shape(before)),
        )

    def _foldable(self, operation: fx.Node, name: tuple[str, ...]) -> tuple[str, ...]:
        self.made[name[0]] = operation
        return name

    def _scaling(self, operation: fx.Node) -> tuple[str, ...]:
        """An operation that is a·x + b per channel, batch norm above all: what a and b are is seen
        at x = 0, 1, 2."""
        before, _ = self._input(operation)
        size = _shape(before)
        probe = (
            torch.arange(3, dtype=torch.float64)
            .view(3, *(1,) * len(size))
            .expand(3, size[0], *(1,) * (len(size) - 1))
        )
        values = {
            node: (
                value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            )
            for node, value in self.step.constants.items()
        } | {before: probe}
        arguments, named = fx.map_arg((operation.args, operation.kwargs), lambda node: values[node])
        result = operation.target(*arguments, **named)  # type: ignore[operator]
        result = result[0] if isinstance(result, tuple) else result
        if result.shape != probe.shape or not torch.allclose(
            result[2] - result[1], result[1] - result[0]
        ):
            raise SJRobustError(
                f"NIR cannot say {_name(operation)} ({_place(operation)}): it is no factor and"
                " addend per channel"
            )
        return self._scaled(
            operation, _place(operation), (result[1] - result[0]).flatten(), result[0].flatten()
        )

    def _scaled(
        self, operation: fx.Node, name: str, scale: Tensor, shift: Tensor
    ) -> tuple[str, ...]:
        """The operation's input by one factor and one addend per channel: folded into the layer
        that made it, or a layer of its own."""
        before, sources = self._input(operation)
        if self.made.get(sources[0]) is not before or len(before.users) > 1:
            return self._mix(name, sources, scale.diag(), shift, _shape(before))
        layer = self.nodes[sources[0]]
        # in double precision, from the weights as they are: one rounding
        weight, bias = (
            torch.from_numpy(layer.weight).double(),
            torch.from_numpy(layer.bias).double(),
        )
        layer.weight = self._array(weight * scale.view(-1, *(1,) * (weight.dim() - 1)))
        layer.bias = self._array(bias * scale + shift)
        self.made[sources[0]] = operation
        return sources

    def _sum(self, operation: fx.Node) -> tuple[str, ...]:
        inputs = [
            source
            for source in operation.args
            if isinstance(source, fx.Node) and source not in self.step.constants
        ]
        if len(inputs) == 1:
            return self._scaling(operation)
        size, factor = _shape(operation), operation.kwargs.get("alpha", 1)
        first, second = (self.values[source] for source in inputs)
        if any(_shape(source) != size for source in inputs) or not isinstance(factor, int | float):
            raise SJRobustError(
                f"NIR cannot say this sum ({_place(operation)}): only of activations of one shape"
            )
        if factor != 1 or set(first) & set(second):  # an edge exists once
            second = self._mix(
                f"{_place(operation)}.again", second, factor * torch.eye(size[0]), None, size
            )
        return first + second

    def _average(self, operation: fx.Node) -> tuple[str, ...]:
        """Average pooling: of windows, to a size that divides the input's, or the mean over all
        pixels."""
        given, (before, sources) = self._arguments(operation), self._input(operation)
        size, result = _shape(before), _shape(operation)
        if len(size) != 3:
            raise SJRobustError(
                f"NIR cannot say this average ({_place(operation)}): only over height and width"
            )
        if "kernel_size" in given:
            window, stride = (
                pair(given["kernel_size"]),
                pair(given["stride"] or given["kernel_size"]),
            )
            whole = [
                (pixels - side) // step + 1
                for pixels, side, step in zip(size[1:], window, stride, strict=True)
            ]
            if (
                any(pair(given["padding"]))
                or given["divisor_override"] is not None
                or [size[0], *whole] != list(result)
            ):
                return self._padded_average(operation, given, window, stride)
        else:
            over_pixels = "output_size" in given or sorted(axis % 4 for axis in given["dim"]) == [
                2,
                3,
            ]
            rows, columns = result[1:] if len(result) == 3 else (1, 1)
            if not over_pixels or size[1] % rows or size[2] % columns:
                raise SJRobustError(
                    f"NIR cannot say this average ({_place(operation)}): only windows of one size"
                )
            window = stride = (size[1] // rows, size[2] // columns)
            whole = [rows, columns]
        node = self.nir.AvgPool2d(
            kernel_size=np.array(window), stride=np.array(stride), padding=np.array((0, 0))
        )
        pooled = (size[0], *whole)
        node.input_type, node.output_type = {"input": np.array(size)}, {"output": np.array(pooled)}
        name = self._add(_place(operation), node, sources)
        return name if len(result) == 3 else self._flatten_node(operation, name, pooled)

    def _padded_average(
        self, operation: fx.Node, given: dict[str, Any], window: Pair, stride: Pair
    ) -> tuple[str, ...]:
        """As convolutions: NIR does not say what a pool's padding counts for, and importers differ.

        The windows' sums divided by one number, and where those at the borders are divided by
        another, what is missing there.
        """
        before, sources = self._input(operation)
        size, result, place, padding = (
            _shape(before),
            _shape(operation),
            _place(operation),
            pair(given["padding"]),
        )
        factors = [
            window_factors(*axis, given["ceil_mode"], given["count_include_pad"])
            for axis in zip(size[1:], window, stride, padding, strict=True)
        ]
        usual = [factor[len(factor) // 2] for factor in factors]
        differs = [factor / inner - 1 for factor, inner in zip(factors, usual, strict=True)]
        if given["divisor_override"] is not None or any(
            bool(difference[1:-1].any()) for difference in differs
        ):
            raise SJRobustError(
                f"NIR cannot say this average ({place}): only one whose windows differ in the first"
                " and last alone"
            )
        share = usual[0] * usual[1] / math.prod(window)
        weight = (share * torch.eye(size[0], dtype=torch.float64))[:, :, None, None].expand(
            -1, -1, *window
        )
        value = self._convolve(
            place, sources, weight, None, size, result, stride=stride, padding=padding
        )
        for axis, difference in enumerate(differs):
            if difference.any():
                reach = (len(difference) - 1, 1) if axis == 0 else (1, len(difference) - 1)
                missing = value
                for kernel in border_kernels(
                    size[0], axis, float(difference[0]), float(difference[-1])
                ):
                    missing = self._convolve(
                        f"{place}.border",
                        missing,
                        kernel,
                        None,
                        result,
                        result,
                        padding=reach,
                        dilation=reach,
                    )
                value += missing
        return value

    def _pad(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self._arguments(operation), self._input(operation)
        size, pads = _shape(before), [*given["pad"], 0, 0, 0, 0, 0, 0]
        zeros = not given.get("value") and given.get("mode", "constant") == "constant"
        if not zeros or len(size) != 3 or any(pads[6:]) or min(pads[4:]) < 0:
            raise SJRobustError(
                f"NIR cannot say {_name(operation)} ({_place(operation)}): only zeros, around"
                " pixels or channels"
            )
        same = nn.functional.pad(torch.eye(size[0]), (0, 0, *pads[4:6]))[:, :, None, None]
        return self._convolve(
            _place(operation),
            sources,
            same,
            None,
            size,
            _shape(operation),
            padding=(pads[2], pads[0]),
        )

    def _slice(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self._arguments(operation), self._input(operation)
        size, result, axis = (
            _shape(before),
            _shape(operation),
            given["dim"] % (len(_shape(before)) + 1) - 1,
        )
        if result == size:
            return sources
        taken = slice(given["start"], given["end"], given["step"])
        if axis == 0:
            return self._mix(_place(operation), sources, torch.eye(size[0])[taken], None, size)
        first, _, step = taken.indices(size[axis])
        start, steps = ((-first, 0), (step, 1)) if axis == 1 else ((0, -first), (1, step))
        same = torch.eye(size[0])[:, :, None, None]
        return self._convolve(
            _place(operation), sources, same, None, size, result, stride=steps, padding=start
        )

    def _part(self, operation: fx.Node) -> tuple[str, ...]:
        """One of several results: of a split its channels, of all else the only one that counts."""
        before, sources = self._input(operation)
        if _name(before) not in SPLITS:
            return sources
        size, parts = (
            _shape(self._input(before)[0]),
            [tuple(part.shape[1:]) for part in before.meta["val"]],
        )
        if any(part[1:] != size[1:] for part in parts):
            raise SJRobustError(
                f"NIR cannot say {_name(before)} ({_place(operation)}): only of channels"
            )
        rows = torch.eye(size[0]).split([part[0] for part in parts])
        return self._mix(_place(operation), sources, rows[operation.args[1]], None, size)  # type: ignore[index]

    def _concatenation(self, operation: fx.Node) -> tuple[str, ...]:
        """Of channels: each part put in its place among zeros, and the sum of that."""
        given, result = self._arguments(operation), _shape(operation)
        parts = given["tensors"]
        if given["dim"] % (len(result) + 1) != 1 or any(
            part in self.step.constants for part in parts
        ):
            raise SJRobustError(
                f"NIR cannot say {_name(operation)} ({_place(operation)}): only of the channels of"
                " activations"
            )
        value: tuple[str, ...] = ()
        for part, place in zip(
            parts,
            torch.eye(result[0]).split([_shape(part)[0] for part in parts], dim=1),
            strict=True,
        ):
            value += self._mix(_place(operation), self.values[part], place, None, _shape(part))
        return value

    def _reshape(self, operation: fx.Node) -> tuple[str, ...]:
        before, sources = self._input(operation)
        size, result = _shape(before), _shape(operation)
        if result == size:
            return sources
        if result != (math.prod(size),):
            shapes = f"{list(size)} to {list(result)}"
            raise SJRobustError(
                f"NIR cannot say {_name(operation)} of {shapes} ({_place(operation)}): only"
                " flattening"
            )
        return self._flatten_node(operation, sources, size)

    def _flatten_node(
        self, operation: fx.Node, sources: Sequence[str], size: Sequence[int]
    ) -> tuple[str, ...]:
        # counted from the end, the dimensions are the same for importers that add one for the batch
        # and for those that do not
        node = self.nir.Flatten(
            input_type={"input": np.array(size)}, start_dim=-len(size), end_dim=-1
        )
        return self._add(f"{_place(operation)}.flatten", node, sources)

    def _same(self, operation: fx.Node) -> tuple[str, ...]:
        return self._input(operation)[1]

    def _dropout(self, operation: fx.Node) -> tuple[str, ...]:
        if self._arguments(operation)["train"]:
            raise SJRobustError(
                f"NIR cannot say dropout ({_place(operation)}) that stays on in eval mode"
            )
        return self._same(operation)


_HANDLERS = {
    "sj_robust::spiking_node": _Builder._spiking,
    **dict.fromkeys(("conv2d", "convolution"), _Builder._convolution),
    "linear": _Builder._linear,
    **dict.fromkeys(
        ("batch_norm", "_native_batch_norm_legit_no_training", "sub", "rsub", "mul", "div", "neg"),
        _Builder._scaling,
    ),
    "add": _Builder._sum,
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "mean"), _Builder._average),
    **dict.fromkeys(
        ("flatten", "view", "reshape", "squeeze", "unsqueeze", "_unsafe_view"), _Builder._reshape
    ),
    **dict.fromkeys(
        ("contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy", *SPLITS),
        _Builder._same,
    ),
    **dict.fromkeys(("pad", "constant_pad_nd"), _Builder._pad),
    **dict.fromkeys(("cat", "concat", "concatenate"), _Builder._concatenation),
    "slice": _Builder._slice,
    "getitem": _Builder._part,
    **dict.fromkeys(("dropout", "feature_dropout"), _Builder._dropout),
}


def _shape(operation: fx.Node) -> tuple[int, ...]:
    """Of what an operation gives for one image."""
    value = operation.meta["val"]
    return tuple(map(int, (value[0] if isinstance(value, tuple | list) else value).shape[1:]))


def _name(operation: fx.Node) -> str:
    schema = getattr(operation.target, "_schema", None)
    return (
        schema.name.removeprefix("aten::")
        if schema
        else str(getattr(operation.target, "__name__", operation.target))
    )


def _place(operation: fx.Node) -> str:
    """The innermost module that an operation belongs to, by its name in the backbone."""
    stack = list((operation.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack and stack[-1][0] else operation.name
