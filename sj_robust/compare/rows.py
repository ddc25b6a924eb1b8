"""What a comparison says of one model, and how its figures are written."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from sj_robust.evaluation.words import Status, energy_name, interval_name, views_name
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


class Share(Strict):
    """The share of its ANN's robust accuracy at `eps` that a spiking network keeps."""

    norm: str
    eps: float
    value: float


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
    """One model.

    Attributes:
        rank: None where its figures cannot stand beside the ranked ones.
        setup: None where nothing was measured.
        microjoules: the estimate for one image.
        ann_microjoules: the estimate for the ANN of its shape.
    """

    name: str
    kind: Literal["ann", "snn"]
    architecture: str | None
    timesteps: int | None
    parameters: int
    rank: int | None = None
    setup: Setup | None = None
    clean: Cell | None = None
    robust: list[RobustCell] = Field([])
    kept: list[Share] = Field([])
    spikes_per_neuron: float | None = None
    spikes_per_image: float | None = None
    microjoules: float | None = None
    ann_microjoules: float | None = None
    checks: Checks | None = None
    roughness: list[Rough] = Field([])
    marks: Marks = Marks()

    def at(self, eps: Eps | RobustCell) -> RobustCell | None:
        """The robust accuracy in a column, None where it was not measured."""
        return next((cell for cell in self.robust if _same(cell, eps)), None)

    def kept_at(self, eps: Eps) -> float | None:
        """The share of its ANN's that it keeps there, None where that is not known."""
        return next((share.value for share in self.kept if _same(share, eps)), None)

    @property
    def of_ann(self) -> float | None:
        """Energy over that of the ANN of the same shape.

        None where that is less than one operation.
        """
        ann = self.ann_microjoules or 0.0
        return None if self.microjoules is None or ann < LEAST else self.microjoules / ann


def percent(cell: Cell | None) -> str:
    """The accuracy with its interval, in percent, or "not measured"."""
    return NOT_MEASURED if cell is None else interval_name(cell.value, cell.low, cell.high)


def robust(row: Row, eps: Eps) -> str:
    """The robust accuracy in a column, and how much of its ANN's that is."""
    kept = row.kept_at(eps)
    return percent(row.at(eps)) + ("" if kept is None else f", {100 * kept:.0f} % of its ANN's")


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


def _same(a: Eps | RobustCell | Share, b: Eps | RobustCell | Share) -> bool:
    return a.norm == b.norm and same_eps(a.eps, b.eps)


def same_eps(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
