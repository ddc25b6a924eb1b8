"""Finding every activation of a network by running it once, and deciding which of them become
spiking nodes."""

from __future__ import annotations

import copy
import inspect
import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.conversion.activations import (
    Kind,
    ceiling,
    function_kind,
    is_cut_off,
    layer_norm,
    module_kind,
    multiplies_activations,
    node_of,
    on_path,
)
from sj_robust.conversion.pooling import AVERAGES, Averaged
from sj_robust.conversion.rewrite import Plan, Rewrite, Scalar, call_in_turn, trace
from sj_robust.conversion.settings import Pooling, Replace
from sj_robust.conversion.watch import Watch
from sj_robust.errors import SJRobustError
from sj_robust.phrases import few


@dataclass
class Call:
    """One call of an activation: by the module `owner`, of the module `place`, or ("") of the
    function `name`."""

    owner: str
    place: str
    name: str
    kind: Kind
    node: Any  # of the autograd graph
    channels: int
    ceiling: float | None
    becomes: str = ""  # the name of the spiking node that takes its place

    def __str__(self) -> str:
        return (
            f"{self.place} ({self.name})"
            if self.place
            else f"{self.name}() in {self.owner or 'the network itself'}"
        )


@dataclass
class Scan:
    """What one forward pass showed: the plan, and for each node its channel count and ceiling; the
    logits of that pass."""

    plan: Plan
    channels: dict[str, int]
    ceilings: dict[str, float]
    replaced: list[str]
    logits: Tensor


def scan(
    network: nn.Module, x: Tensor, replace: Replace | None = None, pooling: Pooling = "max"
) -> Scan:
    """Run `network` (a copy that may be changed: shared ReLU modules are separated) on normalised
    images x [N,C,H,W].

    An activation becomes a node where the logits depend on it other than through a gate: a sigmoid,
    softmax or tanh whose output only scales something. What lies inside a gate, as in
    squeeze-and-excitation, stays analogue. With pooling="average" functions of max pooling compute
    averages, and the modules that call them are rewritten.

    Raises SJRobustError naming the module: an activation other than ReLU and no `replace`,
    attention, layer norm, a path that leads through a sigmoid, a block that is called several
    times, a forward pass that cannot be rewritten.
    """
    separate(network)
    pools = Averaged() if pooling == "average" else nullcontext()
    with pools:
        found = _run(network, x)
    main = on_path(
        found.logits,
        {call.node for call in found.activations}
        | {node for node, _ in found.refused}
        | {found.input},
    )
    for node, why in found.refused:
        if node in main:
            raise SJRobustError(f"cannot convert {type(network).__name__}: {why}")
    if found.input not in main:
        gate = next((call for call in found.activations if call.kind == "gate"), None)
        through = f"passes through {gate}, which is no ReLU" if gate else "is cut"
        raise SJRobustError(
            f"cannot convert {type(network).__name__}: the way from image to logits {through}; use"
            " nn.ReLU modules there"
        )
    nodes = [call for call in found.activations if call.node in main and call.kind != "gate"]
    others = [call for call in nodes if call.kind == "other"]
    if others and replace is None:
        raise SJRobustError(
            f"cannot convert {few(list(map(str, others)))}: only ReLU becomes a spiking node as"
            " it is."
            " replace_activation='relu' (--replace-activation relu) converts as if it were ReLU;"
            " the network then computes something else and has to be finetuned"
        )
    if not nodes:
        gates = [call for call in found.activations if call.kind == "gate"]
        only = f"; what it has are gates, such as {few(list(map(str, gates)))}" if gates else ""
        raise SJRobustError(
            f"{type(network).__name__} has no ReLU to turn into spiking nodes{only}: use ReLU"
            " activations"
        )
    with pools:
        _check_in_place(network, x, found.logits.detach())
    plan = _plan(network, found, nodes, pooling)
    limits = {call.becomes: call.ceiling for call in nodes if call.ceiling is not None}
    return Scan(
        plan,
        {call.becomes: call.channels for call in nodes},
        limits,
        [str(call) for call in others],
        found.logits.detach(),
    )


def separate(network: nn.Module) -> None:
    """Give every place that holds the same activation module an object of its own, so that each may
    become a node of its own."""
    seen: set[int] = set()
    for parent in list(network.modules()):
        for attribute, child in list(parent._modules.items()):
            # one with parameters (PReLU) is shared on purpose
            if (
                child is None
                or module_kind(child) is None
                or next(child.parameters(), None) is not None
            ):
                continue
            if id(child) in seen:
                child = copy.deepcopy(child)
                setattr(parent, attribute, child)
            seen.add(id(child))


class _Watch(Watch):
    """Collects activations with their place in the autograd graph. A gate's output is detached: it
    is no way to the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.activations: list[Call] = []
        self.pools: dict[str, None] = {}  # what calls a function of max pooling
        self.refused: list[tuple[Any, str]] = []  # no obstacle unless the logits depend on it
        self.fixed: dict[str, dict[str, Scalar] | None] = {}
        self.logits = torch.empty(0)
        self.input: Any = None

    def on_enter(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.fixed[name] = _fixed(module, args, kwargs)

    def on_leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        if layer_norm(module):
            self.refused.append(
                (node_of(output), _LAYER_NORM.format(f"{name} ({type(module).__name__})"))
            )
        if (kind := module_kind(module)) is None:
            return None
        return self._note(kind, name, type(module).__name__, output, ceiling(module, ""))

    def on_function(self, name: str, args: Any, kwargs: Any, output: Any) -> Any:
        owner = self.stack[-1]
        module = self.network.get_submodule(owner)
        if module_kind(module) is not None:
            return output  # noted as the module that it is
        here = f"{owner or 'the network itself'} ({type(module).__name__})"
        if name in AVERAGES:
            self.pools[owner] = None
        if multiplies_activations(name, args):
            self.refused.append(
                (
                    node_of(output),
                    (
                        f"{here} multiplies two activations ({name}): attention has no spiking"
                        " counterpart here"
                    ),
                )
            )
        elif is_cut_off(name, args):
            self.refused.append(
                (
                    node_of(output),
                    f"{here} cuts values off with {name}(): write it as nn.ReLU if it is one",
                )
            )
        elif name in ("layer_norm", "rms_norm") and not layer_norm(module):
            self.refused.append((node_of(output), _LAYER_NORM.format(here)))
        if (kind := function_kind(name)) is None:
            return output
        return self._note(kind, "", name, output, ceiling(None, name))

    def _note(self, kind: Kind, place: str, name: str, output: Any, limit: float | None) -> Any:
        if not isinstance(output, Tensor):
            return output
        channels = output.shape[1] if output.dim() > 1 else 1
        self.activations.append(
            Call(self.stack[-1], place, name, kind, node_of(output), channels, limit)
        )
        return output.detach() if kind == "gate" else output


_LAYER_NORM = (
    "{} normalises over the channels of each image, which neither weights nor thresholds can take"
    " over: use batch norm"
)


def _run(network: nn.Module, x: Tensor) -> _Watch:
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    watch = _Watch(network)
    try:
        network.requires_grad_(True)
        with torch.enable_grad():
            # not a leaf, so that it may be changed in place
            x = x.detach().clone().requires_grad_() * 1.0
            watch.input = x.grad_fn
            watch.fixed[""] = _fixed(network, (x,), {})
            with watch:
                watch.logits = network(x)
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad = flag
    if not isinstance(watch.logits, Tensor) or watch.logits.dim() != 2:
        shape = (
            list(watch.logits.shape)
            if isinstance(watch.logits, Tensor)
            else type(watch.logits).__name__
        )
        raise SJRobustError(
            f"{type(network).__name__} returns {shape} for images {list(x.shape)}: expected a"
            " classifier's logits [N,K]"
        )
    return watch


@torch.no_grad()
def _check_in_place(network: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Switch in-place activations of `network` off, or raise SJRobustError where the logits depend
    on one being in place.

    Its input is then used again, as if it were its output: a node in its place would leave that
    input alone.
    """
    modules = {
        name: module
        for name, module in network.named_modules()
        if module_kind(module) and getattr(module, "inplace", False)
    }
    for module in modules.values():
        module.inplace = False  # type: ignore[assignment]
    apart = network(x.clone())
    if torch.allclose(apart, logits, rtol=1e-4, atol=1e-5):
        return
    for name, module in modules.items():
        module.inplace = True  # type: ignore[assignment]
        if not torch.allclose(network(x.clone()), apart, rtol=1e-4, atol=1e-5):
            raise SJRobustError(
                f"{name} ({type(module).__name__}) works in place on a tensor that is used again,"
                " which a node would not change: set its inplace to False, and let what follows"
                " use its output"
            )
        module.inplace = False  # type: ignore[assignment]


def _plan(network: nn.Module, found: _Watch, nodes: list[Call], pooling: Pooling) -> Plan:
    """Names for all nodes, and the modules whose forward pass must be rewritten so that each call
    has a node of its own."""
    taken: set[str] = set()
    chosen = {id(call) for call in nodes}
    for call in nodes:
        if found.calls[call.owner] > 1:
            raise SJRobustError(
                f"{call.owner} ({type(network.get_submodule(call.owner)).__name__}) is called"
                f" {found.calls[call.owner]} times in one forward pass, and its activations with"
                " it: give each call a block of its own"
            )
        stays = any(
            other.place == call.place and id(other) not in chosen for other in found.activations
        )
        # the first call of a module has the module's name
        own = bool(call.place) and call.place not in taken and not stays
        call.becomes = call.place if own else _free(call, taken, network)
        taken.add(call.becomes)
    pools = found.pools if pooling == "average" else {}
    owners = (
        dict.fromkeys(call.owner for call in nodes if not call.place or found.calls[call.place] > 1)
        | pools
    )
    plan = Plan(nodes=tuple(call.becomes for call in nodes))
    for owner in owners:
        made = [call for call in found.activations if call.owner == owner and call.kind != "gate"]
        sites = tuple(call.becomes for call in made)
        module, fixed = network.get_submodule(owner), found.fixed.get(owner, {})
        try:
            if fixed is None:
                raise SJRobustError("it is called with arguments that cannot be recorded")
            trace(module, owner, rewrite := Rewrite(sites=sites, fixed=fixed), pooling)
            plan.rewrites[owner] = rewrite
        except SJRobustError as error:
            if owner in pools:
                where = f"{owner or 'the network itself'} ({type(module).__name__})"
                raise SJRobustError(
                    f"cannot make the max pooling of {where} average pooling, because {error}: use"
                    " nn.MaxPool2d"
                ) from None
            # a module that is called several times can still be told apart by counting its calls; a
            # function cannot
            if not all(call.place for call in made if id(call) in chosen):
                raise SJRobustError(_untraceable(owner, module, str(error))) from None
            _in_turn(
                plan,
                found,
                [call for call in made if found.calls[call.place] > 1],
                chosen,
                owner,
                module,
            )
    return plan


def _in_turn(
    plan: Plan, found: _Watch, calls: list[Call], chosen: set[int], owner: str, module: nn.Module
) -> None:
    for place in dict.fromkeys(call.place for call in calls):
        every = [call for call in found.activations if call.place == place]
        if any(call.owner != owner or id(call) not in chosen for call in every):
            raise SJRobustError(
                _untraceable(owner, module, f"{place} is called from several modules")
            )
        for number, call in enumerate(every):
            call.becomes = f"{place}.{number}"
        plan.turns[place] = call_in_turn(owner, len(every))
    plan.nodes = tuple(call.becomes for call in found.activations if id(call) in chosen)


def _untraceable(owner: str, module: nn.Module, why: str) -> str:
    where = f"{owner or 'the network itself'} ({type(module).__name__})"
    return (
        f"cannot tell the activations of {where} apart, because {why}: give each call an nn.ReLU"
        " module of its own"
    )


def _free(call: Call, taken: set[str], network: nn.Module) -> str:
    """A name that no module has, after the function or (with a number from 2) after the module that
    is called again."""
    base = call.place or (f"{call.owner}." if call.owner else "") + call.name.rstrip("_")
    parent, _, attribute = base.rpartition(".")
    holder = network.get_submodule(parent)
    for number in itertools.count(2 if call.place else 1):
        end = "" if number == 1 else f"_{number}"
        if base + end not in taken and not hasattr(holder, attribute + end):
            return base + end
    raise AssertionError("count() ends never")


def _fixed(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Scalar] | None:
    """The plain values among the arguments of this call, defaults included; None where its
    signature does not tell them."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    fixed: dict[str, Scalar] = {}
    for name, value in bound.arguments.items():
        if value is None or isinstance(value, bool | int | float | str):
            fixed[name] = value
    return fixed
