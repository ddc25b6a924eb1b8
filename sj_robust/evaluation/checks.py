"""Reliability checks: signs that a robust accuracy is high because the attacks failed, not because
the model is robust.

What to look for is from Athalye et al. (ICML 2018), Carlini et al. (arXiv 1902.06705) and Croce &
Hein (ICML 2020). The checks run on a part of the evaluated images; their thresholds are rules of
thumb, and every number they rest on is in the report. None passes whatever happens, none repeats a
weaker form of what the evaluation ran, and one with too few images to tell says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.attack import PGD, Attack, GradientView, Square, UniformNoise, parse_attack
from sj_robust.attack.loss import input_gradient, objective
from sj_robust.attack.mode import attack_mode
from sj_robust.attack.view import forget
from sj_robust.evaluation.ensemble import Outcome
from sj_robust.evaluation.judge import Judge, TimeUp
from sj_robust.evaluation.plan import Run
from sj_robust.evaluation.report import Check, attempt, eps_name, interval_name, wilson
from sj_robust.evaluation.words import BLACK_BOX, EXACT, Status, gradient_views
from sj_robust.model import SpikingModel
from sj_robust.neuron import AdaptiveSharpness

Finding = tuple[Status, str, dict[str, Any]]
SURVIVORS = 24  # survivors that the dear checks look at
TELLING = 16  # of which none fell: then it is at most a fifth of all, at 95 %
UNTOLD = 0.2  # a share that may be larger than this is not known to be small
WARN, FAIL = 0.02, 0.1  # of the survivors that one more attack breaks
# of the images that noise breaks; of those left by gradients that something else breaks
NOISY, BEYOND = 0.1, 0.1
HUGE = {"linf": 64 / 255, "l2": 8.0}  # radii at which nothing can be robust
# What finds most where it was not tried, the best first, at a cost that 24 images allow. The
# shorter ones are for few classes.
FURTHER = {
    "linf": ("sapgd100-dlr", "apgd20-t", "sapgd100-ce"),
    "l2": ("apgd100-dlr", "apgd20-t", "apgd100-ce"),
}


@dataclass
class Subject:
    """What is checked: `images` int64 are right as they are, `standing` survived the evaluation at
    `eps`, where `left` of all images did, as a fraction. `runs` is what ran there."""

    judge: Judge
    views: dict[str, nn.Module]  # those that the evaluation took gradients through
    runs: Sequence[Run]
    images: Tensor
    standing: Tensor
    left: float
    eps: float
    norm: Any
    seed: int
    classes: int

    @property
    def main(self) -> nn.Module:
        return next(iter(self.views.values()))

    def broken(self, attack: Attack, seen: nn.Module, images: Tensor) -> int:
        """How many of `images` fall to the attack."""
        return sum(
            int(self.judge.broken(attack, seen, "check", *batch, self.seed).sum())
            for batch in self.judge.batches(images)
        )

    def logits(self) -> Tensor:
        """Of all checked images, batch by batch."""
        with torch.no_grad():
            return torch.cat([self.judge.model(x) for _, x, _ in self.judge.batches(self.images)])


def run_checks(
    judge: Judge,
    plan: list[list[Run]],
    outcome: Outcome,
    correct: Tensor,
    *,
    images: int,
    seed: int,
    classes: int,
) -> list[Check]:
    """All checks, on the first `images` images that are right as they are, further attacks on
    survivors of all. Nothing to check where nothing was attacked."""
    taken = {view: seen for runs in plan for run in runs for view, seen in run.gradients.items()}
    views = {view: taken[view] for view in gradient_views(list(taken))}
    chosen = correct.nonzero().flatten()[:images]
    if not plan or not views or not len(chosen):
        return []
    standing = [
        (correct & torch.tensor([by is None for by in broken])).nonzero().flatten()
        for broken in outcome.broken_by
    ]
    # Where all is broken no further attack can tell anything: the largest eps that leaves enough.
    at = max((e for e in range(len(plan)) if len(standing[e]) >= TELLING), default=0)
    attack = plan[at][0].attack
    subject = Subject(
        judge,
        views,
        plan[at],
        chosen,
        standing[at][:SURVIVORS],
        len(standing[at]) / len(correct),
        attack.eps,
        attack.norm,
        seed,
        classes,
    )
    checks: dict[str, Callable[[], Finding]] = {
        "same result twice": lambda: _repeatable(subject),
        "independent of the batch": lambda: _alone(subject),
        "gradients": lambda: _gradients(subject),
        "loss rises": lambda: _rises(subject),
        "noise": lambda: _noise(subject),
        "large eps": lambda: _huge(subject),
    }
    if len(subject.standing):  # else there is nothing that one more attack could break
        checks |= _further_attacks(subject)
    if after := _after_gradients(subject.runs):
        before = standing[at - 1] if at else correct.nonzero().flatten()
        last = [outcome.broken_by[at][image] for image in before.tolist()]
        if any(by is None or by in after for by in last):  # gradients have left some
            checks["beyond gradients"] = lambda: _beyond(subject, after, last)
    found = []
    for name, check in checks.items():
        try:
            status, words, numbers = check()
        except TimeUp:
            status, words, numbers = "not run", "the time was up", {}
        found.append(Check(name=name, status=status, found=words, numbers=numbers))
    return found


def _grade(count: int, total: int, warn: float, fail: float) -> Status:
    """By the share `count` of `total` and its Wilson interval: "fail" where it is surely above
    `fail`."""
    low, high = wilson(count, total) if total else (0.0, 1.0)
    if low > fail:
        return "fail"
    if count > warn * total:
        return "warn"
    return "pass" if high <= UNTOLD else "too few"


def _share(count: int, total: int) -> str:
    return interval_name(count / max(1, total), *wilson(count, max(1, total)))


def _repeatable(subject: Subject) -> Finding:
    first, second = subject.logits(), subject.logits()
    flips, change = (
        int((first.argmax(1) != second.argmax(1)).sum()),
        float((first - second).abs().max()),
    )
    status: Status = (
        "fail" if flips else "warn" if change > 1e-4 * float(first.abs().max()) else "pass"
    )
    words = (
        f"{flips} of {len(first)} predictions change between two runs, logits by up to {change:.2g}"
    )
    return status, words, {"flips": flips, "change": change}


@torch.no_grad()
def _alone(subject: Subject) -> Finding:
    """Batch statistics in use (a model that stays in training mode) tie an image's logits to its
    batch. Rounding may flip single spikes, so that small differences are no sign."""
    _, x, _ = next(subject.judge.batches(subject.images[:16]))
    together, alone = (
        subject.judge.model(x),
        torch.cat([subject.judge.model(image) for image in x.split(1)]),
    )
    relative = float((together - alone).abs().mean() / together.std().clamp_min(1e-12))
    flips = int((together.argmax(1) != alone.argmax(1)).sum())
    words = (
        f"logits alone and in a batch differ by {100 * relative:.2g} % of their spread, {flips} of"
        f" {len(x)} predictions change"
    )
    status: Status = "fail" if relative > 0.1 else "warn" if relative > 0.02 else "pass"
    return status, words, {"relative_difference": relative, "flips": flips}


def _gradients(subject: Subject) -> Finding:
    dead = dict.fromkeys(subject.views, 0)
    for view, seen in subject.views.items():
        for _, x, y in subject.judge.batches(subject.images):
            forget(seen)
            with attack_mode(seen, x.device):
                gradient, _, _ = input_gradient(seen, objective("ce", seen, x, y), x)
            dead[view] += int((gradient.flatten(1).abs().amax(1) == 0).sum())
    share = {view: count / len(subject.images) for view, count in dead.items()}
    best, worst = min(share, key=share.__getitem__), max(share, key=share.__getitem__)
    words = f"images without any gradient: {100 * share[best]:.0f} % through {best}"
    if worst != best:
        words += f", {100 * share[worst]:.0f} % through {worst}"
    return (
        _grade(dead[best], len(subject.images), 0.01, 0.1),
        words,
        {"images": len(subject.images), "share_without_gradient": share},
    )


def _rises(subject: Subject) -> Finding:
    attack, seen = (
        PGD(eps=subject.eps, norm=subject.norm, random_start=False, keep="last"),
        subject.main,
    )
    before, after = [], []
    for _, x, y in subject.judge.batches(subject.images):
        x_adv = attack(seen, x, y)
        with torch.no_grad():
            goal = objective("ce", seen, x, y)
            before.append(goal(seen(x)))
            after.append(goal(seen(x_adv)))
    stuck = int((torch.cat(after) <= torch.cat(before)).sum())
    share = stuck / len(subject.images)
    means = [float(torch.cat(values).mean()) for values in (before, after)]
    words = (
        f"PGD raises the loss from {means[0]:.3g} to {means[1]:.3g}; it does not rise on"
        f" {100 * share:.0f} % of the images"
    )
    return (
        _grade(stuck, len(subject.images), 0.05, 0.25),
        words,
        {"eps": subject.eps, "loss": means, "share_not_rising": share},
    )


def _noise(subject: Subject) -> Finding:
    noise = subject.broken(
        UniformNoise(eps=subject.eps, norm=subject.norm), subject.judge.model, subject.images
    )
    gradient = subject.broken(PGD(eps=subject.eps, norm=subject.norm), subject.main, subject.images)
    # many are a sign of a rough surface, on which gradients mislead; as many as gradients break, of
    # gradients that did
    rough = _grade(noise, len(subject.images), 1.0, NOISY) == "fail"
    status: Status = (
        "fail"
        if noise > 2 and noise >= gradient
        else "warn"
        if rough
        else _grade(noise, len(subject.images), 1.0, 1.0)
    )
    words = (
        f"at {eps_name(subject.eps)} ten random points break {noise} of {len(subject.images)}"
        f" images, PGD-10 {gradient}"
    )
    return (
        status,
        words,
        {"eps": subject.eps, "images": len(subject.images), "noise": noise, "pgd": gradient},
    )


def _huge(subject: Subject) -> Finding:
    left, eps = subject.images, HUGE[subject.norm]
    for seen in list(subject.views.values())[:4]:
        attack = PGD(eps=eps, norm=subject.norm, steps=20)
        kept = [
            batch[0][~subject.judge.broken(attack, seen, "check", *batch, subject.seed)]
            for batch in subject.judge.batches(left)
        ]
        left = torch.cat(kept) if kept else left
    share = 100 * len(left) / len(subject.images)
    words = f"at {eps_name(eps)} {share:.0f} % of {len(subject.images)} images survive PGD-20"
    return (
        _grade(len(left), len(subject.images), WARN, FAIL),
        words,
        {"eps": eps, "images": len(subject.images), "survivors": len(left)},
    )


def _further_attacks(subject: Subject) -> dict[str, Callable[[], Finding]]:
    """Attacks on survivors, by name of their check: more of what ran, and what did not run."""
    steps, seen = _more_steps(subject)
    found: dict[str, Callable[[], Finding]] = {
        "more steps": lambda: _further(subject, steps, *seen)
    }
    if (attack := _not_run(subject)) is not None:
        model = subject.judge.model
        through = (
            ("ASSG", GradientView(model, AdaptiveSharpness()))
            if isinstance(model, SpikingModel)
            else (EXACT, model)
        )
        found["another attack"] = lambda: _further(subject, attack, *through)
    square = Square(eps=subject.eps, norm=subject.norm, queries=1000)
    if not any(
        run.attack.black_box and run.attack.iterations >= square.iterations for run in subject.runs
    ):
        found["black box"] = lambda: _further(subject, square, BLACK_BOX, subject.judge.model)
    return found


def _more_steps(subject: Subject) -> tuple[Attack, tuple[str, nn.Module]]:
    """What made most steps, with twice as many, at least 100, and another start; and its first
    view."""
    most = PGD(eps=subject.eps, norm=subject.norm, steps=1), next(iter(subject.views.items()))
    for run in subject.runs:
        steps = getattr(run.attack, "steps", 0)
        # of targeted ones each target costs as much
        if (own := gradient_views(list(run.seen))) and run.attack.iterations == steps >= most[
            0
        ].steps:
            most = run.attack, (own[0], run.seen[own[0]])  # type: ignore[assignment]
    attack, seen = most
    return replace(attack, steps=max(100, 2 * attack.steps), restarts=1), seen


def _not_run(subject: Subject) -> Attack | None:
    """The first of FURTHER that the evaluation did not run with at least as many steps, through
    ASSG where the network spikes."""
    usual = EXACT if not isinstance(subject.judge.model, SpikingModel) else "ASSG"
    covered = {
        (run.attack.family, run.attack.iterations) for run in subject.runs if usual in run.gradients
    }
    for name in FURTHER[subject.norm]:
        attack = parse_attack(name, subject.eps, subject.norm)
        if subject.classes >= attack.least_classes and not any(
            family == attack.family and iterations >= attack.iterations
            for family, iterations in covered
        ):
            return attack
    return None


def _further(subject: Subject, attack: Attack, view: str, seen: nn.Module) -> Finding:
    """One more attack on survivors: the share of them that falls, and the points of accuracy, of
    all images, that this would take."""
    total = len(subject.standing)
    fell = subject.broken(attack, seen, subject.standing)
    points = 100 * subject.left * fell / total
    through = "" if view == BLACK_BOX else f" through {view}"
    words = (
        f"{attack.name}{through} breaks {fell} of {total} survivors at {eps_name(subject.eps)},"
        f" {_share(fell, total)}: {points:.1f} points of accuracy"
    )
    return (
        _grade(fell, total, WARN, FAIL),
        words,
        {"eps": subject.eps, "survivors": total, "broken": fell, "points": points},
    )


def _after_gradients(runs: Sequence[Run]) -> dict[str, Attack]:
    """The transfer and the attacks with black-box parts that came when the network's own gradients
    alone had given up, by the name of the attempt."""
    units = [(run, view) for run in runs for view in run.seen]
    own = [
        at
        for at, (run, view) in enumerate(units)
        if run.attack.gradients_alone and gradient_views([view])
    ]
    return {
        attempt(run.attack.name, view): run.attack
        for run, view in units[max(own, default=len(units)) + 1 :]
    }


def _beyond(
    subject: Subject, after: Mapping[str, Attack], broken_by: Sequence[str | None]
) -> Finding:
    """What `after` broke of the images that gradients had left. These finds are in the figures
    already, so that this is never more than a warning: where gradients stall, other searches may
    find more yet."""
    fell, left = sum(by in after for by in broken_by), sum(by is None for by in broken_by)
    total = fell + left
    attacks = " and ".join(dict.fromkeys(attack.name for attack in after.values()))
    words = (
        f"at {eps_name(subject.eps)} {attacks} broke {fell} of {total} images left by the network's"
        f" own gradients, {_share(fell, total)}"
    )
    return (
        _grade(fell, total, BEYOND, 1.0),
        words,
        {"eps": subject.eps, "left_by_gradients": total, "broken": fell},
    )
