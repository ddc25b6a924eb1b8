"""The comparison itself: rows, what sets them apart, and the table as text, Markdown and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Literal

from sj_robust.compare.page import render
from sj_robust.compare.rows import (
    NOT_MEASURED,
    Eps,
    Row,
    Setup,
    checks_word,
    energy,
    percent,
    robust,
    roughness,
)
from sj_robust.settings import Strict


class Comparison(Strict):
    """Models side by side.

    Attributes:
        setup: what all ranked rows have in common.
        ranked_by: the column that ranks them (None: clean accuracy).
    """

    format: Literal[1] = 1
    setup: Setup | None
    ranked_by: Eps | None
    columns: list[Eps]
    rows: list[Row]
    footnotes: list[str]

    def to_json(self) -> str:
        """The comparison as JSON: the same text for the same checkpoints."""
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
            *((robust(row, eps), row.marks.robust) for eps in self.columns),
            (_energy(row), []),
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
        """One self-contained page.

        The table, sortable and filtered, two charts, footnotes and verdicts.
        """
        return render(self)


def _energy(row: Row) -> str:
    beside = "" if row.of_ann is None else f" ({100 * row.of_ann:.0f} % of its ANN's)"
    return energy(row) + beside


def _images(row: Row) -> str:
    return (
        NOT_MEASURED
        if row.setup is None
        else f"{row.setup.images} {row.setup.dataset} {row.setup.split}"
    )


def _bar(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _inert(text: str) -> str:
    """Text that Markdown shows as it is: no table bar, link, emphasis, code or HTML."""
    return re.sub(
        r"([\\`*|\[\]~])",
        r"\\\1",
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    )
