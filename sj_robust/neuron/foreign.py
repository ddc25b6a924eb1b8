"""Gradient views for nodes that are not ours: SpikingJelly's, and any that make their spikes with a
`surrogate_function`.

A node keeps its dynamics and its spikes. What is exchanged for a while is its surrogate function
and its forward pass, which becomes the view's (`View.foreign`): back through the node with another
function, or around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.neuron.lif import ThresholdLIF
from sj_robust.neuron.view import Pass, View

_THEIRS = ("spikingjelly.activation_based.neuron", "spikingjelly.activation_based.rnn")


def find_nodes(network: nn.Module) -> dict[str, nn.Module]:
    """Every spiking node of `network` by its name.

    Raises SJRobustError where there is none, and for one that no view would reach: a node without a
    `surrogate_function`, or whose function is not the step [u ≥ 0] forward (several levels, or
    `spiking=False`).
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
        elif others := [
            key
            for key, child in module.named_children()
            if isinstance(child, SurrogateFunctionBase)
        ]:
            raise SJRobustError(
                f"{where} makes spikes with its {others[0]}: views exchange what is called"
                " surrogate_function alone"
            )
        elif (
            type(module).__module__.startswith(_THEIRS)
            and "NonSpiking" not in type(module).__name__
        ):
            raise SJRobustError(
                f"{where} has no surrogate_function: its spikes cannot be given other gradients"
            )
    if not found:
        raise SJRobustError(
            f"{type(network).__name__} has no spiking node: expected modules with a"
            " surrogate_function, as SpikingJelly's"
        )
    return found


def _function(node: nn.Module) -> Any:
    """The node's own surrogate_function, a module or not; None where it has none."""
    return {**vars(node), **dict(node.named_children())}.get("surrogate_function")


def _check_steps(function: Any, where: str) -> None:
    parameter = next(function.parameters(), None) if isinstance(function, nn.Module) else None
    u = torch.tensor(
        [-2.0, -0.01, 0.0, 0.01, 2.0], device=None if parameter is None else parameter.device
    )
    with torch.no_grad():
        spikes = function(u)
    if not torch.equal(spikes, (u >= 0).to(u)):
        values = [round(value, 3) for value in spikes.tolist()]
        raise SJRobustError(
            f"{where} makes {values} of u = {[round(value, 2) for value in u.tolist()]}: expected 1"
            " where u ≥ 0, else 0"
        )


def described(node: nn.Module) -> str:
    """What a node computes, in one line: class, constants, surrogate function. How it is run (mode,
    backend) is left out."""
    function = _function(node)
    name = (
        repr(function)
        if isinstance(function, nn.Module)
        else getattr(function, "__name__", type(function).__name__)
    )
    facts = [
        part
        for part in map(str.strip, node.extra_repr().split(","))
        if part and not part.startswith(("step_mode", "backend"))
    ]
    text = f"{type(node).__name__}({', '.join([*facts, *([] if function is None else [name])])})"
    return re.sub(
        r"\d+\.\d{6,}(e[+-]?\d+)?", lambda number: f"{float(number[0]):.5g}", " ".join(text.split())
    )


class NodeInView:
    """One node, shown in a view between `take` and `release`. `restart` comes before each pass
    through the network.

    Raises SJRobustError for a node in single-step mode in a view that needs all steps at once.
    """

    def __init__(self, name: str, node: nn.Module, view: View) -> None:
        self._name, self._node, self._view = name, node, view
        self._spike = _Spike(view)
        self._before: Any = None
        self.restart()
        if view.all_at_once and not self._pass.multistep:
            raise SJRobustError(
                f"the {view} view needs all steps at once, {name} is in "
                "single-step mode: set_step_mode(net, 'm')"
            )

    def restart(self) -> None:
        """Forget the last pass; its graph keeps what it needs."""
        self._pass = self._spike.seen = Pass(self._node, self._name)

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
        def run(spike: Callable[[Tensor], Tensor]) -> Any:
            self._spike.function, made = spike, self._pass.spikes_made
            try:
                spikes = self._before[2](x, *args, **kwargs)
            finally:
                self._spike.function = None
            if self._pass.spikes_made == made:
                raise SJRobustError(
                    f"{self._pass.where} makes spikes without its surrogate_function in eval mode: "
                    "no view can give them a gradient"
                )
            return spikes

        return self._view.foreign(x, run, self._pass)


class _Spike(SurrogateFunctionBase):  # type: ignore[misc]  # SpikingJelly has no types
    """Stands in place of a node's surrogate function, and asks the view's."""

    def __init__(self, view: View) -> None:
        # what ComplementaryLIFNode asks before it takes its function in eval mode
        super().__init__(spiking=False)
        self.view = view
        self.seen: Pass
        self.function: Callable[[Tensor], Tensor] | None = None  # within the node's forward

    def forward(self, u: Tensor) -> Tensor:
        spikes = self._outside(u) if self.function is None else self.function(u)
        self.seen.spikes_made += 1
        return spikes

    def _outside(self, u: Tensor) -> Tensor:
        """Of a node whose `single_step_forward`, say, is called: seen in views that go back through
        the node, since there is no call of it to go back around."""
        made: list[Tensor] = []

        def run(spike: Callable[[Tensor], Tensor]) -> Tensor:
            made.append(spike(u))
            return made[0]

        spikes = self.view.foreign(u, run, self.seen)
        if not made or spikes is not made[0]:
            raise SJRobustError(
                f"{self.seen.where} makes spikes outside of its forward: it has no {self.view} view"
            )
        return made[0]


def _assign(node: nn.Module, function: Any) -> None:
    if not isinstance(function, nn.Module):
        del node.surrogate_function  # a module refuses to be followed by what is none
    node.surrogate_function = function
