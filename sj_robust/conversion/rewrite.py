"""Rewriting forward passes so that each call of an activation has a module of its own, and doing it
again from a record.

Only the modules that need it are touched, each for itself: torch.fx traces its forward pass with
everything below it as a black box, the calls of activations become calls of modules (and those of
max pooling, on request, calls of average pooling), and the module gets a class derived from its own
with that forward pass. It keeps its attributes, parameters and their names, so state dicts still
load; control flow elsewhere does not matter.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, fx, nn

from sj_robust.conversion.activations import function_kind, function_name, module_kind
from sj_robust.conversion.pooling import AVERAGES
from sj_robust.conversion.settings import Pooling
from sj_robust.errors import SJRobustError, first_line
from sj_robust.settings import Strict

Scalar = bool | int | float | str | None
# torch.fx writes a node's name into the source text of a forward pass, in quotes: a name may not
# end them. A stranger's config has a plan
Place = Annotated[str, Field(max_length=400, pattern=r"^[^\x00-\x1f\x7f\"'\\(){}\[\],]*$")]


class Rewrite(Strict):
    """One module whose forward pass is traced: for each call of an activation in it, in order, the
    node, or "" where it stays.

    `fixed`: the arguments that are no tensors, with the values for which the forward pass is
    traced.
    """

    sites: tuple[Place, ...]
    fixed: dict[str, Scalar] = Field({})


class Turns(Strict):
    """A module called `calls` times by `owner`, whose forward pass cannot be traced: its nodes take
    turns."""

    owner: Place
    calls: int = Field(ge=2, le=1024)


class Plan(BaseModel):
    """Which places of a network become nodes, and how they are made. `Plan.apply` makes them, on
    any network of the same class."""

    model_config = ConfigDict(extra="forbid")

    nodes: tuple[Place, ...]
    rewrites: dict[Place, Rewrite] = {}
    turns: dict[Place, Turns] = {}

    @model_validator(mode="after")
    def _sites_are_nodes(self) -> Plan:
        nodes = set(self.nodes)
        for rewrite in self.rewrites.values():
            if unknown := next(
                (site for site in rewrite.sites if site and site not in nodes), None
            ):
                raise ValueError(f"the site {unknown} is no node of the plan")
        return self

    def apply(
        self, network: nn.Module, make: Callable[[str], nn.Module], pooling: Pooling = "max"
    ) -> None:
        """Put `make(name)` in each place, in `network` itself; with pooling="average" rewritten
        forward passes pool by averages.

        Raises SJRobustError where the network has no such place.
        """
        try:
            owners = {name: network.get_submodule(name) for name in self.rewrites}
            graphs = {name: self._trace(owner, name, pooling) for name, owner in owners.items()}
            for place, turns in self.turns.items():
                _take_turns(network, place, turns)
            for name in self.nodes:
                if not name.rpartition(".")[2].isidentifier() and not _exists(network, name):
                    raise SJRobustError(
                        f"{type(network).__name__} has no place for a node named {name!r}"
                    )
                network.set_submodule(name, make(name))
        except AttributeError as error:
            raise SJRobustError(
                f"{type(network).__name__} has no place for a node that was recorded: {error}"
            ) from None
        for name, graph in graphs.items():
            _set_forward(owners[name], graph)

    def _trace(self, owner: nn.Module, name: str, pooling: Pooling) -> fx.Graph:
        try:
            return trace(owner, name, self.rewrites[name], pooling)
        except SJRobustError as error:
            raise SJRobustError(
                f"{name or 'the network'} ({type(owner).__name__}) is not what was recorded:"
                f" {error}"
            ) from None


class _Shallow(fx.Tracer):
    """Traces one forward pass with all modules called in it as black boxes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(module: nn.Module, name: str, rewrite: Rewrite, pooling: Pooling = "max") -> fx.Graph:
    """The forward pass of `module` (`name` in its network) with a node in the place of each call of
    an activation, and with pooling="average" average pooling in the place of each call of a max
    pooling function.

    Raises SJRobustError where torch.fx cannot follow it, or finds other activations than `rewrite`
    has.
    """
    tracer = _Shallow()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            graph = tracer.trace(module, concrete_args=dict(rewrite.fixed))
    # fx raises whatever the forward pass does with a stand-in for a tensor
    except Exception as error:
        text = first_line(error).split(". ")[0]
        raise SJRobustError(
            f"its forward pass cannot be traced ({type(error).__name__}: {text[:120]})"
        ) from None
    calls = [node for node in graph.nodes if _is_activation(module, node)]
    if len(calls) != len(rewrite.sites):
        raise SJRobustError(
            f"its forward pass shows {len(calls)} activations when traced and {len(rewrite.sites)}"
            " when run"
        )
    prefix = f"{name}." if name else ""
    for node, site in zip(calls, rewrite.sites, strict=True):
        if site:
            if not site.startswith(prefix):
                raise SJRobustError(f"the node {site} lies outside of {name}")
            with graph.inserting_before(node):
                spikes = graph.call_module(
                    site.removeprefix(prefix),
                    (node.args[0] if node.args else node.kwargs["input"],),
                )
            node.replace_all_uses_with(spikes)
            graph.erase_node(node)
    if pooling == "average":
        for node in graph.nodes:
            if node.op == "call_function":
                node.target = AVERAGES.get(function_name(node.target), node.target)
    _keep_training_flag(graph)
    return graph


def _is_activation(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        kind = module_kind(module.get_submodule(str(node.target)))
    elif node.op in ("call_function", "call_method"):
        kind = function_kind(function_name(node.target))
    else:
        return False
    return kind in ("relu", "other")


def _keep_training_flag(graph: fx.Graph) -> None:
    """Functions such as dropout were traced with the training flag of that moment: let them read
    the module's own again."""
    for node in graph.nodes:
        if node.op == "call_function" and node.kwargs.get("training") is False:
            with graph.inserting_before(node), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                node.kwargs = {**node.kwargs, "training": graph.get_attr("training")}


# names that the code of any graph may use, such as torch and inf
_EVERYWHERE = fx.Graph().python_code("self").globals


def _set_forward(module: nn.Module, graph: fx.Graph) -> None:
    """Give `module` the forward pass of `graph`, in a class of its own that is otherwise the one it
    has."""
    code = graph.python_code("self")
    own = tuple((name, thing) for name, thing in code.globals.items() if name not in _EVERYWHERE)
    kind: type = module.__class__
    module.__class__ = _rewritten(kind, code.src, own)


@cache
def _rewritten(kind: type, source: str, names: tuple[tuple[str, Any], ...]) -> type:
    """The class derived from `kind` whose forward pass is `source`, which uses `names`.

    No import finds it, so an object of it is pickled as what it is made from.
    """
    scope = {**_EVERYWHERE, **dict(names)}
    exec(compile(source, f"<rewritten {kind.__name__}>", "exec", dont_inherit=True), scope)

    def reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _blank, (kind, source, names), module.__getstate__()

    members = {
        "forward": scope["forward"],
        "__reduce_ex__": reduce,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), members)


def _blank(kind: type, source: str, names: tuple[tuple[str, Any], ...]) -> nn.Module:
    return object.__new__(_rewritten(kind, source, names))  # type: ignore[no-any-return]


class InTurn(nn.ModuleList):
    """Stands for a module that `owner` calls several times: the first call of each of its passes
    goes to the first node, and so on.

    Counted per thread: balancing runs several forward passes of one network side by side.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__(modules)
        self._calls: dict[int, int] = {}

    def restart(self) -> None:
        """A pass of the owner begins."""
        self._calls[threading.get_ident()] = 0

    def forward(self, x: Tensor) -> Tensor:
        number = self._calls.get(threading.get_ident(), 0)
        self._calls[threading.get_ident()] = number + 1
        if number >= len(self):
            raise SJRobustError(
                f"an activation is called more than {len(self)} times: the network takes another"
                " path than when converted"
            )
        return self[number](x)  # type: ignore[no-any-return]


def call_in_turn(owner: str, calls: int) -> Turns:
    """The record of an InTurn."""
    return Turns(owner=owner, calls=calls)


def _take_turns(network: nn.Module, place: str, turns: Turns) -> None:
    original = network.get_submodule(place)
    stand_in = InTurn([copy.deepcopy(original) for _ in range(turns.calls)])
    network.set_submodule(place, stand_in)
    network.get_submodule(turns.owner).register_forward_pre_hook(
        _Restart(place.removeprefix(f"{turns.owner}.") if turns.owner else place)
    )


class _Restart:
    """Found by name when it runs, not held: a copy of the network then restarts its own nodes."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self, owner: nn.Module, inputs: Any) -> None:
        turns = owner.get_submodule(self.place)
        assert isinstance(turns, InTurn)
        turns.restart()


def _exists(network: nn.Module, name: str) -> bool:
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True
