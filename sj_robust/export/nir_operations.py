"""What NIR says of each operation of a step; what it cannot say is refused by its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from sj_robust.errors import SJRobustError
from sj_robust.export.nir_graph import INPUT, OUTPUT, Graph, name_of, place_of, shape_of
from sj_robust.export.windows import Pair, border_kernels, pair, ungrouped, window_factors
from sj_robust.neuron import ThresholdLIF

NORMALISATION = "normalize"
SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split")


class Builder(Graph):
    """Goes through the operations of one step."""

    def build(self) -> Any:
        mean, std = self.snn.mean.double().cpu().flatten(), self.snn.std.double().cpu().flatten()
        self.values[self.step.images] = self.mix(
            NORMALISATION, (INPUT,), (1 / std).diag(), -mean / std, self.size
        )
        for operation in self.step.operations:
            name = name_of(operation)
            handler = _HANDLERS.get(name)
            if handler is None:
                instead = "convert with pooling='average', or " if "max_pool" in name else ""
                raise SJRobustError(
                    f"NIR cannot say {name} ({place_of(operation)}); {instead}export the network as"
                    " onnx or torch"
                )
            self.values[operation] = handler(self, operation)
        self.nodes[OUTPUT] = self.nir.Output(
            output_type={"output": np.array(shape_of(self.step.logits))}
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

    def _spiking(self, operation: fx.Node) -> tuple[str, ...]:
        """A neuron. Importers want one threshold for all: where each channel has its own, the input
        is scaled instead."""
        name, sources = str(operation.args[1]), self.input(operation)[1]
        neuron = self.neurons[name]
        threshold = neuron.v_threshold.detach().cpu()
        if threshold.dim() and bool((threshold > 0).all()):
            own, threshold = threshold.double(), threshold.max()
            sources = self._scaled(
                operation, f"{name}.scale", threshold / own, torch.zeros_like(own)
            )
        return self.add(name, self._neuron(neuron, threshold, shape_of(operation)), sources)

    def _neuron(self, neuron: ThresholdLIF, threshold: Tensor, shape: tuple[int, ...]) -> Any:
        threshold = threshold.view(-1, *(1,) * (len(shape) - 1)) if threshold.dim() else threshold
        full, zeros = (
            np.ones(shape, self.array(threshold).dtype),
            np.zeros(shape, self.array(threshold).dtype),
        )
        input_share = 1 - neuron.leak if neuron.leak < 1 else 1.0
        below = self.array(threshold.double() * input_share)
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
        given, (before, sources) = self.arguments(operation), self.input(operation)
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
        name = self.convolve(
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
        return self._foldable(operation, name)

    def _linear(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self.arguments(operation), self.input(operation)
        if isinstance(given["weight"], fx.Node) or len(shape_of(before)) != 1:
            raise SJRobustError(
                f"NIR cannot say this linear layer ({place_of(operation)}): only those on one"
                " vector per image"
            )
        return self._foldable(
            operation,
            self.mix(
                place_of(operation), sources, given["weight"], given["bias"], shape_of(before)
            ),
        )

    def _foldable(self, operation: fx.Node, name: tuple[str, ...]) -> tuple[str, ...]:
        self.made[name[0]] = operation
        return name

    def _scaling(self, operation: fx.Node) -> tuple[str, ...]:
        """An operation that is a·x + b per channel, batch norm above all: what a and b are is seen
        at x = 0, 1, 2."""
        before, _ = self.input(operation)
        size = shape_of(before)
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
                f"NIR cannot say {name_of(operation)} ({place_of(operation)}): it is no factor and"
                " addend per channel"
            )
        return self._scaled(
            operation, place_of(operation), (result[1] - result[0]).flatten(), result[0].flatten()
        )

    def _scaled(
        self, operation: fx.Node, name: str, scale: Tensor, shift: Tensor
    ) -> tuple[str, ...]:
        """The operation's input by one factor and one addend per channel: folded into the layer
        that made it, or a layer of its own."""
        before, sources = self.input(operation)
        if self.made.get(sources[0]) is not before or len(before.users) > 1:
            return self.mix(name, sources, scale.diag(), shift, shape_of(before))
        layer = self.nodes[sources[0]]
        # in double precision, from the weights as they are: one rounding
        weight, bias = (
            torch.from_numpy(layer.weight).double(),
            torch.from_numpy(layer.bias).double(),
        )
        layer.weight = self.array(weight * scale.view(-1, *(1,) * (weight.dim() - 1)))
        layer.bias = self.array(bias * scale + shift)
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
        size, factor = shape_of(operation), operation.kwargs.get("alpha", 1)
        first, second = (self.values[source] for source in inputs)
        if any(shape_of(source) != size for source in inputs) or not isinstance(
            factor, int | float
        ):
            raise SJRobustError(
                f"NIR cannot say this sum ({place_of(operation)}): only of activations of one shape"
            )
        if factor != 1 or set(first) & set(second):  # an edge exists once
            second = self.mix(
                f"{place_of(operation)}.again", second, factor * torch.eye(size[0]), None, size
            )
        return first + second

    def _average(self, operation: fx.Node) -> tuple[str, ...]:
        """Average pooling: of windows, to a size that divides the input's, or the mean over all
        pixels."""
        given, (before, sources) = self.arguments(operation), self.input(operation)
        size, result = shape_of(before), shape_of(operation)
        if len(size) != 3:
            raise SJRobustError(
                f"NIR cannot say this average ({place_of(operation)}): only over height and width"
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
                    f"NIR cannot say this average ({place_of(operation)}): only windows of one size"
                )
            window = stride = (size[1] // rows, size[2] // columns)
            whole = [rows, columns]
        node = self.nir.AvgPool2d(
            kernel_size=np.array(window), stride=np.array(stride), padding=np.array((0, 0))
        )
        pooled = (size[0], *whole)
        node.input_type, node.output_type = {"input": np.array(size)}, {"output": np.array(pooled)}
        name = self.add(place_of(operation), node, sources)
        return name if len(result) == 3 else self._flatten_node(operation, name, pooled)

    def _padded_average(
        self, operation: fx.Node, given: dict[str, Any], window: Pair, stride: Pair
    ) -> tuple[str, ...]:
        """As convolutions: NIR does not say what a pool's padding counts for, and importers differ.

        The windows' sums divided by one number, and where those at the borders are divided by
        another, what is missing there.
        """
        before, sources = self.input(operation)
        size, result, place, padding = (
            shape_of(before),
            shape_of(operation),
            place_of(operation),
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
        value = self.convolve(
            place, sources, weight, None, size, result, stride=stride, padding=padding
        )
        for axis, difference in enumerate(differs):
            if difference.any():
                reach = (len(difference) - 1, 1) if axis == 0 else (1, len(difference) - 1)
                missing = value
                for kernel in border_kernels(
                    size[0], axis, float(difference[0]), float(difference[-1])
                ):
                    missing = self.convolve(
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
        given, (before, sources) = self.arguments(operation), self.input(operation)
        size, pads = shape_of(before), [*given["pad"], 0, 0, 0, 0, 0, 0]
        zeros = not given.get("value") and given.get("mode", "constant") == "constant"
        if not zeros or len(size) != 3 or any(pads[6:]) or min(pads[4:]) < 0:
            raise SJRobustError(
                f"NIR cannot say {name_of(operation)} ({place_of(operation)}): only zeros, around"
                " pixels or channels"
            )
        same = nn.functional.pad(torch.eye(size[0]), (0, 0, *pads[4:6]))[:, :, None, None]
        return self.convolve(
            place_of(operation),
            sources,
            same,
            None,
            size,
            shape_of(operation),
            padding=(pads[2], pads[0]),
        )

    def _slice(self, operation: fx.Node) -> tuple[str, ...]:
        given, (before, sources) = self.arguments(operation), self.input(operation)
        size, result, axis = (
            shape_of(before),
            shape_of(operation),
            given["dim"] % (len(shape_of(before)) + 1) - 1,
        )
        if result == size:
            return sources
        taken = slice(given["start"], given["end"], given["step"])
        if axis == 0:
            return self.mix(place_of(operation), sources, torch.eye(size[0])[taken], None, size)
        first, _, step = taken.indices(size[axis])
        start, steps = ((-first, 0), (step, 1)) if axis == 1 else ((0, -first), (1, step))
        same = torch.eye(size[0])[:, :, None, None]
        return self.convolve(
            place_of(operation), sources, same, None, size, result, stride=steps, padding=start
        )

    def _part(self, operation: fx.Node) -> tuple[str, ...]:
        """One of several results: of a split its channels, of all else the only one that counts."""
        before, sources = self.input(operation)
        if name_of(before) not in SPLITS:
            return sources
        size, parts = (
            shape_of(self.input(before)[0]),
            [tuple(part.shape[1:]) for part in before.meta["val"]],
        )
        if any(part[1:] != size[1:] for part in parts):
            raise SJRobustError(
                f"NIR cannot say {name_of(before)} ({place_of(operation)}): only of channels"
            )
        rows = torch.eye(size[0]).split([part[0] for part in parts])
        return self.mix(place_of(operation), sources, rows[operation.args[1]], None, size)  # type: ignore[index]

    def _concatenation(self, operation: fx.Node) -> tuple[str, ...]:
        """Of channels: each part put in its place among zeros, and the sum of that."""
        given, result = self.arguments(operation), shape_of(operation)
        parts = given["tensors"]
        if given["dim"] % (len(result) + 1) != 1 or any(
            part in self.step.constants for part in parts
        ):
            raise SJRobustError(
                f"NIR cannot say {name_of(operation)} ({place_of(operation)}): only of the channels"
                " of activations"
            )
        value: tuple[str, ...] = ()
        for part, place in zip(
            parts,
            torch.eye(result[0]).split([shape_of(part)[0] for part in parts], dim=1),
            strict=True,
        ):
            value += self.mix(place_of(operation), self.values[part], place, None, shape_of(part))
        return value

    def _reshape(self, operation: fx.Node) -> tuple[str, ...]:
        before, sources = self.input(operation)
        size, result = shape_of(before), shape_of(operation)
        if result == size:
            return sources
        if result != (math.prod(size),):
            shapes = f"{list(size)} to {list(result)}"
            raise SJRobustError(
                f"NIR cannot say {name_of(operation)} of {shapes} ({place_of(operation)}): only"
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
        return self.add(f"{place_of(operation)}.flatten", node, sources)

    def _same(self, operation: fx.Node) -> tuple[str, ...]:
        return self.input(operation)[1]

    def _dropout(self, operation: fx.Node) -> tuple[str, ...]:
        if self.arguments(operation)["train"]:
            raise SJRobustError(
                f"NIR cannot say dropout ({place_of(operation)}) that stays on in eval mode"
            )
        return self._same(operation)


_HANDLERS = {
    "sj_robust::spiking_node": Builder._spiking,
    **dict.fromkeys(("conv2d", "convolution"), Builder._convolution),
    "linear": Builder._linear,
    **dict.fromkeys(
        ("batch_norm", "_native_batch_norm_legit_no_training", "sub", "rsub", "mul", "div", "neg"),
        Builder._scaling,
    ),
    "add": Builder._sum,
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "mean"), Builder._average),
    **dict.fromkeys(
        ("flatten", "view", "reshape", "squeeze", "unsqueeze", "_unsafe_view"), Builder._reshape
    ),
    **dict.fromkeys(
        ("contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy", *SPLITS),
        Builder._same,
    ),
    **dict.fromkeys(("pad", "constant_pad_nd"), Builder._pad),
    **dict.fromkeys(("cat", "concat", "concatenate"), Builder._concatenation),
    "slice": Builder._slice,
    "getitem": Builder._part,
    **dict.fromkeys(("dropout", "feature_dropout"), Builder._dropout),
}
