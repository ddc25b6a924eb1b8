"""The comparison itself: rows, what sets them apart, and the table as text, Markdown and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from sj_robust.evaluation.report import energy_name, interval_name
from sj_robust.evaluation.words import Status, views_name
from sj_robust.settings import Strict

NOT_MEASURED = "not measured"
LEAST = 1e-6  # µJ: one operation


class Eps(Strict):
    """A column: radius of the ball, in its norm. Radii in different norms are different columns."""

    norm: str
    eps: float

    @property
    def label(self) -> str:
        """8/255 for 0.03137… in l∞, else the number."""
        levels = self.eps * 255
        return (
            f"{round(levels)}/255"
            if self.norm == "linf" and abs(levels - round(levels)) < 1e-6
            else f"{self.eps:g}"
        )

    @property
    def sign(self) -> str:
        """The norm as a reader writes it."""
        return {"linf": "l∞", "l2": "l₂"}.get(self.norm, self.norm)


class Setup(Strict):
    """What an accuracy is an accuracy of: images, norm, and what was run."""

    dataset: str
    split: str
    images: int
    norm: str
    named: str | None
    grid: Literal["8bit"] | None = None
    attacks: list[str]
    views: list[str]
    restarts: int

    @property
    def protocol(self) -> str:
        """The protocol's name, or the attacks and how many views they ran through."""
        if not self.attacks:
            return "clean accuracy only"
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        grid = ", 8-bit images" if self.grid else ""
        return (self.named or f"{' + '.join(self.attacks)}, {self.through}") + restarts + grid

    @property
    def through(self) -> str:
        """The gradients that the attacks used, in a few words."""
        return views_name(self.views)


class Cell(Strict):
    """An accuracy as a fraction with its Wilson 95 % interval."""

    value: float
    low: float
    high: float


class RobustCell(Cell):
    norm: str
    eps: float


class Rough(Cell):
    """The share of rightly classified images that random points within `eps` (l∞) change."""

    eps: float


class Checks(Strict):
    """What the reliability checks said: the worst status of all, how many there were, and their
    verdict in words."""

    status: Status
    count: int
    verdict: str | None


class Marks(Strict):
    """Numbers of the footnotes that hold for an accuracy."""

    clean: list[int] = Field([])
    robust: list[int] = Field([])


class Row(Strict):
    """One model, `microjoules` the estimate for one image and `ann_microjoules` that of the ANN of
    its shape. `rank` is None where its figures cannot stand beside the ranked ones; `setup` where
    nothing was measured."""

    name: str
    kind: Literal["ann", "snn"]
    architecture: str | None
    timesteps: int | None
    parameters: int
    rank: int | None = None
    setup: Setup | None = None
    clean: Cell | None = None
    robust: list[RobustCell] = Field([])
    spikes_per_neuron: float | None = None
    spikes_per_image: float | None = None
    microjoules: float | None = None
    ann_microjoules: float | None = None
    checks: Checks | None = None
    roughness: list[Rough] = Field([])
    marks: Marks = Marks()

    def at(self, eps: Eps) -> RobustCell | None:
        """The robust accuracy in a column, None where it was not measured."""
        return next(
            (cell for cell in self.robust if cell.norm == eps.norm and same_eps(cell.eps, eps.eps)),
            None,
        )

    @property
    def of_ann(self) -> float | None:
        """Energy over that of the ANN of the same shape; None where that is less than one
        operation."""
        ann = self.ann_microjoules or 0.0
        return None if self.microjoules is None or ann < LEAST else self.microjoules / ann


class Comparison(Strict):
    """The table: `setup` is what all ranked rows have in common, `ranked_by` the column that ranks
    them (None: clean accuracy)."""

    format: Literal[1] = 1
    setup: Setup | None
    ranked_by: Eps | None
    columns: list[Eps]
    rows: list[Row]
    footnotes: list[str]

    def to_json(self) -> str:
        """The same text for the same checkpoints."""
        return (
            json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n"
        )

    def about(self) -> list[str]:
        """What can be set side by side, and what the order means, in whole sentences."""
        if self.setup is None:
            return ["No model has a recorded evaluation."]
        images = f"{self.setup.images} images of {self.setup.dataset} {self.setup.split}"
        if self.ranked_by is None:
            return [
                f"Ranked by clean accuracy on {images}.",
                "Wilson 95 % intervals: where they overlap, the order may be chance.",
            ]
        return [
            (
                f"Ranked by robust accuracy at eps {self.ranked_by.label} ({self.ranked_by.sign})"
                f" on {images}: {self.setup.protocol}."
            ),
            (
                "An image counts as robust if it survives all attacks. Wilson 95 % intervals: where"
                " they overlap, the order may be chance."
            ),
        ]

    def header(self) -> list[str]:
        """The columns of `cells`."""
        radii = [f"{eps.label} {eps.sign}" for eps in self.columns]
        return [
            "rank",
            "model",
            "architecture",
            "T",
            "parameters",
            "clean",
            *radii,
            "energy, µJ",
            "changed by noise",
            "protocol",
            "images",
            "checks",
        ]

    def cells(self, row: Row) -> list[tuple[str, list[int]]]:
        """The texts of a row, each with its footnotes."""
        return [
            ("–" if row.rank is None else str(row.rank), []),
            (row.name, []),
            (row.architecture or "own network", []),
            ("" if row.timesteps is None else str(row.timesteps), []),
            (f"{row.parameters:,}", []),
            (percent(row.clean), row.marks.clean),
            *((percent(row.at(eps)), row.marks.robust) for eps in self.columns),
            (energy(row), []),
            (roughness(row), []),
            (row.setup.protocol if row.setup else NOT_MEASURED, []),
            (_images(row), []),
            (checks_word(row), []),
        ]

    def to_markdown(self) -> str:
        """A table for a README or an issue, with its footnotes."""
        lines = [_bar(map(_inert, self.header())), "|" + "---|" * len(self.header())]
        for row in self.rows:
            cells = ((_inert(text), ",".join(map(str, marks))) for text, marks in self.cells(row))
            lines.append(
                _bar(
                    text + (f"<sup>{marks}</sup>" if marks and text != NOT_MEASURED else "")
                    for text, marks in cells
                )
            )
        notes = [f"{number}. {_inert(note)}" for number, note in enumerate(self.footnotes, 1)]
        return (
            "\n".join(
                [*lines, "", _inert(" ".join(self.about())), *([""] if notes else []), *notes]
            )
            + "\n"
        )

    def to_html(self) -> str:
        """One self-contained page: the table, sortable and filtered, two charts, footnotes and
        verdicts."""
        from sj_robust.compare.page import render  # which draws from this class

        return render(self)


def percent(cell: Cell | None) -> str:
    return NOT_MEASURED if cell is None else interval_name(cell.value, cell.low, cell.high)


def energy(row: Row) -> str:
    """The estimate for one image in µJ."""
    return NOT_MEASURED if row.microjoules is None else energy_name(row.microjoules)


def roughness(row: Row) -> str:
    """The share of right images that random points change, at each radius: what gradients find hard
    to see."""
    label = {found.eps: Eps(norm="linf", eps=found.eps).label for found in row.roughness}
    return (
        ", ".join(f"{100 * found.value:.1f} % at {label[found.eps]}" for found in row.roughness)
        or NOT_MEASURED
    )


def checks_word(row: Row) -> str:
    """The verdict of the checks in one word or two."""
    if row.checks is None:
        return NOT_MEASURED if row.setup is None else "not checked"
    words: dict[Status, str] = {
        "pass": "pass",
        "warn": "with reservations",
        "fail": "do not trust",
        "not run": "incomplete",
        "too few": "too few to tell",
    }
    return words[row.checks.status]


def _images(row: Row) -> str:
    return (
        NOT_MEASURED
        if row.setup is None
        else f"{row.setup.images} {row.setup.dataset} {row.setup.split}"
    )


def same_eps(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def _bar(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _inert(text: str) -> str:
    """Text that Markdown shows as it is: no table bar, link, emphasis, code or HTML."""
    return re.sub(
        r"([\\`*|\[\]~])",
        r"\\\1",
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    )
