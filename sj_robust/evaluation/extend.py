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
from sj_robust.evaluation.plan import Run
from sj_robust.evaluation.report import Report, attempt, eps_name


def check_same(report: Report, identity: Mapping[str, Any]) -> None:
    """Raise SJRobustError, saying what differs, unless model, data, attacks, views and seed of this
    evaluation are those of the report."""
    theirs = of_report(report)
    ours = {**identity, "plan": [run for runs in identity["plan"] for run in runs]}
    if names := differing(_plain(theirs), {key: _plain(ours[key]) for key in theirs}):
        raise SJRobustError(
            f"the report to go on from is of another evaluation ({', '.join(names)} differ): start"
            " anew without it, into another file"
        )


def taken_over(
    report: Report,
    plan: Sequence[Sequence[Run]],
    identity: Mapping[str, Any],
    predicted: Sequence[int],
) -> Units:
    """The units of a journal that hold what `report` found about the first images of the same
    evaluation, and what it cost. `identity`: all that decides this evaluation's outcome;
    `predicted`: the classes that the model sees now, one for each of its images.

    An image that the model now sees otherwise (another processor may round its logits to another
    class) is left to be attacked anew. Raises SJRobustError where the report was stopped, or gave
    every view all images, so that it does not say who attacked what; and where it has more images
    than these.
    """
    if report.stopped or not (identity["survivors_only"] and report.settings.survivors_only):
        why = (
            "was stopped before its end"
            if report.stopped
            else "gives every view all images, or this evaluation does"
        )
        raise SJRobustError(
            f"the report to go on from {why}: expected a complete one that attacked survivors only,"
            " as it says who met what"
        )
    if report.dataset.evaluated > len(predicted):
        raise SJRobustError(
            f"the report to go on from has {report.dataset.evaluated} images, this evaluation"
            f" {len(predicted)}: expected at least as many"
        )
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
