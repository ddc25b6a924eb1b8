"""The comparison as one self-contained HTML page with two charts."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sj_robust import __version__
from sj_robust.compare.rows import (
    LEAST,
    NOT_MEASURED,
    Cell,
    Eps,
    Row,
    checks_word,
    energy,
    percent,
    roughness,
)
from sj_robust.errors import SJRobustError
from sj_robust.files import write_atomic

if TYPE_CHECKING:
    from sj_robust.compare.table import Comparison

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(comparison: Comparison, path: str | Path) -> None:
    """Write `to_html` to a file.

    Raises:
        SJRobustError: that cannot be done.
    """
    try:
        write_atomic(path, comparison.to_html())
    except OSError as error:
        raise SJRobustError(
            f"{path} cannot be written ({error.strerror}): choose another file"
        ) from None


def render(comparison: Comparison) -> str:
    """The page; every text in it is escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(source=_script_source, breakable=_breakable)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        c=comparison,
        percent=percent,
        energy=energy,
        checks_word=checks_word,
        roughness=roughness,
        charts=_charts(comparison),
        not_measured=NOT_MEASURED,
        version=__version__,
    )


def _breakable(text: str) -> Markup:
    """A name that a narrow column breaks at its signs, not inside its words."""
    return Markup("<wbr>").join(re.split(r"(?<=[._/-])", text))  # escapes each part


def _script_source(script: str) -> str:
    """The content security policy's word for this one inline script: no other, injected one
    runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# The charts. Coordinates are made here, where a reader can follow them; the template only prints
# them.

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 320, 48, 14, 14, 46
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.4H-4.6z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0z",
)


def _charts(comparison: Comparison) -> dict[str, Any] | None:
    """Both charts, in the norm of the ranked rows; None where nothing was attacked."""
    setup = comparison.setup
    columns = [eps for eps in comparison.columns if setup and eps.norm == setup.norm]
    drawn = [
        (index, row)
        for index, row in enumerate(comparison.rows)
        if any(row.at(eps) for eps in columns)
    ]
    if not columns or not drawn:
        return None
    # the axis is logarithmic: no 0
    costed = [(index, row) for index, row in drawn if (row.microjoules or 0.0) >= LEAST]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": _HEIGHT - _BOTTOM,
        "y_ticks": [(_y(value / 100), f"{value}") for value in range(0, 101, 20)],
        "sign": columns[0].sign,
        "legend": [_style(index, row) for index, row in drawn],
        "markers": MARKERS,
        "not_drawn": [
            row.name
            for index, row in enumerate(comparison.rows)
            if index not in {drawn_index for drawn_index, _ in drawn}
        ],
        "eps": _eps_chart(drawn, columns),
        "energy": _energy_chart(costed, columns, comparison.ranked_by) if costed else None,
        "no_energy": [
            row.name
            for index, row in drawn
            if index not in {costed_index for costed_index, _ in costed}
        ],
    }


def _style(index: int, row: Row) -> dict[str, Any]:
    """Colour and marker together tell 32 rows apart; what cannot be set beside the ranked rows is
    hollow and dashed. The second round of the colours is two markers on, which parts its blue from
    the first round's teal.
    """
    marker = (index + (0, 2, 1, 3)[index // 8 % 4]) % len(MARKERS)
    return {
        "row": index,
        "name": row.name,
        "marks": row.marks.robust,
        "colour": index % 8,
        "marker": marker,
        "apart": row.rank is None,
    }


def _eps_chart(drawn: list[tuple[int, Row]], columns: list[Eps]) -> dict[str, Any]:
    last = max(eps.eps for eps in columns) or 1.0
    spread = min(4.0, 20 / len(drawn))  # intervals at one eps stand beside each other, not on top
    series = []
    for place, (index, row) in enumerate(drawn):
        shift = (place - (len(drawn) - 1) / 2) * spread
        cells = [
            ("clean", 0.0, row.clean),
            *((f"eps {eps.label}", eps.eps, row.at(eps)) for eps in columns),
        ]
        points = [
            _point(_x(eps / last, inset=24) + shift, cell, f"{row.name}, {what}")
            for what, eps, cell in cells
            if cell
        ]
        line = " ".join(f"{point['x']},{point['y']}" for point in points)
        series.append({**_style(index, row), "points": points, "line": line})
    ticks = [
        (_x(0, inset=24), "clean"),
        *((_x(eps.eps / last, inset=24), eps.label) for eps in columns),
    ]
    return {"series": series, "ticks": _spaced(ticks)}


def _energy_chart(
    drawn: list[tuple[int, Row]], columns: list[Eps], ranked_by: Eps | None
) -> dict[str, Any]:
    costs = {index: row.microjoules or 0.0 for index, row in drawn}
    ticks = _decades(min(costs.values()), max(costs.values()))

    def x(cost: float) -> float:
        return _x(math.log(cost / ticks[0]) / math.log(ticks[-1] / ticks[0]), inset=12)

    groups = []
    for eps in columns:
        points = [
            {
                **_style(index, row),
                **_point(x(costs[index]), cell, f"{row.name}, {energy(row)} µJ, eps {eps.label}"),
            }
            for index, row in drawn
            if (cell := row.at(eps))
        ]
        if points:
            groups.append(
                {"label": eps.label, "points": points, "shown": False, "best": eps == ranked_by}
            )
    shown = next((group for group in groups if group["best"]), groups[-1])
    shown["shown"] = True
    return {
        "groups": groups,
        "shown": shown["label"],
        "ticks": _spaced([(x(tick), f"{tick:g}") for tick in ticks]),
    }


def _point(x: float, cell: Cell, what: str) -> dict[str, Any]:
    label = (
        f"{what}: {100 * cell.value:.1f} %, 95 % interval {100 * cell.low:.1f} to"
        f" {100 * cell.high:.1f} %"
    )
    return {
        "x": round(x, 1),
        "y": _y(cell.value),
        "low": _y(cell.low),
        "high": _y(cell.high),
        "label": label,
    }


def _x(share: float, inset: float = 0) -> float:
    return round(_LEFT + inset + share * (_WIDTH - _LEFT - _RIGHT - 2 * inset), 1)


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _spaced(ticks: list[tuple[float, str]], room: float = 46) -> list[tuple[float, str]]:
    """The ticks, without the labels that would run into the one before."""
    kept, last = [], -math.inf
    for x, label in ticks:
        free = x - last >= room
        kept.append((x, label if free else ""))
        last = x if free else last
    return kept


def _decades(smallest: float, largest: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from below `smallest` to above `largest`, which are
    positive."""
    powers = range(math.floor(math.log10(smallest)) - 1, math.floor(math.log10(largest)) + 2)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    first = max(index for index, tick in enumerate(ticks) if tick < smallest)
    last = min(index for index, tick in enumerate(ticks) if tick > largest)
    return ticks[first : last + 1]
