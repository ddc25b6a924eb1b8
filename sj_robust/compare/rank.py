"""Reading checkpoints' evaluations and ranking those of one setup; all others say what differs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from sj_robust.catalog import Checkpoint, locate, locate_evaluation
from sj_robust.checkpoint.config import (
    BESIDE,
    EVALUATION,
    MAX_TEXT_BYTES,
    STRONGEST_FIRST,
    read_bounded,
)
from sj_robust.checkpoint.results import check_belongs, check_grid
from sj_robust.compare.recorded import Evaluation, plain
from sj_robust.compare.rows import Cell, Checks, Eps, Marks, RobustCell, Rough, Row, Setup, same_eps
from sj_robust.compare.table import Comparison
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.consistency import check_figures
from sj_robust.evaluation.report import Accuracy, Changed  # no torch
from sj_robust.evaluation.words import gradient_views, shown_verdict, telling_checks, worst
from sj_robust.settings import first_error

if TYPE_CHECKING:
    from sj_robust.evaluation import Report


def compare(
    names: Sequence[str | Path],
    on_hub: Iterable[str] = (),
    left_out: Callable[[str], None] = warnings.warn,
    protocol: str | None = None,
) -> Comparison:
    """Compare checkpoint folders, zoo models, models on the Hub and reports by what was measured; a
    model named twice counts once.

    names: one that ends in .json is a report of `evaluate`, for a network that is no checkpoint.

    on_hub: owner/name of more models, of which only the evaluation is fetched. What is wrong with
    one of these is told to `left_out` in one line, and the comparison goes on without it. protocol:
    such as "paper"; of models that have an evaluation under it, that one is taken, else that of the
    strongest protocol they have.

    Raises SJRobustError for an unknown protocol, one of `names` that is no model, a damaged file,
    and an evaluation of other weights.
    """
    if protocol not in (None, *STRONGEST_FIRST):
        raise SJRobustError(
            f"unknown protocol {protocol!r}: expected one of {', '.join(STRONGEST_FIRST)}"
        )
    found: dict[Path, _Entry] = {}
    for name in names:
        if str(name).endswith(".json"):
            found.setdefault(Path(name).resolve(), _read_report(Path(name)))
        else:
            _add(found, name, locate(name), protocol)
    for repository in on_hub:
        try:
            _add(found, repository, locate_evaluation(repository), protocol)
        except SJRobustError as error:
            left_out(plain(f"{repository} is left out: {error}"))
    return _compare(_distinct(found))


@dataclass(frozen=True)
class _Entry:
    """A row before it is ranked, and what of its setup is told apart but not shown."""

    row: Row
    size: int = 0
    fingerprint: str = ""
    stopped: str | None = None


def _add(
    found: dict[Path, _Entry], name: str | Path, checkpoint: Checkpoint, protocol: str | None
) -> None:
    folder = checkpoint.folder.resolve()
    if folder not in found:
        found[folder] = _read(name, checkpoint, protocol)


def _read(name: str | Path, checkpoint: Checkpoint, protocol: str | None) -> _Entry:
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
    if not path.exists():
        return _Entry(row)
    evaluation = _read_evaluation(path)
    check_grid(evaluation, path)
    check_belongs(cast("Report", evaluation), config, str(folder))  # has all that it looks at
    return _measured(row, evaluation)


def _read_report(path: Path) -> _Entry:
    if not path.is_file():
        raise SJRobustError(f"no file {path}: expected a report that evaluate --out has written")
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


def _measured(row: Row, found: Evaluation) -> _Entry:
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
    return _Entry(row, data.size, data.fingerprint, found.stopped)


def _cell(accuracy: Accuracy | Changed) -> dict[str, float]:
    return accuracy.model_dump(include={"value", "low", "high"})


def _checks(found: Evaluation) -> Checks | None:
    if not (telling := telling_checks(found)):
        return None
    return Checks(status=worst(telling), count=len(telling), verdict=shown_verdict(found))


def _distinct(found: dict[Path, _Entry]) -> list[_Entry]:
    """The entries, with the folder behind names that would be the same."""
    count = Counter(entry.row.name for entry in found.values())
    return [
        (
            entry
            if count[entry.row.name] == 1
            else replace(
                entry,
                row=entry.row.model_copy(update={"name": plain(f"{entry.row.name} ({folder})")}),
            )
        )
        for folder, entry in found.items()
    ]


def _compare(entries: list[_Entry]) -> Comparison:
    measured = [entry for entry in entries if entry.row.setup is not None]
    columns = _columns(entry.row for entry in measured)
    if not measured:
        return Comparison(
            setup=None,
            ranked_by=None,
            columns=columns,
            rows=[entry.row for entry in entries],
            footnotes=[],
        )
    reference = _reference(measured)
    beside = [entry for entry in measured if _comparable(reference, entry)]
    ranked_by = _ranking_eps([entry.row for entry in beside], columns)
    ranked = _ranked(beside, ranked_by)
    rest = [(None, entry) for entry in entries if not any(entry is other for _, other in ranked)]
    rest.sort(key=lambda unranked: unranked[1].row.setup is None)
    footnotes: dict[str, int] = {}
    rows = [_marked(rank, entry, reference, footnotes) for rank, entry in [*ranked, *rest]]
    return Comparison(
        setup=reference.row.setup,
        ranked_by=ranked_by,
        columns=columns,
        rows=rows,
        footnotes=list(footnotes),
    )


def _columns(rows: Iterable[Row]) -> list[Eps]:
    columns: list[Eps] = []
    for row in rows:
        for cell in row.robust:
            if not any(
                column.norm == cell.norm and same_eps(column.eps, cell.eps) for column in columns
            ):
                columns.append(Eps(norm=cell.norm, eps=cell.eps))
    return sorted(columns, key=lambda column: (column.norm != "linf", column.norm, column.eps))


def _reference(measured: list[_Entry]) -> _Entry:
    """The entry whose setup most others share; the first named of equals."""

    def shared(candidate: _Entry) -> tuple[bool, int]:
        # Under a named protocol an ANN fits spiking networks of any views, and so must not speak
        # for them.
        peers = [
            entry for entry in measured if candidate.row.kind == "snn" or entry.row.kind == "ann"
        ]
        return candidate.stopped is None, sum(_comparable(candidate, entry) for entry in peers)

    return max(measured, key=shared)


def _comparable(reference: _Entry, entry: _Entry) -> bool:
    return entry is reference or not (
        entry.stopped or _data_differs(reference, entry) or _attack_differs(reference, entry)
    )


def _ranking_eps(rows: list[Row], columns: list[Eps]) -> Eps | None:
    """The column that most comparable models have; the largest eps of equals."""
    counts = [(sum(row.at(eps) is not None for row in rows), eps.eps, eps) for eps in columns]
    best = max(counts, key=lambda count: count[:2], default=None)
    return best[2] if best and best[0] else None


def _ranked(entries: list[_Entry], by: Eps | None) -> list[tuple[int | None, _Entry]]:
    """(rank, entry), best first; equal accuracies share a rank. Only entries that have an accuracy
    to be ranked by."""
    values = [
        (cell.value, entry.row.clean.value if entry.row.clean else 0.0, entry)
        for entry in entries
        if (cell := entry.row.at(by) if by else entry.row.clean)
    ]
    values.sort(key=lambda value: (-value[0], -value[1]))
    return [(1 + sum(other > value for other, _, _ in values), entry) for value, _, entry in values]


def _marked(rank: int | None, entry: _Entry, reference: _Entry, footnotes: dict[str, int]) -> Row:
    """The row with its rank and the numbers of its footnotes; new ones are added to `footnotes`."""
    data: list[str] = []
    attack: list[str] = []
    if entry.row.setup is not None and entry is not reference:
        data, attack = (
            _data_differs(reference, entry),
            [
                *_attack_differs(reference, entry),
                *_eps_differs(reference, entry),
            ],
        )
    if entry.stopped:
        attack.append(
            f"The evaluation was stopped {entry.stopped}; what was not attacked counts as robust."
        )

    def numbers(notes: list[str]) -> list[int]:
        return sorted(footnotes.setdefault(note, len(footnotes) + 1) for note in notes)

    return entry.row.model_copy(
        update={"rank": rank, "marks": Marks(clean=numbers(data), robust=numbers([*data, *attack]))}
    )


def _data_differs(reference: _Entry, entry: _Entry) -> list[str]:
    a, b = reference.row.setup, entry.row.setup
    assert a is not None and b is not None
    if (a.dataset, a.split) != (b.dataset, b.split):
        return [
            f"Other data: {b.images} images of {b.dataset} {b.split}, not {a.images} of {a.dataset}"
            f" {a.split}."
        ]
    if a.images != b.images:
        return [f"Other images: {b.images} of {b.dataset} {b.split}, not {a.images}."]
    if reference.size == entry.size and reference.fingerprint != entry.fingerprint:
        return [
            f"Other images under the same name, {b.dataset} {b.split} (fingerprint"
            f" {entry.fingerprint[:12]}, not {reference.fingerprint[:12]})."
        ]
    return []


def _attack_differs(reference: _Entry, entry: _Entry) -> list[str]:
    a, b = reference.row.setup, entry.row.setup
    assert a is not None and b is not None
    if bool(a.attacks) != bool(b.attacks):
        return [
            (
                "Clean accuracy only: nothing was attacked."
                if a.attacks
                else f"Attacked ({b.protocol}); the ranked models were not."
            )
        ]
    if not a.attacks:
        return []
    notes = []
    if a.norm != b.norm:
        notes.append(f"Other norm: {b.norm}, not {a.norm}.")
    if a.grid != b.grid:
        notes.append(
            "Other images: of 8 bits, as a file holds them."
            if b.grid
            else "Other images: of any values, not of 8 bits."
        )
    if a.named != b.named:
        notes.append(f"Other protocol: {b.protocol}, not {a.protocol}.")
    else:
        if set(a.attacks) != set(b.attacks):
            notes.append(f"Other attacks: {' + '.join(b.attacks)}, not {' + '.join(a.attacks)}.")
        # A named protocol says what it does with an ANN, which has one gradient; without a name,
        # views are part of what is compared.
        if _views(a) != _views(b) and not (a.named and reference.row.kind != entry.row.kind):
            notes.append(_views_note(a, b))
        if a.restarts != b.restarts:
            notes.append(f"Other number of restarts: {b.restarts}, not {a.restarts}.")
    return notes


def _eps_differs(reference: _Entry, entry: _Entry) -> list[str]:
    mine, theirs = (_eps_list(each.row) for each in (entry, reference))
    norms = {each.row.setup.norm for each in (entry, reference) if each.row.setup}
    # the note on the norm says it already
    if mine == theirs or not mine or not theirs or len(norms) > 1:
        return []
    return [
        f"Other eps: {mine}, not {theirs}; an image that a smaller eps broke counts as broken at"
        " larger ones."
    ]


def _eps_list(row: Row) -> str:
    return ", ".join(Eps(norm=cell.norm, eps=cell.eps).label for cell in row.robust)


def _views(setup: Setup) -> set[str]:
    """Transfer is from another model each time; that it was made is what counts."""
    return {"transfer" if view.startswith("transfer:") else view for view in setup.views}


def _views_note(a: Setup, b: Setup) -> str:
    if b.views == ["exact"]:
        return (
            "Other gradients: the exact gradient, an ANN has no other; the ranked models were"
            f" attacked through {a.through}."
        )
    if len(gradient_views(a.views)) != len(gradient_views(b.views)):
        return f"Other gradients: {b.through}, not {a.through}."
    few = [
        (
            "exact gradient"
            if setup.views == ["exact"]
            else ", ".join(sorted(_views(setup) - _views(other))[:4]) or "without"
        )
        for setup, other in ((b, a), (a, b))
    ]
    return f"Other gradients: {few[0]}, not {few[1]}."
