"""What decides an evaluation's outcome, in one place: for its journal, which goes on only with the
same; for a report to extend, as far as it says so; and for a stage of a recipe, which is kept while
the same is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sj_robust.evaluation.options import Options
from sj_robust.evaluation.plan import Run
from sj_robust.evaluation.protocol import find_protocol
from sj_robust.evaluation.report import DatasetFacts, ModelFacts, Report
from sj_robust.evaluation.words import RADII, eps_name

# what a report names too, and what to call it
NAMED = {
    "weights": "the model's weights",
    "settings": "the model's settings",
    "images": "the images",
    "seed": "seed",
    "grid": "grid",
    "plan": "attacks or views",
    "transfer": "the models to transfer from",
}
_ONLY_OURS = {"survivors_only": "who is attacked", "version": "the versions of the file"}


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What to call the parts of an evaluation's identity that another one has otherwise."""
    keys = dict.fromkeys([*theirs, *ours])
    names = NAMED | _ONLY_OURS
    found: list[str] = []
    for key in keys:
        if theirs.get(key) == ours.get(key):
            continue
        if key == "plan" and theirs.get(key) and ours.get(key):
            try:
                found += _differing_plans(_runs(theirs[key]), _runs(ours[key]))
            except (LookupError, TypeError, ValueError):  # of a file that a stranger wrote
                found.append(names[key])
        else:
            found.append(names.get(key, key))
    return found


def _runs(plan: Sequence[Any]) -> list[Any]:
    """[settings, views] of each run, of a plan that may have a list for each eps."""
    return [run for each in plan for run in ([each] if isinstance(each[0], Mapping) else each)]


def _differing_plans(theirs: Sequence[Any], ours: Sequence[Any]) -> list[str]:
    there, here = ([_radii(runs), _but_for_radii(runs)] for runs in (theirs, ours))
    if there[0] == here[0]:
        return [NAMED["plan"]]
    eps = f"eps {there[0]}, now {here[0]}"
    return [eps] if there[1] == here[1] else [eps, NAMED["plan"]]


def _radii(runs: Sequence[Any]) -> str:
    return " ".join(map(eps_name, sorted({settings["eps"] for settings, _ in runs})))


def _but_for_radii(value: Any) -> Any:
    """Runs without eps and the steps that are a share of it, each once."""
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if key not in RADII}
        return {key: _but_for_radii(one) for key, one in kept.items()}
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    found: list[Any] = []
    for one in map(_but_for_radii, value):
        if one not in found:
            found.append(one)
    return found


def of_evaluation(
    options: Options,
    model: ModelFacts,
    data: DatasetFacts,
    plan: Sequence[Sequence[Run]],
    transfer: Mapping[str, str],
) -> dict[str, Any]:
    """All of it, but for the classes that the model sees, which another processor may round
    otherwise: they decide which images are attacked, and nothing of how.

    Args:
        plan: the runs at each eps.
        transfer: the hash of each other model's weights.
    """
    return {
        "weights": model.weights_sha256,
        "settings": model.settings,
        "images": data.fingerprint,
        "plan": [[[run.settings, list(run.seen)] for run in runs] for runs in plan],
        "transfer": dict(transfer),
        "survivors_only": options.survivors_only,
        "seed": options.seed,
        "grid": options.grid,
    }


def of_report(report: Report) -> dict[str, Any]:
    """As far as the report of that evaluation says it; `plan` is of all eps in one list."""
    settings = report.settings
    found = {
        "weights": report.model.weights_sha256,
        "settings": report.model.settings,
        "images": report.dataset.fingerprint,
        "seed": settings.seed,
        "grid": settings.grid,
        "plan": [[result.settings, list(result.per_view)] for result in report.robust],
    }
    # it was not always noted
    return found if settings.transfer is None else {**found, "transfer": settings.transfer}


def of_request(
    settings: Mapping[str, Any],
    *,
    views: Sequence[str] | None,
    seed: int,
    model: Mapping[str, Any],
    source: Mapping[str, Any] | None,
    images: str,
) -> dict[str, Any]:
    """Before anything is loaded: what was asked for, of which checkpoint.

    Args:
        settings: of `EvaluationSettings`, without views.
        model: weights and settings of the checkpoint.
        source: the same of the ANN whose gradients a protocol may try.
        images: the fingerprint of the data.
    """
    protocol = find_protocol(settings["protocol"]) if settings["protocol"] else None
    # of a protocol that was changed: what an earlier version left is measured again
    changed = {"protocol": str(protocol)} if protocol and protocol.version > 1 else {}
    return {
        "settings": {**settings, **changed},
        "views": views,
        "seed": seed,
        "model": model,
        "source": source,
        "test": images,
    }
