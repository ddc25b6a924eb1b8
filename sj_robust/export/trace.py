"""One time step of a spiking network as a graph of plain operations, each with the shape of what it
gives.

torch.export follows the forward pass with real shapes, so that functional calls, control flow and
rewritten blocks make no difference; each spiking node is one opaque operation in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from sj_robust.errors import SJRobustError, first_line
from sj_robust.model import SpikingActivation, SpikingClassifier
from sj_robust.model.plain import copied
from sj_robust.model.resnet import SubsampleAndPad

_BATCH = 2  # not 1, which tracing takes for something special


@torch.library.custom_op("sj_robust::spiking_node", mutates_args=())
def spiking_node(x: Tensor, name: str) -> Tensor:
    """Stands for the node called `name`."""
    return x.clone()


@spiking_node.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


class _Opaque(nn.Module):
    def __init__(self, name: str, worth: float) -> None:
        super().__init__()
        self.name, self.worth = name, worth

    def forward(self, x: Tensor) -> Tensor:
        spikes = spiking_node(x, self.name)
        return spikes if self.worth == 1 else spikes * self.worth


@dataclass(frozen=True)
class Step:
    """The operations on the way from normalised `images` to `logits`, in order; `constants`: the
    values that no image changes."""

    operations: list[fx.Node]
    images: fx.Node
    logits: fx.Node
    constants: dict[fx.Node, Any]


def trace_step(snn: SpikingClassifier, size: tuple[int, int, int]) -> Step:
    """One step of `snn`'s backbone on images of `size` [C,H,W], in eval mode. SJRobustError where
    torch.export cannot follow it."""
    backbone = copied(snn.backbone).cpu().eval().requires_grad_(False)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, SpikingActivation):
            backbone.set_submodule(name, _Opaque(name, module.worth))
        elif isinstance(module, SubsampleAndPad):
            backbone.set_submodule(name, _as_convolution(module, snn.mean.dtype))
    images = torch.zeros(_BATCH, *size, dtype=snn.mean.dtype)
    try:
        # {}: only in-place operations go
        program = torch.export.export(backbone, (images,), strict=False).run_decompositions({})
    # torch.export raises whatever the forward pass does with stand-ins for tensors
    except Exception as error:
        text = first_line(error)[:160]
        raise SJRobustError(
            f"{type(backbone).__name__} cannot be traced on images {list(size)}"
            f" ({type(error).__name__}: {text})"
        ) from None
    constants, (start,) = _inputs(program)
    (logits,) = program.graph.output_node().args[0]  # type: ignore[misc]
    operations = list(_needed(program.graph, logits))
    for node in operations:
        if (
            node.op == "call_function"
            and node not in constants
            and all(source in constants for source in node.all_input_nodes)
        ):
            arguments = fx.map_arg((node.args, node.kwargs), lambda source: constants[source])
            constants[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
    return Step(
        [node for node in operations if node.op == "call_function" and node not in constants],
        start,
        logits,
        constants,
    )


def _inputs(program: torch.export.ExportedProgram) -> tuple[dict[fx.Node, Any], list[fx.Node]]:
    """The values of the parameters and buffers, and the placeholders of the images."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    constants, images = {}, []
    for spec in program.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT:
            images.append(node)
        else:
            values = program.state_dict if spec.target in program.state_dict else program.constants
            constants[node] = values[spec.target]  # type: ignore[index]
    return constants, images


def _needed(graph: fx.Graph, logits: fx.Node) -> Iterator[fx.Node]:
    """The nodes that `logits` depends on, in their order."""
    needed, waiting = {logits}, [logits]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                waiting.append(source)
    return (node for node in graph.nodes if node in needed)


def _as_convolution(shortcut: SubsampleAndPad, dtype: torch.dtype) -> nn.Conv2d:
    """The same as a 1×1 convolution that picks each channel: exact, and what importers know."""
    channels = shortcut.in_channels
    picks = nn.Conv2d(
        channels,
        shortcut.before + channels + shortcut.after,
        1,
        shortcut.stride,
        bias=False,
        dtype=dtype,
    )
    with torch.no_grad():
        picks.weight.zero_()
        picks.weight[shortcut.before : shortcut.before + channels, :, 0, 0] = torch.eye(channels)
    return picks
