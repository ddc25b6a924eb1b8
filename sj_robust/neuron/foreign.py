"""Gradient views for nodes that are not ours: SpikingJelly's, and any that make their spikes with a `surrogate_function`.

A node keeps its dynamics and its spikes. What is exchanged for a while is its surrogate function (a Surrogate, ASSG), or the way back
around its spikes (rate, rate-temporal); "activation" replaces its forward pass by a ReLU.
"""

from __future__ import annotations

import re
from typing import Any
from weakref import ref

import torch
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.neuron.backend import select_backend
from sj_robust.neuron.lif import ThresholdLIF
from sj_robust.neuron.surrogate import Surrogate
from sj_robust.neuron.views import AdaptiveSharpness, Fired, Rate, RateTemporal, View

_THEIRS = ("spikingjelly.activation_based.neuron", "spikingjelly.activation_based.rnn")


def find_nodes(network: nn.Module) -> dict[str, nn.Module]:
    """Every spiking node of `network` by its name.

    Raises SJRobustError where there is none, and for one that no view would reach: a node without a `surrogate_function`, or whose
    function is not the step [u ≥ 0] forward (several levels, or `spiking=False`).
    """
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        where = f"{name or 'the network'} ({type(module).__name__})"
        function = _function(module)
        if isinstance(module, ThresholdLIF):
            found[name] = module
        elif callable(function):
            _check_steps(function, where)
            found[name] = module
        elif others := [key for key, child in module.named_children() if isinstance(child, SurrogateFunctionBase)]:
            raise SJRobustError(f"{where} makes spikes with its {others[0]}: views exchange what is called surrogate_function alone")
        elif type(module).__module__.startswith(_THEIRS) and "NonSpiking" not in type(module).__name__:
            raise SJRobustError(f"{where} has no surrogate_function: its spikes cannot be given other gradients")
    if not found:
        raise SJRobustError(f"{type(network).__name__} has no spiking node: expected modules with a surrogate_function, as SpikingJelly's")
    return found


def _function(node: nn.Module) -> Any:
    """The node's own surrogate_function, a module or not; None where it has none."""
    return {**vars(node), **dict(node.named_children())}.get("surrogate_function")


def _check_steps(function: Any, where: str) -> None:
    parameter = next(function.parameters(), None) if isinstance(function, nn.Module) else None
    u = torch.tensor([-2.0, -0.01, 0.0, 0.01, 2.0], device=None if parameter is None else parameter.device)
    with torch.no_grad():
        spikes = function(u)
    if not torch.equal(spikes, (u >= 0).to(u)):
        values = [round(value, 3) for value in spikes.tolist()]
        raise SJRobustError(f"{where} makes {values} of u = {[round(value, 2) for value in u.tolist()]}: expected 1 where u ≥ 0, else 0")


def described(node: nn.Module) -> str:
    """What a node computes, in one line: class, constants, surrogate function. How it is run (mode, backend) is left out."""
    function = _function(node)
    name = repr(function) if isinstance(function, nn.Module) else getattr(function, "__name__", type(function).__name__)
    facts = [part for part in map(str.strip, node.extra_repr().split(",")) if part and not part.startswith(("step_mode", "backend"))]
    text = f"{type(node).__name__}({', '.join([*facts, *([] if function is None else [name])])})"
    return re.sub(r"\d+\.\d{6,}(e[+-]?\d+)?", lambda number: f"{float(number[0]):.5g}", " ".join(text.split()))


class NodeInView:
    """One node, shown in a view between `take` and `release`. `restart` comes before each pass through the network.

    Raises SJRobustError for the rate-temporal view of a node in single-step mode, which would need all steps at once.
    """

    def __init__(self, name: str, node: nn.Module, view: View) -> None:
        self._multistep = getattr(node, "step_mode", "m") == "m"
        if view == "rate-temporal" and not self._multistep:
            raise SJRobustError(f"the rate-temporal view needs all steps at once, {name} is in single-step mode: set_step_mode(net, 'm')")
        self._name, self._node, self._view = name, node, view
        self._spike = _Spike(view, node)
        self._before: Any = None
        self.restart()

    def restart(self) -> None:
        """Forget the last pass; its graph keeps what it needs."""
        self._spike.calls = 0
        self._fired = Fired()

    def take(self) -> None:
        """Show the node in the view."""
        node = self._node
        if isinstance(node, ThresholdLIF):
            self._before, node.view = node.view, self._view
            return
        self._before = node.surrogate_function, vars(node).get("forward"), node.forward
        _assign(node, self._spike)
        node.forward = self._forward

    def release(self) -> None:
        """Leave the node as it was."""
        node = self._node
        if isinstance(node, ThresholdLIF):
            node.view = self._before
            return
        function, own_forward, _ = self._before
        _assign(node, function)
        del node.forward  # the method of its class shows again
        if own_forward is not None:
            node.forward = own_forward

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._view == "activation":
            return x.relu()
        exchanged, calls = isinstance(self._view, str), self._spike.calls
        with torch.set_grad_enabled(torch.is_grad_enabled() and not exchanged):
            spikes = self._before[2](x, *args, **kwargs)
        if self._spike.calls == calls:
            raise SJRobustError(f"{self._name} ({type(self._node).__name__}) makes spikes without its surrogate_function in eval mode: "
                                "no view can give them a gradient")
        return self._way_back(x, spikes) if exchanged and torch.is_grad_enabled() else spikes

    def _way_back(self, x: Tensor, spikes: Any) -> Tensor:
        u = self._spike.potential() if self._view == "rate-temporal" else x
        if not (isinstance(spikes, Tensor) and spikes.shape == x.shape and u.numel() == x.numel()):
            where = f"{self._name} ({type(self._node).__name__})"
            raise SJRobustError(f"{where} does not make one spike of each input: it has no {self._view} view")
        if self._view == "rate":
            self._fired.see((spikes if self._multistep else spikes.unsqueeze(0)).abs())
            return Rate.apply(x, spikes, self._fired)  # type: ignore[no-any-return]
        return RateTemporal.apply(x, spikes, u.view_as(x))  # type: ignore[no-any-return]


class _Spike(SurrogateFunctionBase):  # type: ignore[misc]  # SpikingJelly has no types
    """[u ≥ 0] in place of a node's surrogate function, with the gradient of the view."""

    def __init__(self, view: View, node: nn.Module) -> None:
        super().__init__(spiking=False)  # what ComplementaryLIFNode asks before it takes its function in eval mode
        self.view = view
        self.calls = 0  # in this pass: the time step, of a node that computes one at a time
        self._potentials: list[Tensor] = []
        self._node = ref(node)  # as a child it would be its own grandchild

    def forward(self, u: Tensor) -> Tensor:
        step, self.calls = self.calls, self.calls + 1
        if isinstance(self.view, Surrogate):
            return self.view.spike(u)
        if isinstance(self.view, AdaptiveSharpness) and torch.is_grad_enabled() and u.requires_grad:
            node, potential = self._node(), u.detach().unsqueeze(0)
            assert node is not None
            sigma = self.view.derivative(node, potential, potential.new_zeros(()), select_backend("auto", potential), step)
            return _SpikeWith.apply(u, sigma[0])  # type: ignore[no-any-return]
        if self.view == "rate-temporal":
            self._potentials = [*(self._potentials if step else []), u]
        return (u >= 0).to(u)

    def potential(self) -> Tensor:
        """u of all steps of this pass."""
        return torch.stack(self._potentials)


class _SpikeWith(torch.autograd.Function):
    """[u ≥ 0], and back with the given derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(sigma)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (sigma,) = ctx.saved_tensors
        return grads[0] * sigma, None


def _assign(node: nn.Module, function: Any) -> None:
    if not isinstance(function, nn.Module):
        del node.surrogate_function  # a module refuses to be followed by what is none
    node.surrogate_function = function
