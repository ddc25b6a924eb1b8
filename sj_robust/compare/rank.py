"""Ranking what was measured in one setup; all others say what differs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sj_robust.catalog import Checkpoint, locate, locate_evaluation
from sj_robust.compare.entry import Entry, filed_under, read_checkpoint, read_report
from sj_robust.compare.recorded import plain
from sj_robust.compare.rows import Eps, Marks, Row, Setup, Share, same_eps
from sj_robust.compare.table import Comparison
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.words import gradient_views


def compare(
    names: Sequence[str | Path],
    on_hub: Iterable[str] = (),
    left_out: Callable[[str], None] = warnings.warn,
    protocol: str | None = None,
) -> Comparison:
    """Compare models by what was measured; a model named twice counts once.

    Args:
        names: checkpoint folders, zoo models, models on the Hub; one that ends in .json is a report
            of `evaluate`, for a network that is no checkpoint.
        on_hub: owner/name of more models, of which only the evaluation is fetched.
        left_out: called with one line on what is wrong with one of `on_hub`; the comparison goes on
            without it.
        protocol: such as "paper"; of models that have an evaluation under it, that one is taken,
            else that of the strongest protocol they have.

    Raises:
        SJRobustError: an unknown protocol, one of `names` that is no model, a damaged file, and an
            evaluation of other weights.
    """
    protocol = filed_under(protocol)
    found: dict[Path, Entry] = {}
    for name in names:
        if str(name).endswith(".json"):
            found.setdefault(Path(name).resolve(), read_report(Path(name)))
        else:
            _add(found, name, locate(name), protocol)
    for repository in on_hub:
        try:
            _add(found, repository, locate_evaluation(repository), protocol)
        except SJRobustError as error:
            left_out(plain(f"{repository} is left out: {error}"))
    return _compare(_beside_their_anns(_distinct(found)))


def _add(
    found: dict[Path, Entry], name: str | Path, checkpoint: Checkpoint, protocol: str | None
) -> None:
    folder = checkpoint.folder.resolve()
    if folder not in found:
        found[folder] = read_checkpoint(name, checkpoint, protocol)


def _distinct(found: dict[Path, Entry]) -> list[Entry]:
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


def _beside_their_anns(entries: list[Entry]) -> list[Entry]:
    """The entries, with the share of their ANN's robust accuracy that spiking networks keep where
    it is among them, measured alike."""
    anns = {entry.weights: entry for entry in entries if entry.row.kind == "ann"}
    return [
        replace(entry, row=entry.row.model_copy(update={"kept": _kept(entry, ann)}))
        if (ann := anns.get(entry.ann or "")) is not None
        else entry
        for entry in entries
    ]


def _kept(entry: Entry, ann: Entry) -> list[Share]:
    if entry.stopped or ann.stopped or not (entry.row.setup and ann.row.setup):
        return []
    if _data_differs(ann, entry) or _attack_differs(ann, entry):
        return []
    return [
        Share(norm=cell.norm, eps=cell.eps, value=cell.value / other.value)
        for cell in entry.row.robust
        if (other := ann.row.at(cell)) is not None and other.value > 0
    ]


def _compare(entries: list[Entry]) -> Comparison:
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
    if len(ranked) == 1:  # the first of one is no winner
        ranked = [(None, ranked[0][1])]
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


def _reference(measured: list[Entry]) -> Entry:
    """The entry whose setup most others share; the first named of equals."""

    def shared(candidate: Entry) -> tuple[bool, int]:
        # Under a named protocol an ANN fits spiking networks of any views, and so must not speak
        # for them.
        peers = [
            entry for entry in measured if candidate.row.kind == "snn" or entry.row.kind == "ann"
        ]
        return candidate.stopped is None, sum(_comparable(candidate, entry) for entry in peers)

    return max(measured, key=shared)


def _comparable(reference: Entry, entry: Entry) -> bool:
    return entry is reference or not (
        entry.stopped or _data_differs(reference, entry) or _attack_differs(reference, entry)
    )


def _ranking_eps(rows: list[Row], columns: list[Eps]) -> Eps | None:
    """The column that most comparable models have; the largest eps of equals."""
    counts = [(sum(row.at(eps) is not None for row in rows), eps.eps, eps) for eps in columns]
    best = max(counts, key=lambda count: count[:2], default=None)
    return best[2] if best and best[0] else None


def _ranked(entries: list[Entry], by: Eps | None) -> list[tuple[int | None, Entry]]:
    """(rank, entry), best first; equal accuracies share a rank. Only entries that have an accuracy
    to be ranked by."""
    values = [
        (cell.value, entry.row.clean.value if entry.row.clean else 0.0, entry)
        for entry in entries
        if (cell := entry.row.at(by) if by else entry.row.clean)
    ]
    values.sort(key=lambda value: (-value[0], -value[1]))
    return [(1 + sum(other > value for other, _, _ in values), entry) for value, _, entry in values]


def _marked(rank: int | None, entry: Entry, reference: Entry, footnotes: dict[str, int]) -> Row:
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


def _data_differs(reference: Entry, entry: Entry) -> list[str]:
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


def _attack_differs(reference: Entry, entry: Entry) -> list[str]:
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
        # A named protocol says what it does with an ANN, which has one gradient; without a name,
        # attacks and views are part of what is compared.
        by_kind = a.named is not None and reference.row.kind != entry.row.kind
        if set(a.attacks) != set(b.attacks) and not by_kind:
            notes.append(f"Other attacks: {' + '.join(b.attacks)}, not {' + '.join(a.attacks)}.")
        if _views(a) != _views(b) and not by_kind:
            notes.append(_views_note(a, b))
        if a.restarts != b.restarts:
            notes.append(f"Other number of restarts: {b.restarts}, not {a.restarts}.")
    return notes


def _eps_differs(reference: Entry, entry: Entry) -> list[str]:
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
