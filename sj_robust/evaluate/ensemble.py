"""The ensemble over eps, attacks and gradient views: an image is robust only if it survives all of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sj_robust.attack import Attack
from sj_robust.evaluate.bench import Bench
from sj_robust.evaluate.journal import Journal
from sj_robust.evaluate.report import Accuracy, JointResult, RobustResult, ViewResult, eps_name
from sj_robust.progress import Bar


@dataclass
class Outcome:
    joint: list[JointResult]
    robust: list[RobustResult]
    broken_by: list[list[str | None]]


def attack_ensemble(
    bench: Bench, correct: Tensor, plan: list[list[Attack]], views: dict[str, nn.Module], journal: Journal, *,
    survivors_only: bool, seed: int, bar: Bar,
) -> Outcome:
    """Attack the images that are right as they are.

    `correct` bool [n]: clean outcome of each evaluated image. `plan`: for each eps, ascending, its attacks in order.
    `views`: the model as each view shows it, in order. `journal`: what is done already.
    The joint result is an intersection, so the order decides the cost and nothing else.
    """
    total, attackable = len(correct), correct.nonzero().flatten()
    broken_by: list[str | None] = [None] * total
    broken = torch.zeros(total, dtype=torch.bool)
    outcome = Outcome([], [], [])

    def accuracy(lost: Tensor) -> Accuracy:
        return Accuracy.of(int((correct & ~lost).sum()), total)

    for attacks in plan:
        carried = int(broken.sum())
        for attack in attacks:
            fresh = not bool(broken.any())  # then the survivors are everyone
            by_attack = torch.zeros(total, dtype=torch.bool)
            per_view = {}
            for view, seen in views.items():
                given = attackable[~broken[attackable]] if survivors_only else attackable
                bar.note(f"eps {eps_name(attack.eps)} {attack.name} {view}: {len(given)} images")
                work = attack.iterations * len(attackable) / max(1, len(given))
                search = partial(bench.broken, attack, seen, view, given, noise_seed(seed, attack, view), _advance(bar, work))
                hit, known = journal.broken(f"{eps_name(attack.eps)} {attack.name} {view}", given, bench.passes, search)
                if known or not len(given):
                    bar.advance(attack.iterations * len(attackable))
                fallen = given[hit]
                by_view = torch.zeros(total, dtype=torch.bool).index_fill_(0, fallen, True)
                for image in fallen[~broken[fallen]].tolist():
                    broken_by[image] = f"{attack.name} {view}"
                broken |= by_view
                by_attack |= by_view
                alone = accuracy(by_view) if len(given) == len(attackable) else None
                per_view[view] = ViewResult(attempted=len(given), broken=len(fallen), alone=alone)
            alone = accuracy(by_attack) if fresh or not survivors_only else None
            outcome.robust.append(RobustResult(eps=attack.eps, attack=attack.name, settings=attack.settings, per_view=per_view,
                                               joint=accuracy(broken), alone=alone))
        outcome.joint.append(JointResult(eps=attacks[0].eps, accuracy=accuracy(broken), carried=carried))
        outcome.broken_by.append(list(broken_by))
    return outcome


def noise_seed(seed: int, attack: Attack, view: str) -> int:
    """Each attack and view draws its own noise, whatever their order; the report records `seed` alone."""
    return (seed << 32) + zlib.crc32(f"{attack.name} {view}".encode())


def _advance(bar: Bar, work: float) -> Callable[[int], None]:
    return lambda images: bar.advance(images * work)
