"""Reliability checks: signs that a robust accuracy is high because the attacks failed, not because the model is robust.

What to look for is from Athalye et al. (ICML 2018), Carlini et al. (arXiv 1902.06705) and Croce & Hein (ICML 2020). The checks run
on a part of the evaluated images; their thresholds are rules of thumb, and every number they rest on is in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sj_robust.attack import PGD, SAPGD, Attack, GradientView, Square, UniformNoise
from sj_robust.attack.loss import input_gradient, objective
from sj_robust.attack.mode import attack_mode
from sj_robust.attack.view import forget
from sj_robust.evaluate.bench import Bench, TimeUp
from sj_robust.evaluate.ensemble import Outcome
from sj_robust.evaluate.protocol import BLACK_BOX, EXACT, TRANSFER, Run
from sj_robust.evaluate.report import Check, eps_name
from sj_robust.model import SpikingModel
from sj_robust.neuron import AdaptiveSharpness

Status = Literal["pass", "warn", "fail", "not run"]
Finding = tuple[Status, str, dict[str, Any]]
SURVIVORS = 24  # survivors that the dear checks look at
FEW_POINTS, MANY_POINTS = 2.0, 5.0  # of accuracy lost to one more attack
HUGE = {"linf": 64 / 255, "l2": 8.0}  # radii at which nothing can be robust


@dataclass
class Subject:
    """What is checked: `images` int64 are right as they are, `standing` those of them that survived the evaluation at `eps`."""

    bench: Bench
    views: dict[str, nn.Module]  # those that the evaluation took gradients through
    images: Tensor
    standing: Tensor
    eps: float
    norm: Any
    seed: int

    @property
    def main(self) -> nn.Module:
        return next(iter(self.views.values()))

    def broken(self, attack: Attack, seen: nn.Module, images: Tensor) -> int:
        """How many of `images` fall to the attack."""
        return sum(int(self.bench.broken(attack, seen, "check", *batch, self.seed).sum()) for batch in self.bench.batches(images))

    def logits(self) -> Tensor:
        """Of all checked images, batch by batch."""
        with torch.no_grad():
            return torch.cat([self.bench.model(x) for _, x, _ in self.bench.batches(self.images)])


def run_checks(bench: Bench, plan: list[list[Run]], outcome: Outcome, correct: Tensor, *, images: int, seed: int) -> list[Check]:
    """All checks, on the first `images` images that are right as they are. Nothing to check where nothing was attacked."""
    views = {view: seen for runs in plan for run in runs for view, seen in run.seen.items()
             if view != BLACK_BOX and not view.startswith(TRANSFER)}
    chosen = correct.nonzero().flatten()[:images]
    if not plan or not views or not len(chosen):
        return []
    standing = [chosen[torch.tensor([broken[image] is None for image in chosen.tolist()])] for broken in outcome.broken_by]
    # Where all is broken no further attack can tell anything: the largest eps that leaves a third of the survivors wanted.
    at = max((e for e in range(len(plan)) if len(standing[e]) * 3 >= min(SURVIVORS, len(chosen))), default=0)
    attack = plan[at][0].attack
    subject = Subject(bench, views, chosen, standing[at][:SURVIVORS], attack.eps, attack.norm, seed)
    share = len(standing[at]) / max(1, len(subject.standing)) / len(chosen) * 100  # points of accuracy per surviving image looked at
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("same result twice", lambda: _repeatable(subject)),
        ("independent of the batch", lambda: _alone(subject)),
        ("inside the ball", lambda: _inside(outcome)),
        ("gradients", lambda: _gradients(subject)),
        ("loss rises", lambda: _rises(subject)),
        ("noise", lambda: _noise(subject)),
        ("large eps", lambda: _huge(subject)),
        ("more steps", lambda: _further(subject, share, "PGD with 100 steps",
                                        PGD(eps=subject.eps, norm=subject.norm, steps=100), subject.main)),
        ("adaptive attack", lambda: _further(subject, share, *_adaptive(subject))),
        ("black box", lambda: _black_box(subject, share, outcome)),
        ("views", lambda: _views(outcome)),
    ]
    found = []
    for name, check in checks:
        try:
            status, words, numbers = check()
        except TimeUp:
            status, words, numbers = "not run", "the time was up", {}
        found.append(Check(name=name, status=status, found=words, numbers=numbers))
    return found


def verdict(checks: Sequence[Check], complete: bool) -> str:
    """One sentence: can the numbers be trusted, and why."""
    by = {status: [check for check in checks if check.status == status] for status in ("fail", "warn", "not run")}

    def listed(status: str) -> str:
        return "; ".join(f"{check.name}: {check.found}" for check in by[status])

    cut = "" if complete else " The evaluation was cut short: images not attacked count as robust."
    if by["fail"]:
        return f"Do not trust these robust accuracies: {listed('fail')}.{cut}"
    if by["not run"]:
        return f"Not known to be trustworthy: {len(by['not run'])} of {len(checks)} checks were not run.{cut}"
    if by["warn"]:
        return f"To be trusted with care: {listed('warn')}.{cut}"
    return (f"No sign of masked gradients in {len(checks)} checks: the robust accuracies can be trusted as upper bounds, as tight as the "
            f"attacks that were run.{cut}")


def _grade(value: float, warn: float, fail: float) -> Status:
    return "fail" if value > fail else "warn" if value > warn else "pass"


def _repeatable(subject: Subject) -> Finding:
    first, second = subject.logits(), subject.logits()
    flips, change = int((first.argmax(1) != second.argmax(1)).sum()), float((first - second).abs().max())
    status: Status = "fail" if flips else "warn" if change > 1e-4 * float(first.abs().max()) else "pass"
    words = f"{flips} of {len(first)} predictions change between two runs, logits by up to {change:.2g}"
    return status, words, {"flips": flips, "change": change}


@torch.no_grad()
def _alone(subject: Subject) -> Finding:
    """Batch statistics in use (a model that stays in training mode) tie an image's logits to its batch. Rounding may flip single
    spikes, so that small differences are no sign."""
    _, x, _ = next(subject.bench.batches(subject.images[:16]))
    together, alone = subject.bench.model(x), torch.cat([subject.bench.model(image) for image in x.split(1)])
    relative = float((together - alone).abs().mean() / together.std().clamp_min(1e-12))
    flips = int((together.argmax(1) != alone.argmax(1)).sum())
    words = f"logits alone and in a batch differ by {100 * relative:.2g} % of their spread, {flips} of {len(x)} predictions change"
    return _grade(relative, 0.02, 0.1), words, {"relative_difference": relative, "flips": flips}


def _inside(outcome: Outcome) -> Finding:
    tried = sum(found.attempted for result in outcome.robust for found in result.per_view.values())
    # A violation ends the evaluation with an error (bench.check_ball), so that none can be in a report.
    return "pass", f"0 of {tried} adversarial images left the eps ball or [0, 1]", {"images": tried, "violations": 0}


def _gradients(subject: Subject) -> Finding:
    dead = dict.fromkeys(subject.views, 0)
    for view, seen in subject.views.items():
        for _, x, y in subject.bench.batches(subject.images):
            forget(seen)
            with attack_mode(seen, x.device):
                gradient, _, _ = input_gradient(seen, objective("ce", seen, x, y), x)
            dead[view] += int((gradient.flatten(1).abs().amax(1) == 0).sum())
    share = {view: count / len(subject.images) for view, count in dead.items()}
    best, worst = min(share, key=share.__getitem__), max(share, key=share.__getitem__)
    words = f"images without any gradient: {100 * share[best]:.0f} % through {best}"
    if worst != best:
        words += f", {100 * share[worst]:.0f} % through {worst}"
    return _grade(share[best], 0.01, 0.1), words, {"images": len(subject.images), "share_without_gradient": share}


def _rises(subject: Subject) -> Finding:
    attack, seen = PGD(eps=subject.eps, norm=subject.norm, random_start=False, keep="last"), subject.main
    before, after = [], []
    for _, x, y in subject.bench.batches(subject.images):
        x_adv = attack(seen, x, y)
        with torch.no_grad():
            goal = objective("ce", seen, x, y)
            before.append(goal(seen(x)))
            after.append(goal(seen(x_adv)))
    share = float((torch.cat(after) <= torch.cat(before)).float().mean())
    means = [float(torch.cat(values).mean()) for values in (before, after)]
    words = f"PGD raises the loss from {means[0]:.3g} to {means[1]:.3g}; it does not rise on {100 * share:.0f} % of the images"
    return _grade(share, 0.05, 0.25), words, {"eps": subject.eps, "loss": means, "share_not_rising": share}


def _noise(subject: Subject) -> Finding:
    noise = subject.broken(UniformNoise(eps=subject.eps, norm=subject.norm), subject.bench.model, subject.images)
    gradient = subject.broken(PGD(eps=subject.eps, norm=subject.norm), subject.main, subject.images)
    status: Status = "fail" if noise > 2 and noise >= gradient else "warn" if noise > 2 and noise >= gradient / 2 else "pass"
    words = f"at {eps_name(subject.eps)} ten random points break {noise} of {len(subject.images)} images, PGD-10 {gradient}"
    return status, words, {"eps": subject.eps, "images": len(subject.images), "noise": noise, "pgd": gradient}


def _huge(subject: Subject) -> Finding:
    left, eps = subject.images, HUGE[subject.norm]
    for seen in list(subject.views.values())[:4]:
        attack = PGD(eps=eps, norm=subject.norm, steps=20)
        kept = [batch[0][~subject.bench.broken(attack, seen, "check", *batch, subject.seed)] for batch in subject.bench.batches(left)]
        left = torch.cat(kept) if kept else left
    share = 100 * len(left) / len(subject.images)
    words = f"at {eps_name(eps)} {share:.0f} % of {len(subject.images)} images survive PGD-20"
    return _grade(share, FEW_POINTS, 10.0), words, {"eps": eps, "images": len(subject.images), "survivors": len(left)}


def _adaptive(subject: Subject) -> tuple[str, Attack, nn.Module]:
    """What the evaluation may have missed: for a spiking network adaptive surrogates, for others the other loss."""
    model, l2 = subject.bench.model, subject.norm == "l2"
    seen = GradientView(model, AdaptiveSharpness()) if isinstance(model, SpikingModel) else model
    few = _classes(subject) < 3
    attack: Attack = PGD(eps=subject.eps, norm=subject.norm, steps=50, loss="ce" if few else "dlr") if l2 else SAPGD(
        eps=subject.eps, steps=50, loss="ce" if few else "dlr")
    return f"{attack.name} through {'ASSG' if seen is not model else EXACT}", attack, seen


@torch.no_grad()
def _classes(subject: Subject) -> int:
    return int(subject.bench.model(next(subject.bench.batches(subject.images[:1]))[1]).shape[1])


def _further(subject: Subject, share: float, what: str, attack: Attack, seen: nn.Module) -> Finding:
    """One more attack on survivors: the points of accuracy that it takes."""
    fell = subject.broken(attack, seen, subject.standing)
    points = fell * share
    words = f"{what} breaks {fell} of {len(subject.standing)} survivors at {eps_name(subject.eps)}, {points:.1f} points of accuracy"
    return _grade(points, FEW_POINTS, MANY_POINTS), words, {"eps": subject.eps, "survivors": len(subject.standing), "broken": fell,
                                                            "points": points}


def _black_box(subject: Subject, share: float, outcome: Outcome) -> Finding:
    """Square on survivors, and what black-box attacks and transfer found in the evaluation after gradients had given up."""
    status, words, numbers = _further(subject, share, "Square with 300 queries",
                                      Square(eps=subject.eps, norm=subject.norm, queries=300), subject.bench.model)
    alone = [sum(by is not None and (by.endswith(BLACK_BOX) or f" {TRANSFER}:" in by) for by in broken) for broken in outcome.broken_by]
    most = 100 * max(alone, default=0) / max(1, len(outcome.broken_by[0]) if outcome.broken_by else 1)
    grades: list[Status] = ["pass", "warn", "fail"]
    worst = max(status, _grade(most, FEW_POINTS, MANY_POINTS), key=grades.index)
    return worst, f"{words}; in the evaluation only black-box attacks or transfer broke {max(alone, default=0)} images", {
        **numbers, "only_black_box": alone}


def _views(outcome: Outcome) -> Finding:
    """What each view broke first: with survivors only, what it added to the views before it."""
    broken = outcome.broken_by[-1]
    counts = Counter(by.split(" ", 1)[1] for by in broken if by)
    total = sum(counts.values())
    shares = ", ".join(f"{view} {100 * count / total:.0f} %" for view, count in counts.most_common(4))
    return "pass", f"first to break an image: {shares or 'none'}", {"first_to_break": dict(counts.most_common())}
