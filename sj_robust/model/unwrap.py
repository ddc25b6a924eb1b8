"""Networks inside of wrappers: taken out of those that compute the same, refused in those of
which nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based.neuron import BaseNode
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sj_robust.errors import SJRobustError
from sj_robust.model.classifier import SpikingActivation
from sj_robust.model.hooks import hooked
from sj_robust.model.normalized import NormalizedClassifier
from sj_robust.model.spiking import SpikingModel

# what computes the same as the module it keeps under that name
WRAPPERS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.DataParallel, "module"),
    (DistributedDataParallel, "module"),
    (OptimizedModule, "_orig_mod"),  # of torch.compile
    (AveragedModel, "module"),
    (ModelEmaV2, "module"),
    (ModelEmaV3, "module"),
)
SPIKING = (SpikingModel, SpikingActivation)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def unwrap(model: nn.Module) -> nn.Module:
    """The network in `model`, where all around it are WRAPPERS; else `model` itself.

    A wrapper that somebody derived from with another forward pass, or put a hook on, is none of
    these.
    """
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def expose(model: Any) -> nn.Module:
    """The spiking network in a wrapper, which is to be treated as one; anything else as it is.

    Raises:
        SJRobustError: what is no module, and one that holds a spiking network in any other way: it
            would be taken for an ANN.
    """
    if not isinstance(model, nn.Module):
        raise SJRobustError(
            f"got a {type(model).__name__}: expected the network, a torch.nn.Module"
        )
    network = model
    while (
        not isinstance(network, SpikingModel)
        and (inner := _wrapped(network) or _around_spiking(network)) is not None
    ):
        network = inner
    if isinstance(network, SpikingModel):
        return network
    for name, module in network.named_modules():
        if isinstance(module, SPIKING) or _scripted_as(module) in (
            "SpikingClassifier",
            "SpikingJellyClassifier",
            "SpikingActivation",
        ):
            raise taken_for_ann(network, f", {name}," if name else "")
    return model


def spiking(model: Any) -> SpikingModel:
    """The spiking network that `model` is, or wraps. Raises SJRobustError where it is none."""
    network = expose(model)
    if not isinstance(network, SpikingModel):
        raise SJRobustError(
            f"{type(network).__name__} is no spiking network: expected what convert or"
            " from_spikingjelly returned"
        )
    return network


@contextmanager
def showing_hidden() -> Iterator[list[nn.Module]]:
    """Every spiking network, or node of SpikingJelly, that runs in the block, also one that no
    module holds: in a list, or in what a function remembers."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, (*SPIKING, BaseNode)):
            seen.append(module)

    with hooked([register_module_forward_pre_hook(note)]):
        yield seen


def bare(model: nn.Module) -> nn.Module:
    """`model` as it is stored: out of its wrapper, and for a NormalizedClassifier with its
    backbone out of its own."""
    model = unwrap(model)
    if (
        type(model) is NormalizedClassifier
        and (inner := unwrap(model.backbone)) is not model.backbone
    ):
        normalised = NormalizedClassifier(inner, model.mean, model.std)
        normalised.training = model.training  # its own flag alone: the backbone is the caller's
        normalised.classes = model.classes
        if (source := getattr(model, "source", None)) is not None:
            normalised.source = source
        return normalised
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """What one of WRAPPERS is around, None for anything else."""
    if any(vars(model).get(hooks) for hooks in _HOOKS):
        return None
    for kind, name in WRAPPERS:
        if isinstance(model, kind) and type(model).forward is kind.forward:
            return getattr(model, name)  # type: ignore[no-any-return]
    return None


def _around_spiking(model: nn.Module) -> nn.Module | None:
    """What an nn.Sequential of it alone is around, or a normalisation by 0 and 1: of a spiking
    network, which normalises for itself, that computes the same. An ANN is left in it, since it
    is part of the names of its weights."""
    if any(vars(model).get(hooks) for hooks in _HOOKS):
        return None
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        parts = [part for part in model if not isinstance(part, nn.Identity)]
        return parts[0] if len(parts) == 1 else None
    if type(model) is NormalizedClassifier:
        same = torch.equal(model.mean, torch.zeros_like(model.mean)) and torch.equal(
            model.std, torch.ones_like(model.std)
        )
        return model.backbone if same else None
    return None


def _scripted_as(module: nn.Module) -> str | None:
    """The name of the class that torch.jit made `module` from, None for one that it did not
    make."""
    return (
        getattr(module, "original_name", None)
        if isinstance(module, torch.jit.ScriptModule)
        else None
    )


def taken_for_ann(model: nn.Module, where: str = "") -> SJRobustError:
    """What is raised for a module with a spiking network in it."""
    return SJRobustError(
        f"{type(model).__name__} holds a spiking network{where} and would be taken for an ANN: pass"
        " what convert, load or from_spikingjelly returned, by itself"
    )
