"""The ensemble over eps, attacks and gradient views: an image is robust only if it survives all of
them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sj_robust.attack import Attack
from sj_robust.evaluation.adversarial import Keep
from sj_robust.evaluation.journal import Journal, UnitKey
from sj_robust.evaluation.judge import Judge, TimeUp
from sj_robust.evaluation.plan import Run
from sj_robust.evaluation.report import (
    Accuracy,
    JointResult,
    RobustResult,
    ViewResult,
    attempt,
    eps_name,
)
from sj_robust.progress import Bar

Search = Callable[[UnitKey, Run, nn.Module, Tensor], None]


@dataclass
class Outcome:
    """`pending`: images that a unit was to get and did not, over all units: 0 unless time ran
    out."""

    joint: list[JointResult] = field(default_factory=list)
    robust: list[RobustResult] = field(default_factory=list)
    broken_by: list[list[str | None]] = field(default_factory=list)
    pending: int = 0


def attack_ensemble(
    correct: Tensor,
    plan: list[list[Run]],
    journal: Journal,
    search: Search | None,
    *,
    survivors_only: bool,
    mine: Tensor | None = None,
) -> Outcome:
    """Attack the images that are right as they are, or only read off what `journal` has (`search`
    None).

    `correct` bool [n]: clean outcome of each evaluated image. `plan`: for each eps, ascending, its
    runs in order. `mine` bool [n]: the images that this process attacks, default all. `search(unit,
    run, seen, images)` fills the journal. The joint result is an intersection, so the order decides
    the cost and nothing else.
    """
    total, attackable = (
        len(correct),
        (correct if mine is None else correct & mine).nonzero().flatten(),
    )
    broken_by: list[str | None] = [None] * total
    broken = torch.zeros(total, dtype=torch.bool)
    outcome = Outcome()

    def accuracy(lost: Tensor) -> Accuracy:
        return Accuracy.of(int((correct & ~lost).sum()), total)

    for runs in plan:
        carried = int(broken.sum())
        for run in runs:
            attack, fresh = run.attack, not bool(broken.any())  # fresh: the survivors are everyone
            by_attack = torch.zeros(total, dtype=torch.bool)
            complete, per_view, cost = True, {}, [0.0, 0, 0]
            for view, seen in run.seen.items():
                given = attackable[~broken[attackable]] if survivors_only else attackable
                key = UnitKey(eps_name(attack.eps), attack.name, view)
                if search:
                    search(key, run, seen, given)
                unit, pending = journal.unit(key), len(journal.missing(key, given))
                outcome.pending += pending
                complete &= not pending
                fallen = given[torch.isin(given, torch.tensor(unit.fallen, dtype=given.dtype))]
                by_view = torch.zeros(total, dtype=torch.bool).index_fill_(0, fallen, True)
                for image in fallen[~broken[fallen]].tolist():
                    broken_by[image] = attempt(attack.name, view)
                broken |= by_view
                by_attack |= by_view
                measured = len(given) == len(attackable) and not pending and not run.from_best
                alone = accuracy(by_view) if measured else None
                per_view[view] = ViewResult(
                    attempted=len(given) - pending,
                    broken=len(fallen),
                    alone=alone,
                    seconds=unit.seconds,
                )
                cost = [cost[0] + unit.seconds, cost[1] + unit.forward, cost[2] + unit.backward]
            alone = (
                accuracy(by_attack)
                if complete and not run.from_best and (fresh or not survivors_only)
                else None
            )
            outcome.robust.append(
                RobustResult(
                    eps=attack.eps,
                    attack=attack.name,
                    settings=run.settings,
                    per_view=per_view,
                    joint=accuracy(broken),
                    alone=alone,
                    seconds=cost[0],
                    forward_images=int(cost[1]),
                    backward_images=int(cost[2]),
                )
            )
        outcome.joint.append(
            JointResult(eps=runs[0].attack.eps, accuracy=accuracy(broken), carried=carried)
        )
        outcome.broken_by.append(list(broken_by))
    return outcome


def searcher(
    judge: Judge,
    journal: Journal,
    bar: Bar,
    *,
    seed: int,
    for_one: int,
    survivors_only: bool,
    keep: Keep | None = None,
) -> Search:
    """The search that runs the attacks on `judge`, until its time is up; `keep` gets what they
    find. `for_one`: passes for an image that survives them all."""
    starts, later = journal.starts, for_one

    def search(key: UnitKey, run: Run, seen: nn.Module, given: Tensor) -> None:
        nonlocal later
        attack, missing = run.attack, journal.missing(key, given)
        later -= attack.passes
        bar.note(f"eps {' '.join(key)}: {len(given)} images")
        bar.skip(attack.passes * (len(given) - len(missing)))
        bar.left(attack.passes * len(missing) + later * len(given))  # should all survive this one
        noise = noise_seed(seed, attack, key.view)

        def batch(chosen: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Callable[[], None]]:
            start = starts.of(chosen, x, attack.eps, run.anew) if starts and run.from_best else None
            x_adv = judge.attacked(attack, seen, key.view, chosen, x, y, noise, start)
            hit, margins = judge.decide(x_adv, y)
            if keep and hit.any():
                keep(key.eps, chosen[hit], x_adv[hit.to(x_adv.device)])
            bar.advance(attack.passes * len(chosen))

            def note() -> None:
                if starts:
                    left = ~hit if survivors_only else torch.ones_like(hit)
                    starts.drop(chosen[~left])
                    starts.offer(
                        chosen[left], x[left], x_adv[left], margins[left], attack.eps, run.anew
                    )

            return hit, note

        with suppress(TimeUp):
            journal.work(key, judge.batches(missing), judge.passes, batch)

    return search


def noise_seed(seed: int, attack: Attack, view: str) -> int:
    """Each attack and view draws its own noise, whatever their order; the report records `seed`
    alone."""
    return (seed << 32) + zlib.crc32(f"{attack.name} {view}".encode())
