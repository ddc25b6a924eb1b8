"""What happens to batch norm: kept as a layer of the spiking network, folded into the convolution
before it, or left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from sj_robust.conversion.settings import Norm
from sj_robust.errors import SJRobustError
from sj_robust.model.hooks import hooked
from sj_robust.model.mode import evaluation_mode


def prepare_norms(network: nn.Module, norm: Norm, x: Tensor) -> None:
    """Bring the batch norms of an ANN into the form that `norm` asks for, in place. `x`: one batch
    the network accepts.

    "integrate" keeps them (tdBN: statistics pooled over T and N, affine parameters trained); "fuse"
    folds the ANN's running statistics and affine parameters into the layer before; "omit" replaces
    them by the identity (the ablation: the ANN's normalisation is lost). Raises SJRobustError for
    another value, or with "fuse" for a batch norm that does not directly follow a layer it can
    join.
    """
    if norm not in get_args(Norm):
        raise SJRobustError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
    if norm == "omit":
        for name in norm_names(network):
            network.set_submodule(name, _remains(network.get_submodule(name)))
    elif norm == "fuse":
        for name, layer in _pairs(network, x).items():
            bn = network.get_submodule(name)
            assert isinstance(bn, _BatchNorm)
            _fold(layer, bn, name)
            network.set_submodule(name, _remains(bn))


class _Remains(nn.Module):
    """What is left of timm's norms with an activation inside, under the same names, once the norm
    is gone."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))  # type: ignore[no-any-return]


def _remains(norm: nn.Module) -> nn.Module:
    act = getattr(norm, "act", None)
    return (
        _Remains(getattr(norm, "drop", None) or nn.Identity(), act)
        if isinstance(act, nn.Module)
        else nn.Identity()
    )


def norm_names(network: nn.Module) -> list[str]:
    """Names of the batch norms of a network."""
    return [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def _pairs(network: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """Batch norm name → the convolution or linear layer whose output it normalises, as seen in one
    forward pass."""
    made_by: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # keeps the tensors alive, so that their ids stay theirs
    pairs: dict[str, nn.Module] = {}
    handles = []

    def produced(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[id(output)] = module
        kept.append(output)

    def consumed(name: str, inputs: tuple[Tensor, ...]) -> None:
        if (layer := made_by.get(id(inputs[0]))) is not None:
            pairs[name] = layer

    names = norm_names(network)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            handles.append(module.register_forward_hook(produced))
        elif name in names:
            handles.append(
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name: consumed(name, inputs)
                )
            )  # type: ignore[misc]
    with hooked(handles), evaluation_mode(network):
        network(x)
    lone = [name for name in names if name not in pairs]
    if lone or len(set(map(id, pairs.values()))) < len(pairs):
        raise SJRobustError(
            f"cannot fuse batch norm {(lone or list(pairs))[0]}: it does not directly follow a"
            " convolution or linear layer of its own; use norm='integrate'"
        )
    return pairs


def _fold(layer: nn.Module, bn: _BatchNorm, name: str) -> None:
    if bn.running_mean is None or bn.running_var is None:
        raise SJRobustError(
            f"cannot fuse batch norm {name}: it keeps no running statistics; use norm='integrate'"
        )
    fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    statistics = bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """While the block runs, `model` is in eval mode but for its batch norms, which normalise with
    the statistics of what they get. Every mode and every buffer is then as before."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with evaluation_mode(model):
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch norm by their average over `batches`.

    Args:
        batches: images [N,C,H,W] in [0,1].
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    try:
        with evaluation_mode(model):
            for m in norms:
                m.reset_running_stats()
                m.momentum = None  # a plain average over batches
                m.train()
            for batch in batches:
                model(batch)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
