"""What NIR says of operations that move, cut and join values."""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from sj_robust.errors import SJRobustError
from sj_robust.export.nir_graph import Graph, name_of, place_of, shape_of

SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split")


def pad(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    given, (before, sources) = graph.arguments(operation), graph.input(operation)
    size, pads = shape_of(before), [*given["pad"], 0, 0, 0, 0, 0, 0]
    zeros = not given.get("value") and given.get("mode", "constant") == "constant"
    if not zeros or len(size) != 3 or any(pads[6:]) or min(pads[4:]) < 0:
        raise SJRobustError(
            f"NIR cannot say {name_of(operation)} ({place_of(operation)}): only zeros, around"
            " pixels or channels"
        )
    same = nn.functional.pad(torch.eye(size[0]), (0, 0, *pads[4:6]))[:, :, None, None]
    return graph.convolve(
        place_of(operation),
        sources,
        same,
        None,
        size,
        shape_of(operation),
        padding=(pads[2], pads[0]),
    )


def part_of_axis(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    given, (before, sources) = graph.arguments(operation), graph.input(operation)
    size, result, axis = (
        shape_of(before),
        shape_of(operation),
        given["dim"] % (len(shape_of(before)) + 1) - 1,
    )
    if result == size:
        return sources
    taken = slice(given["start"], given["end"], given["step"])
    if axis == 0:
        return graph.mix(place_of(operation), sources, torch.eye(size[0])[taken], None, size)
    first, _, step = taken.indices(size[axis])
    start, steps = ((-first, 0), (step, 1)) if axis == 1 else ((0, -first), (1, step))
    same = torch.eye(size[0])[:, :, None, None]
    return graph.convolve(
        place_of(operation), sources, same, None, size, result, stride=steps, padding=start
    )


def one_of_several(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    """One of several results: of a split its channels, of all else the only one that counts."""
    before, sources = graph.input(operation)
    if name_of(before) not in SPLITS:
        return sources
    size, parts = (
        shape_of(graph.input(before)[0]),
        [tuple(part.shape[1:]) for part in before.meta["val"]],
    )
    if any(part[1:] != size[1:] for part in parts):
        raise SJRobustError(
            f"NIR cannot say {name_of(before)} ({place_of(operation)}): only of channels"
        )
    rows = torch.eye(size[0]).split([part[0] for part in parts])
    return graph.mix(place_of(operation), sources, rows[operation.args[1]], None, size)  # type: ignore[index]


def concatenation(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    """Of channels: each part put in its place among zeros, and the sum of that."""
    given, result = graph.arguments(operation), shape_of(operation)
    parts = given["tensors"]
    if given["dim"] % (len(result) + 1) != 1 or any(part in graph.step.constants for part in parts):
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
        value += graph.mix(place_of(operation), graph.values[part], place, None, shape_of(part))
    return value


def reshape(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    before, sources = graph.input(operation)
    size, result = shape_of(before), shape_of(operation)
    if result == size:
        return sources
    if result != (math.prod(size),):
        shapes = f"{list(size)} to {list(result)}"
        raise SJRobustError(
            f"NIR cannot say {name_of(operation)} of {shapes} ({place_of(operation)}): only"
            " flattening"
        )
    return graph.flatten(operation, sources, size)


def same(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    return graph.input(operation)[1]


def dropout(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    if graph.arguments(operation)["train"]:
        raise SJRobustError(
            f"NIR cannot say dropout ({place_of(operation)}) that stays on in eval mode"
        )
    return same(graph, operation)


# by the operation's name: what reads it into the graph
HANDLERS = {
    **dict.fromkeys(
        ("flatten", "view", "reshape", "squeeze", "unsqueeze", "_unsafe_view"), reshape
    ),
    **dict.fromkeys(
        ("contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy", *SPLITS), same
    ),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenation),
    "slice": part_of_axis,
    "getitem": one_of_several,
    **dict.fromkeys(("dropout", "feature_dropout"), dropout),
}
