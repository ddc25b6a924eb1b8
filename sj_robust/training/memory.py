"""Memory for time: recompute each block in the backward pass instead of keeping what it
computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spikingjelly.activation_based import memopt
from torch import nn

from sj_robust.errors import SJRobustError
from sj_robust.model.classifier import SpikingActivation


@contextmanager
def checkpointed_blocks(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """While the context runs, every block of `model` is recomputed in the backward pass, by
    SpikingJelly's memopt.

    A block is a member of an nn.Sequential that has a node inside, as the stages of residual
    networks have them. Names, parameters and results stay the same; buffers are updated once.
    Raises SJRobustError where there is no such block.
    """
    blocks = _blocks(model) if wanted else {}
    if wanted and not blocks:
        raise SJRobustError(
            "checkpointing finds no blocks: it needs members of nn.Sequential with nodes inside, as"
            " in residual networks"
        )
    try:
        for name, block in blocks.items():
            model.set_submodule(name, memopt.checkpoint_module(block))
        yield
    finally:
        for name, block in blocks.items():
            model.set_submodule(name, block)


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, container in model.named_modules():
        if isinstance(container, nn.Sequential) and not any(
            name.startswith(f"{outer}.") for outer in found
        ):
            for key, member in container.named_children():
                if not isinstance(member, SpikingActivation) and any(
                    isinstance(part, SpikingActivation) for part in member.modules()
                ):
                    found[f"{name}.{key}" if name else key] = member
    return found
