"""What an evaluation runs: the stages of a protocol, or attacks and views by name, as attacks on a
model at each eps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from torch import nn

from sj_robust.attack import Attack, GradientView, Norm, Sources, parse_attack
from sj_robust.budget import radii
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.protocol import VIEWS, AttackMaker, Protocol, Stage, find_protocol
from sj_robust.evaluation.words import BLACK_BOX, EXACT, ROTATION, TRANSFER
from sj_robust.model import SpikingModel
from sj_robust.neuron import View, parse_view, view_name

DEFAULT_VIEWS: tuple[View, ...] = tuple(parse_view(name) for name in VIEWS)
DEFAULT_ATTACKS: tuple[AttackMaker, ...] = ("fgsm", "pgd10")


@dataclass(frozen=True)
class Run:
    """One attack at its eps through the models as it sees them, by view. `start`: see Stage;
    `anew`: how many stages have begun so until here. `sources`: the views of a rotation, in
    order."""

    attack: Attack
    seen: Mapping[str, nn.Module]
    start: str = "image"
    anew: int = 0
    sources: tuple[str, ...] = ()

    @property
    def from_best(self) -> bool:
        return self.start == "best"

    @property
    def gradients(self) -> dict[str, nn.Module]:
        """What it takes gradients from, by view: those of a rotation one by one."""
        found: dict[str, nn.Module] = {}
        for view, seen in self.seen.items():
            if isinstance(seen, Sources):
                found |= zip(self.sources or (view,), seen.sources, strict=True)
            elif view != BLACK_BOX:
                found[view] = seen
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Of the attack, and what the stage adds."""
        return {
            **self.attack.settings,
            **({"start": self.start} if self.start != "image" else {}),
            **({"sources": list(self.sources)} if self.sources else {}),
        }


def check_names(
    protocol: str | None = None,
    attacks: Iterable[str] = (),
    views: Sequence[str] | None = None,
    norm: Norm = "linf",
) -> None:
    """Raise SJRobustError, before any work, for a protocol, attack or view that is none, for an
    attack twice, and for no view at all."""
    if protocol is not None:
        find_protocol(protocol)
    _check_distinct([parse_attack(attack, 0.1, norm).name for attack in attacks])  # at whatever eps
    if views is not None:
        _parsed(views)


def stages_of(
    protocol: Protocol | None,
    attacks: Sequence[AttackMaker] | None,
    views: Sequence[str] | None,
    transfer: bool,
) -> tuple[Stage, ...]:
    """The stages of a protocol, with its views replaced where `views` are given; or every attack
    through every view, and through other models where there are some to `transfer` from.

    Raises SJRobustError for a protocol with what it has no use for: attacks, fixed views, transfer.
    """
    if protocol is None:
        attacks = DEFAULT_ATTACKS if attacks is None else attacks
        through = tuple(views) if views is not None else VIEWS
        return tuple(Stage(attack, through + (TRANSFER,) * transfer) for attack in attacks)
    if attacks is not None:
        raise SJRobustError(
            f"the protocol {protocol} says which attacks run: leave attacks out, "
            "or name them without a protocol"
        )
    if transfer and not protocol.transfers:
        raise SJRobustError(
            f"the protocol {protocol} has no transfer attack: use strong, or name attacks without a"
            " protocol"
        )
    if views is None:
        return protocol.stages
    if protocol.name != "autoattack":
        raise SJRobustError(
            f"the protocol {protocol} fixes its views: leave them out, or name attacks and views"
            " without a protocol"
        )
    return tuple(replace(stage, views=tuple(views)) for stage in protocol.stages)


def for_few_classes(
    stages: Sequence[Stage], classes: int, norm: Norm = "linf"
) -> tuple[tuple[Stage, ...], dict[str, str]]:
    """The stages of a protocol for a model of so many classes, and {attack: what runs in its
    place}, which `Attack.for_classes` says. What is there twice runs once.
    """
    replaced: dict[str, str] = {}
    through: dict[AttackMaker, Stage] = {}
    for stage in stages:
        name = stage.attack
        if isinstance(name, str):
            attack = parse_attack(name, 0.1, norm)  # at whatever eps
            fewer = attack.for_classes(classes)
            if fewer != attack:
                replaced[attack.name] = name = fewer.name
        known = through.setdefault(name, replace(stage, attack=name, views=()))
        through[name] = replace(
            known,
            views=known.views + tuple(view for view in stage.views if view not in known.views),
        )
    return tuple(through.values()), replaced


def check_classes(attacks: Iterable[Attack], classes: int) -> None:
    """Raises SJRobustError for an attack that needs more classes than the model has."""
    for attack in attacks:
        if classes < attack.least_classes:
            raise SJRobustError(
                f"{attack.name} needs at least {attack.least_classes} classes, the model "
                f"has {classes}: use an attack on the loss ce, such as apgd100-ce"
            )


def make_plan(
    model: nn.Module,
    stages: Sequence[Stage],
    eps: Any,
    *,
    norm: Norm = "linf",
    restarts: int = 1,
    transfer: Mapping[str, nn.Module] | None = None,
    cheap_first: bool = False,
) -> list[list[Run]]:
    """For each eps, ascending, its runs. An ANN has its exact gradient in place of all views;
    black-box attacks run once.

    Raises SJRobustError on eps out of range, on unknown attacks and views, on two attacks of one
    name, and on restarts and models to transfer from that no attack has a use for.
    """
    ascending = radii(eps, norm)
    if stages and not ascending:
        raise SJRobustError(
            "eps is empty: name a radius, or attacks=() for the clean accuracy alone"
        )
    others = {f"{TRANSFER}:{name}": other for name, other in (transfer or {}).items()}
    shown: dict[str, nn.Module] = {}  # one module per view, shared by all attacks

    def sources(stage: Stage) -> list[tuple[str, nn.Module]]:
        """In order, those that a rotation meets twice too."""
        found: list[tuple[str, nn.Module]] = []
        for view in stage.views:
            if view == TRANSFER:
                found += others.items()
            elif isinstance(model, SpikingModel):
                found.append((view, shown.setdefault(view, GradientView(model, parse_view(view)))))
            else:
                found.append((EXACT, model))
        return found

    def run(stage: Stage, value: float, anew: int) -> Run | None:
        attack = (
            parse_attack(stage.attack, value, norm)
            if isinstance(stage.attack, str)
            else stage.attack(eps=value)
        )
        if attack.norm != norm:
            raise SJRobustError(
                f"{attack.name} is an attack under {attack.norm}, the evaluation "
                f"under {norm}: give both the same"
            )
        if attack.starts_at_random and (count := stage.restarts * restarts) > 1:
            attack = replace(attack, restarts=count)
        if stage.start == "best" and not attack.takes_start:
            raise SJRobustError(
                f"{attack.name} cannot start from an image that is given: expected "
                "rotatingN or squareN"
            )
        if attack.black_box:
            return Run(attack, {BLACK_BOX: model}, stage.start, anew)
        if not stage.views:
            raise SJRobustError(
                f"{attack.name} takes gradients, and its stage names no views: "
                "expected at least one"
            )
        found = sources(stage)
        if not found:
            return None  # it looks through other models alone, and there are none
        if not attack.many_sources:
            return Run(attack, dict(found), stage.start, anew)
        # one that is shorter than its list does not come to the rest: nobody shall read that these
        # were tried
        names, modules = zip(*found[: attack.iterations], strict=True)
        if len(set(names)) == 1:
            return Run(attack, {names[0]: Sources(model, modules[:1])}, stage.start, anew)
        return Run(attack, {ROTATION: Sources(model, modules)}, stage.start, anew, names)

    plan, anew = [], list(accumulate(int(stage.start == "anew") for stage in stages))
    for value in ascending:
        runs = [
            found
            for stage, count in zip(stages, anew, strict=True)
            if (found := run(stage, value, count))
        ]
        plan.append(sorted(runs, key=lambda run: run.attack.iterations) if cheap_first else runs)
    first = plan[0] if plan else []
    if first and restarts > 1 and not any(run.attack.starts_at_random for run in first):
        raise SJRobustError(
            f"restarts is {restarts}, and none of the attacks starts at random: "
            "leave it out, or use pgd10"
        )
    if first and others and not any(others.keys() & {*run.seen, *run.sources} for run in first):
        raise SJRobustError(
            "none of the attacks takes the gradients of another model: leave "
            "transfer out, or use pgd10"
        )
    names = [run.attack.name for run in first]
    _check_distinct(names)
    return plan if names else []


def _check_distinct(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise SJRobustError(
            f"two attacks have the same name: {', '.join(names)}; evaluate them one at a time"
        )


def view_names(model: nn.Module, views: Sequence[View | str] | None) -> list[str] | None:
    """The given views by name, checked; None for the default. Raises SJRobustError for an ANN,
    which has none, and for none at all."""
    if views is None:
        return None
    if not isinstance(model, SpikingModel):
        raise SJRobustError(
            f"a {type(model).__name__} has its exact gradient and no other: leave views out"
        )
    return _parsed(views)


def _parsed(views: Sequence[View | str]) -> list[str]:
    if not views:
        raise SJRobustError("views is empty: name at least one, or leave it out for all 19")
    return [view_name(parse_view(view)) for view in views]
