"""Replacing a network's activation modules by spiking ones, and finding those that would stay behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sj_robust.errors import SJRobustError
from sj_robust.model.classifier import SpikingActivation
from sj_robust.neuron import Reset, Surrogate, ThresholdLIF

# Modules that are a plain ReLU, and may become a node.
CONVERTIBLE: tuple[type[nn.Module], ...] = (nn.ReLU,)

# What counts as an activation when it is called as a function, by the name torch gives it.
_FUNCTIONS = {
    "relu", "relu_", "relu6", "hardtanh", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "elu", "elu_", "selu", "celu", "gelu", "silu",
    "mish", "softplus", "hardswish", "hardsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_", "logsigmoid", "softsign", "clamp_min",
}  # fmt: skip


def replace_activations(
    network: nn.Module, *, leak: float, reset: Reset, surrogate: Surrogate, timesteps: int, channels: dict[str, int] | None = None
) -> list[str]:
    """Put a SpikingActivation (threshold 1) in the place of every ReLU module of `network`; return their names.

    `channels` gives the channel count of the activations that get one threshold per channel.
    Raises SJRobustError when there is no ReLU module or when one module stands in two places.
    """
    names = [name for name, module in network.named_modules(remove_duplicate=False) if isinstance(module, CONVERTIBLE)]
    if not names:
        raise SJRobustError(f"{type(network).__name__} has no ReLU to turn into spiking nodes: use nn.ReLU modules, one for each call")
    if len({id(network.get_submodule(name)) for name in names}) < len(names):
        raise SJRobustError(f"one ReLU module stands in several places of {type(network).__name__}: give each place a module of its own")
    for name in names:
        node = ThresholdLIF(leak=leak, reset=reset, surrogate=surrogate, channels=(channels or {}).get(name))
        network.set_submodule(name, SpikingActivation(node, timesteps))
    return names


@contextmanager
def recorded_calls(network: nn.Module) -> Iterator[Counter[str]]:
    """Count, while the block runs, the calls of every submodule by name."""
    calls: Counter[str] = Counter()

    def count(name: str) -> Any:
        return lambda module, inputs: calls.update([name])

    handles = [module.register_forward_pre_hook(count(name)) for name, module in network.named_modules() if name]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class _Activations(TorchFunctionMode):
    """Collects the activations that run, outside of spiking nodes, with the module they run in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.found: list[str] = []
        self._stack: list[tuple[str, nn.Module]] = [("", network)]
        self._handles: list[Any] = []
        for name, module in network.named_modules():
            if name:
                self._handles.append(module.register_forward_pre_hook(self._enter(name)))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        return lambda module, inputs: self._stack.append((name, module))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _FUNCTIONS and not any(isinstance(module, SpikingActivation) for _, module in self._stack):
            where, module = self._stack[-1]
            self.found.append(f"{name.rstrip('_')} in {where or 'the network itself'} ({type(module).__name__})")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def check_activations(network: nn.Module, x: Tensor, names: list[str]) -> None:
    """Run the converted `network` on `x` and raise SJRobustError unless every activation in it is a node called once.

    Names activations that stayed behind (another class of module, or a function call that no module shows),
    nodes that are never called and nodes that are called more than once.
    """
    mode = _Activations(network)
    try:
        with recorded_calls(network) as calls, mode:
            network(x)
    finally:
        mode.close()
    if mode.found:
        found = list(dict.fromkeys(mode.found))
        raise SJRobustError(
            f"cannot convert {len(found)} activation(s): {'; '.join(found[:5])}{' ...' if len(found) > 5 else ''}. "
            "Only nn.ReLU modules become spiking nodes: replace these by nn.ReLU modules and finetune the network"
        )
    if reused := [name for name in names if calls[name] > 1]:
        raise SJRobustError(f"the ReLU {reused[0]} is called {calls[reused[0]]} times in one forward: give each call a module of its own")
    if unused := [name for name in names if not calls[name]]:
        raise SJRobustError(f"the ReLU {unused[0]} is not called in a forward pass: remove it, it would be a node that never fires")
