"""A checkpoint's evaluation, or a report of a network that is none, as a row of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from sj_robust.catalog import Checkpoint
from sj_robust.checkpoint.config import (
    BESIDE,
    EVALUATION,
    MAX_TEXT_BYTES,
    STRONGEST_FIRST,
    read_bounded,
)
from sj_robust.checkpoint.results import check_belongs, check_grid
from sj_robust.compare.recorded import Evaluation, plain
from sj_robust.compare.rows import Cell, Checks, RobustCell, Rough, Row, Setup
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.consistency import check_figures
from sj_robust.evaluation.protocol import find_protocol
from sj_robust.evaluation.report import Accuracy, Changed  # no torch
from sj_robust.evaluation.words import shown_verdict, telling_checks, worst
from sj_robust.settings import first_error

if TYPE_CHECKING:
    from sj_robust.evaluation import Report


NO_REPORT = "no file {}: expected a report that evaluate --out has written"


@dataclass(frozen=True)
class Entry:
    """A row before it is ranked, and what of its setup is told apart but not shown."""

    row: Row
    size: int = 0
    fingerprint: str = ""
    stopped: str | None = None
    weights: str = ""  # sha256 of its file, and of that of the ANN it was converted from
    ann: str | None = None


def filed_under(protocol: str | None, known: Sequence[str] = STRONGEST_FIRST) -> str | None:
    """ "strong" for "strong@2": the name by which a checkpoint keeps it. Raises SJRobustError for
    one that is not `known`, and for a version that this release does not have."""
    name = find_protocol(protocol).name if protocol and "@" in protocol else protocol
    if name not in (None, *known):
        raise SJRobustError(f"unknown protocol {protocol!r}: expected one of {', '.join(known)}")
    return name


def read_checkpoint(name: str | Path, checkpoint: Checkpoint, protocol: str | None) -> Entry:
    folder, config = checkpoint.folder, checkpoint.config
    path = folder / EVALUATION
    if protocol and (folder / BESIDE[protocol]).exists():
        path = folder / BESIDE[protocol]
    local = checkpoint.origin is None and Path(name).is_dir()
    shown = folder.resolve().name if local else str(name)
    row = Row(
        name=plain(shown),
        kind=config.kind,
        architecture=config.architecture or config.model,
        timesteps=config.timesteps,
        parameters=config.weights.parameters,
    )
    identity: dict[str, Any] = {"weights": config.weights.sha256, "ann": config.ann_sha256}
    if not path.exists():
        return replace(Entry(row), **identity)
    evaluation = _read_evaluation(path)
    check_grid(evaluation, path)
    check_belongs(cast("Report", evaluation), config, str(folder))  # has all that it looks at
    return replace(_measured(row, evaluation), **identity)


def read_report(path: Path) -> Entry:
    if not path.is_file():
        raise SJRobustError(NO_REPORT.format(path))
    evaluation = _read_evaluation(path)
    model = evaluation.model
    return _measured(
        Row(
            name=plain(path.stem),
            kind=model.kind,
            architecture=model.architecture,
            timesteps=model.timesteps,
            parameters=model.parameters,
        ),
        evaluation,
    )


def _read_evaluation(path: Path) -> Evaluation:
    text = read_bounded(path, MAX_TEXT_BYTES)
    try:
        evaluation = Evaluation.model_validate_json(text)
        check_figures(evaluation)
    except ValidationError as error:
        wrong = first_error(error)
        raise SJRobustError(
            f"{path}: not an evaluation report of this version: {wrong}; evaluate the checkpoint"
            " again"
        ) from None
    except SJRobustError as error:
        raise SJRobustError(f"{path}: {error}; evaluate the checkpoint again") from None
    return evaluation


def _measured(row: Row, found: Evaluation) -> Entry:
    settings, data, activity, energy = (
        found.settings,
        found.dataset,
        found.activity if row.kind == "snn" else None,
        found.energy,
    )
    setup = Setup(
        dataset=data.name,
        split=data.split,
        images=data.evaluated,
        norm=settings.norm,
        named=settings.protocol,
        grid=settings.grid,
        attacks=settings.attacks,
        views=settings.views,
        restarts=settings.restarts,
    )
    robust = [
        RobustCell(norm=settings.norm, eps=joint.eps, **_cell(joint.accuracy))
        for joint in found.joint
    ]
    row = row.model_copy(
        update={
            "setup": setup,
            "clean": Cell(**_cell(found.clean)),
            "robust": sorted(robust, key=lambda cell: cell.eps),
            "spikes_per_neuron": activity and activity.spikes_per_neuron,
            "spikes_per_image": activity and activity.spikes_per_image,
            "microjoules": energy and energy.microjoules,
            "ann_microjoules": energy and energy.ann_microjoules,
            "checks": _checks(found),
            "roughness": [
                Rough(eps=one.eps, **_cell(one))
                for one in (found.roughness.model if found.roughness else ())
            ],
        }
    )
    return Entry(row, data.size, data.fingerprint, found.stopped)


def _cell(accuracy: Accuracy | Changed) -> dict[str, float]:
    return accuracy.model_dump(include={"value", "low", "high"})


def _checks(found: Evaluation) -> Checks | None:
    if not (telling := telling_checks(found)):
        return None
    return Checks(status=worst(telling), count=len(telling), verdict=shown_verdict(found))
