"""Taking over what an earlier report found: 64 images tonight, the other 936 tomorrow.

An image's outcome depends on the model, the attacks, the seed and the image alone, not on its
batch, so it need not be found twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.identity import differing, of_report
from sj_robust.evaluation.journal import Unit, UnitKey, Units
from sj_robust.evaluation.options import Options
from sj_robust.evaluation.plan import Run
from sj_robust.evaluation.protocol import Protocol
from sj_robust.evaluation.report import Report, attempt, eps_name

EARLIER = "the earlier report (of --extend, or in the file of --out)"
_ANEW = "choose another file, or remove it"


def check_same(
    report: Report,
    options: Options,
    protocol: Protocol | None,
    identity: Mapping[str, Any],
    total: int,
) -> None:
    """Raise SJRobustError, saying what differs, unless model, data, attacks, views and seed of this
    evaluation, on `total` images, are those of the report, and nothing in it would be lost."""
    named = protocol and str(protocol)
    if report.settings.protocol != named:
        raise SJRobustError(
            f"{EARLIER} is under the protocol {report.settings.protocol or 'none'}, this evaluation"
            f" under {named or 'none'}: {_ANEW}"
        )
    theirs = of_report(report)
    ours = {**identity, "plan": [run for runs in identity["plan"] for run in runs]}
    if names := differing(_plain(theirs), {key: _plain(ours[key]) for key in theirs}):
        raise SJRobustError(
            f"{EARLIER} is of another evaluation (not the same: {', '.join(names)}): {_ANEW}"
        )
    if report.dataset.evaluated > total:
        raise SJRobustError(
            f"{EARLIER} has {report.dataset.evaluated} images, this evaluation {total}: expected at"
            f" least as many, or {_ANEW}"
        )
    for name, there, wanted in (
        ("check_images", report.checks, options.check_images),
        ("roughness_images", report.roughness, options.roughness_images),
    ):
        if there and not wanted:
            raise SJRobustError(
                f"{EARLIER} would lose what {name} found: give some (--{name.replace('_', '-')}),"
                " or evaluate anew, into a file of its own"
            )


def taken_over(
    report: Report,
    plan: Sequence[Sequence[Run]],
    predicted: Sequence[int],
    *,
    survivors_only: bool,
) -> Units:
    """The units of a journal that hold what `report` found about the first images of the same
    evaluation, and what it cost. `predicted`: the classes that the model sees now, one for each of
    its images.

    An image that the model now sees otherwise (another processor may round its logits to another
    class) is left to be attacked anew. Raises SJRobustError where the report was stopped, or gave
    every view all images, so that it does not say who attacked what.
    """
    if report.stopped or not (survivors_only and report.settings.survivors_only):
        why = (
            "was stopped before its end"
            if report.stopped
            else "gives every view all images, or this evaluation does"
        )
        raise SJRobustError(f"{EARLIER} {why}, and so does not say who met what: {_ANEW}")
    outcome = report.per_image
    classes = zip(predicted, outcome.predicted, outcome.label, strict=False)
    standing = [image for image, (now, then, label) in enumerate(classes) if now == then == label]
    units: Units = {}
    costs = iter(report.robust)
    for runs, broken_by in zip(plan, outcome.broken_by, strict=True):
        for run in runs:
            cost = next(costs)
            for first, view in enumerate(run.seen):
                by = attempt(run.attack.name, view)
                fallen = [image for image in standing if broken_by[image] == by]
                seconds, passes = (
                    cost.per_view[view].seconds or 0.0,
                    (
                        cost.forward_images or 0,
                        cost.backward_images or 0,
                    ),
                )
                key = UnitKey(eps_name(run.attack.eps), run.attack.name, view)
                units[key] = Unit(
                    list(standing), fallen, seconds, *(passes if first == 0 else (0, 0))
                )
                standing = [image for image in standing if broken_by[image] != by]
    return units


def _plain(value: Any) -> Any:
    """As JSON has it: the report may come from a file, where tuples are lists, and settings lie in
    another order."""
    return json.loads(json.dumps(value))
