"""Taking over what an earlier report found: 64 images tonight, the other 936 tomorrow.

An image's outcome depends on the model, the attacks, the seed and the image alone, not on its
batch, so it need not be found twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.journal import Unit, UnitKey, Units
from sj_robust.evaluation.protocol import Run
from sj_robust.evaluation.report import DatasetFacts, ModelFacts, Report, attempt, eps_name


def taken_over(
    report: Report,
    plan: Sequence[Sequence[Run]],
    model: ModelFacts,
    dataset: DatasetFacts,
    predicted: Sequence[int],
    seed: int,
    survivors_only: bool,
    grid: str | None = None,
    transfer: Mapping[str, str] | None = None,
) -> Units:
    """The units of a journal that hold what `report` found about the first images of the same
    evaluation, and what it cost.

    An image that the model now sees otherwise (another processor may round its logits to another
    class) is left to be attacked anew. Raises SJRobustError, saying what differs, unless model,
    data, attacks, views and seed are those of the report; where it was stopped, or gave every view
    all images, so that it does not say who attacked what; and where it has more images than these.
    """
    ours = {
        "the model's weights": model.weights_sha256,
        "the model's settings": model.settings,
        "the images": dataset.fingerprint,
        "seed": seed,
        "grid": grid,
        "attacks": [(run.settings, list(run.seen)) for runs in plan for run in runs],
    }
    theirs = {
        "the model's weights": report.model.weights_sha256,
        "the model's settings": report.model.settings,
        "the images": report.dataset.fingerprint,
        "seed": report.settings.seed,
        "grid": report.settings.grid,
        "attacks": [(result.settings, list(result.per_view)) for result in report.robust],
    }
    if report.settings.transfer is not None:
        ours["the models to transfer from"], theirs["the models to transfer from"] = (
            dict(transfer or {}),
            report.settings.transfer,
        )
    differing = [name for name, value in ours.items() if _plain(value) != _plain(theirs[name])]
    if differing:
        raise SJRobustError(
            f"the report to extend is of another evaluation ({', '.join(differing)} differ): leave"
            " it out to start anew"
        )
    if report.stopped or not (survivors_only and report.settings.survivors_only):
        why = (
            "was stopped before its end"
            if report.stopped
            else "or this evaluation gives every view all images"
        )
        raise SJRobustError(
            f"the report to extend {why}: expected a complete one that attacked survivors only, as"
            " it says who met what"
        )
    if report.dataset.evaluated > dataset.evaluated:
        raise SJRobustError(
            f"the report to extend has {report.dataset.evaluated} images, this evaluation"
            f" {dataset.evaluated}: expected at least as many"
        )
    outcome = report.per_image
    classes = zip(predicted, outcome.predicted, outcome.label, strict=False)  # of more images now
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


def _plain(value: object) -> object:
    """As JSON has it: the report may come from a file, where tuples are lists, and settings lie in
    another order."""
    return json.loads(json.dumps(value))
