"""What a report says in words: what was tried and what was not, and what its checks amount to. No
torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

EXACT = "exact"  # the one view of a network that is differentiable as it is
BLACK_BOX = "black-box"  # of an attack that takes no gradients
TRANSFER = "transfer"  # in a protocol: gradients of the other models that are given
ROTATION = "rotation"  # of an attack that takes the gradients of all its views in turn

Status = Literal["pass", "warn", "fail", "not run", "too few"]
# the worst first: what was not run may hide a failure, and so may what could not be told
WORST_FIRST: tuple[Status, ...] = ("fail", "not run", "warn", "too few", "pass")
OPENINGS: dict[Status, str] = {
    "fail": "Do not trust these robust accuracies",
    "not run": "Not known to be complete",
    "warn": "With reservations",
    "too few": "Too few images to tell",
    "pass": "No sign of masked gradients",
}
# Reports of before there was "too few" said more than checks can know. Two of their checks could
# not fail; new ones have neither.
OLD_OPENINGS = {
    "fail": "Do not trust",
    "not run": "Not known to be",
    "warn": "To be trusted with care",
    "pass": "No sign of masked gradients",
}
UNCONDITIONAL = ("inside the ball", "views")

_TELLING = {
    "SA-PGD": r"sapgd\d+-.*",
    "targeted APGD": r"apgd\d+-t\d?",
    "rotating": r"rotating\d+",
    "Square": r"square\d+",
}


def gradient_views(views: Sequence[str]) -> list[str]:
    """Those of the recorded `views` that are gradients of the network itself: neither another
    model's nor none."""
    return [view for view in views if view != BLACK_BOX and not view.startswith(f"{TRANSFER}:")]


def views_name(views: Sequence[str]) -> str:
    """How many gradients of the network itself: "6 views", "view PCW:1", "exact gradient", "no
    gradients"."""
    own = gradient_views(views)
    if own == [EXACT]:
        return "exact gradient"
    return f"{len(own)} views" if len(own) > 1 else f"view {own[0]}" if own else "no gradients"


def through(views: Sequence[str]) -> str:
    """The gradients that attacks took, for a sentence."""
    own = gradient_views(views)
    others = [
        view.removeprefix(f"{TRANSFER}:") for view in views if view.startswith(f"{TRANSFER}:")
    ]
    name = (
        "the exact gradient"
        if own == [EXACT]
        else f"the gradient view {own[0]}"
        if len(own) == 1
        else f"{len(own)} gradient views"
    )
    transfer = f"gradients of {', '.join(others)}" if others else ""
    taken = " and ".join([*([name] if own else []), *([transfer] if others else [])])
    return f"through {taken}" if taken else "without gradients"


def not_tried(attacks: Sequence[str], views: Sequence[str]) -> list[str]:
    """What is known to find more on some networks, and did not run."""
    parts = [part for attack in attacks for part in attack.split("+")]
    missing = [
        what
        for what, name in _TELLING.items()
        if not any(re.fullmatch(name, part) for part in parts)
    ]
    return missing + ["transfer"] * (not any(view.startswith(f"{TRANSFER}:") for view in views))


def worst(checks: Sequence[Any]) -> Status:
    """The worst status among checks, of which there is at least one."""
    return next(status for status in WORST_FIRST if any(check.status == status for check in checks))


def verdict(
    checks: Sequence[Any],
    attacks: Sequence[str],
    views: Sequence[str],
    complete: bool,
    *,
    alone: bool = True,
) -> str:
    """What the checks found, the worst of it first, and what was tried and what was not: no more
    than that can be known. `alone`: no table of the checks stands beside it."""
    by = {status: [check for check in checks if check.status == status] for status in WORST_FIRST}
    separator = "; " if alone else ", "

    def named(check: Any) -> str:
        return f"{check.name}: {check.found}" if alone else str(check.name)

    sentences = [
        f"{OPENINGS[status]}: {separator.join(map(named, by[status]))}."
        for status in WORST_FIRST[:-1]
        if by[status]
    ]
    passed = len(by["pass"])
    if not sentences:
        sentences = [f"{OPENINGS['pass']} in {passed} checks."]
    elif passed:
        sentences.append(f"{passed} other check{'s' if passed > 1 else ''} passed.")
    sentences.append(f"Tried: {', '.join(attacks)} {through(views)}.")
    if missing := not_tried(attacks, views):
        sentences.append(f"Not tried: {', '.join(missing)}.")
    sentences.append("The robust accuracies are upper bounds.")
    if not complete:
        sentences.append("The evaluation was cut short: images not attacked count as robust.")
    return " ".join(sentences)


def of_old(report: Any) -> bool:
    """Whether the checks of a report are those of before, some of which passed whatever
    happened."""
    return any(check.name == UNCONDITIONAL[0] for check in report.checks)


def telling_checks(report: Any) -> list[Any]:
    """The checks of a report that could have failed."""
    return [
        check for check in report.checks if not (of_old(report) and check.name in UNCONDITIONAL)
    ]


def shown_verdict(report: Any, *, alone: bool = True) -> str | None:
    """The verdict of a report as a reader is to meet it, said anew from its checks: an old one
    promised too much, and one that was edited may promise anything. None where no check could have
    failed."""
    if not (checks := telling_checks(report)):
        return None
    settings = report.settings
    return verdict(checks, settings.attacks, settings.views, report.stopped is None, alone=alone)


def chance(clean: Any, classes: int | None) -> list[str]:
    """That a clean accuracy may be that of guessing; nothing where it is clearly above."""
    if not classes or clean.low > 1 / classes:
        return []
    return [
        f"The clean accuracy is not clearly above chance, 1 in {classes}: what attacks leave of it"
        " says nothing of robustness."
    ]


def first_only(
    evaluated: int,
    size: int,
    were: str = "evaluated; the intervals cover that sampling error alone",
) -> list[str]:
    """That a part of the images was taken; nothing where it was all of them."""
    return [f"Only the first {evaluated} of {size} images were {were}."] if evaluated < size else []


RADII = ("eps", "alpha", "step_size")  # settings that are written as eps is


def eps_name(eps: float) -> str:
    """8/255 for 0.03137…, else the number."""
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{eps:g}"


def attempt(attack: str, view: str) -> str:
    """How `PerImage.broken_by` names an attack through a view."""
    return f"{attack} {view}"


def attempt_view(by: str) -> str:
    """The view of such a name; those of attacks have no spaces."""
    return by.partition(" ")[2]


def interval_name(value: float, low: float, high: float) -> str:
    """A fraction with its interval, in percent: 81.2 % [77.5, 84.4]."""
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def energy_name(microjoules: float) -> str:
    """An energy in µJ with one decimal, or two digits where it is smaller than 1."""
    return f"{microjoules:.1f}" if microjoules >= 1 or microjoules == 0 else f"{microjoules:.2g}"
