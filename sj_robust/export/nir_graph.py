"""A NIR graph as it grows: the operations of one step on the one side, nodes and edges on the
other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from sj_robust.errors import SJRobustError
from sj_robust.export.trace import Step, trace_step
from sj_robust.export.windows import fitted, pair
from sj_robust.model import SpikingClassifier

INPUT, OUTPUT = "input", "output"


class Graph:
    """Reads operations and writes down nodes and edges. The value of an operation is a sum of NIR
    nodes."""

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

    def add(self, name: str, node: Any, sources: Sequence[str]) -> tuple[str, ...]:
        free = (name, *(f"{name}_{number}" for number in range(2, len(self.nodes) + 3)))
        name = next(key for key in free if key not in self.nodes and key != OUTPUT)
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return (name,)

    def convolve(
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
            weight=self.array(weight),
            bias=self.array(bias),
            stride=steps,
            padding=padding,
            dilation=spread,
            groups=1,
        )
        return self.add(name, node, sources)

    def mix(
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
            return self.convolve(name, sources, matrix[:, :, None, None], shift, size, size)
        shift = matrix.new_zeros(len(matrix)) if shift is None else shift
        return self.add(
            name, self.nir.Affine(weight=self.array(matrix), bias=self.array(shift)), sources
        )

    def flatten(
        self, operation: fx.Node, sources: Sequence[str], size: Sequence[int]
    ) -> tuple[str, ...]:
        # counted from the end, the dimensions are the same for importers that add one for the batch
        # and for those that do not
        node = self.nir.Flatten(
            input_type={"input": np.array(size)}, start_dim=-len(size), end_dim=-1
        )
        return self.add(f"{place_of(operation)}.flatten", node, sources)

    def array(self, tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().to("cpu", self.snn.mean.dtype).numpy())

    def arguments(self, operation: fx.Node) -> dict[str, Any]:
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

    def input(self, operation: fx.Node) -> tuple[fx.Node, tuple[str, ...]]:
        """The one input that depends on the image, and the nodes whose sum it is."""
        inputs = [
            source for source in operation.all_input_nodes if source not in self.step.constants
        ]
        if len(inputs) != 1:
            raise SJRobustError(
                f"NIR cannot say {name_of(operation)} of {len(inputs)} activations"
                f" ({place_of(operation)})"
            )
        return inputs[0], self.values[inputs[0]]


def shape_of(operation: fx.Node) -> tuple[int, ...]:
    """Of what an operation gives for one image."""
    value = operation.meta["val"]
    return tuple(map(int, (value[0] if isinstance(value, tuple | list) else value).shape[1:]))


def name_of(operation: fx.Node) -> str:
    schema = getattr(operation.target, "_schema", None)
    return (
        schema.name.removeprefix("aten::")
        if schema
        else str(getattr(operation.target, "__name__", operation.target))
    )


def place_of(operation: fx.Node) -> str:
    """The innermost module that an operation belongs to, by its name in the backbone."""
    stack = list((operation.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack and stack[-1][0] else operation.name
