"""Eval mode for a while, and then every training flag as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sj_robust.errors import SJRobustError, first_line


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode for the block.

    Each one's own training flag comes back, also on exceptions.

    Raises:
        SJRobustError: a network that knows no modes, as what torch.export made.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        try:
            model.eval()
        except NotImplementedError as error:
            raise SJRobustError(
                f"{type(model).__name__} has no eval mode ({first_line(error)}): give the network "
                "that it was exported from"
            ) from None
        yield
    finally:
        for module, training in flags:
            module.training = training
