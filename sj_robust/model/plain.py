"""A user's network as a conversion wants it: a copy out of wrappers, with weights that are
float32 parameters and nothing but."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from sj_robust.errors import SJRobustError
from sj_robust.model.mode import evaluation_mode
from sj_robust.model.unwrap import unwrap

# that make a weight of others before each pass
_HOOKS = (
    WeightNorm,
    SpectralNorm,
    prune.BasePruningMethod,
)


def check_convertible(network: nn.Module) -> None:
    """Raise SJRobustError for a network that no copy with other modules can be made of: compiled
    by torch.jit, or without weights."""
    kind = type(network).__name__
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = "the network" if module is network else name
            made_from = getattr(module, "original_name", type(module).__name__)
            raise SJRobustError(
                f"{what} was compiled by torch.jit (from {made_from}), so that its layers cannot be"
                " exchanged: give the network that was scripted or traced, with its state dict"
                " loaded"
            )
    for name, tensor in _tensors(network):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise SJRobustError(
                f"{name} of {kind} has no size yet: show the network a batch of images first, as"
                " its lazy layers need"
            )
        if tensor.is_complex():
            raise SJRobustError(
                f"{name} of {kind} is complex: expected real weights, of which spikes are made"
            )
        if tensor.is_meta:
            raise SJRobustError(
                f"{name} of {kind} is on the meta device and holds no values: load weights into it"
                " first"
            )


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, also of a network that keeps tensors computed in its last pass: a feature map,
    a weight made of others."""
    computed = {
        id(tensor): tensor.detach().clone()
        for module in network.modules()
        for tensor in _computed(vars(module))
    }
    return copy.deepcopy(network, computed)


def make_plain(network: nn.Module) -> nn.Module:
    """`network` changed in place: without wrappers around its parts, and with weights in the
    place of what computes them (weight norm, spectral norm, other parametrisations, pruning
    masks; by torch's old hooks or its new ones). It computes the same in eval mode.

    Returns what takes its place.
    """
    network = unwrap(network)
    for name, module in list(network.named_modules()):
        if name and (inner := unwrap(module)) is not module:
            network.set_submodule(name, inner)
    with evaluation_mode(network):  # spectral norm changes its estimate in training mode
        for module in list(network.modules()):
            _bake(module)
    return network


def as_stored(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """A freshly built `network` with the names that the `tensors` stored of its like have,
    `prefix` before each: plain, as a conversion makes it, or with what earlier ones left in
    it."""
    for module in network.modules():
        module._compiled_call_impl = (
            None  # nn.Module.compile: it would call what the modules were then
        )
    if not any(map(_of_other_precision, tensors.values())):
        network.float()  # as a conversion took it
    if all(map(_is_plain, network.modules())):
        return network
    own = {prefix + name for name in network.state_dict()}
    vanishing = own - {prefix + name for name in make_plain(copied(network)).state_dict()}
    return network if vanishing & tensors.keys() else make_plain(network)


def as_float32(network: nn.Module) -> nn.Module:
    """`network` itself, its weights and buffers made float32, with a warning where some were of
    another precision."""
    others = {
        str(tensor.dtype).removeprefix("torch.")
        for _, tensor in _tensors(network)
        if _of_other_precision(tensor)
    }
    if others:
        warnings.warn(
            f"{type(network).__name__} has weights in {', '.join(sorted(others))}: taken as"
            " float32",
            stacklevel=3,
        )
        network.float()
    return network


def _is_plain(module: nn.Module) -> bool:
    hooked = any(isinstance(hook, _HOOKS) for hook in module._forward_pre_hooks.values())
    return unwrap(module) is module and not hooked and not parametrize.is_parametrized(module)


def _of_other_precision(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _computed(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Tensors in `value`, and in lists and dicts in it, that came out of a computation: deepcopy
    refuses them."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, Mapping | list | tuple) and depth < 4:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _computed(item, depth + 1)


def _bake(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, _HOOKS):
            parts = [
                p
                for name, p in module.named_parameters(recurse=False)
                if name.startswith(_name_of(hook))
            ]
            learned = any(part.requires_grad for part in parts)
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
                # which torch forgets
                for key, at_load in list(module._load_state_dict_pre_hooks.items()):
                    if isinstance(
                        getattr(at_load, "hook", at_load), SpectralNormLoadStateDictPreHook
                    ):
                        del module._load_state_dict_pre_hooks[key]
            else:
                prune.remove(module, hook._tensor_name)
            getattr(module, _name_of(hook)).requires_grad_(learned)
    if parametrize.is_parametrized(module):
        _bake_parametrisations(module)


@torch.no_grad()
def _bake_parametrisations(module: nn.Module) -> None:
    """By hand: torch takes the property away from the class of `module`, which is also that of
    the network that it is a copy of, and writes the value into an original that another layer may
    share."""
    made_by: Any = module.parametrizations
    values = {name: getattr(module, name).clone() for name in made_by}
    flags = {
        name: [part.requires_grad for part in made_by[name].parameters(recurse=False)]
        for name in made_by
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if flags[name]:
            module.register_parameter(name, nn.Parameter(value, any(flags[name])))
        else:
            module.register_buffer(name, value)


def _name_of(hook: Any) -> str:
    """The weight that a hook computes."""
    return str(hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name)
