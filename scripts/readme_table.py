"""Write the zoo's models and what was measured of them into README.md and docs/models.md, between
the two marker lines of each.

python scripts/readme_table.py            # rewrite the tables
python scripts/readme_table.py --check    # change nothing; fail where a table is out of date

<!-- zoo table --> is followed by a table of all models, <!-- zoo table: NAME NAME --> by one of
those named, on one line or several; <!-- /zoo table --> ends both.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from sj_robust.checkpoint.config import STRONGEST_FIRST
from sj_robust.checkpoint.results import Point, Results, protocol_of
from sj_robust.checkpoint.zoo import Entry, list_models
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import PROTOCOLS
from sj_robust.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "README.md", ROOT / "docs" / "models.md"
BEGIN, END = "<!-- zoo table -->", "<!-- /zoo table -->"
_BEGIN = re.compile(r"<!-- zoo table(?::\s([^>]+))?\s-->")


def table(entries: Sequence[Entry], names: Sequence[str] = ()) -> str:
    """One row per model: clean and robust accuracy under each protocol, with Wilson 95 % intervals,
    the shares of its ANN's robust accuracy and energy, and the images they were measured on.

    Protocols that a model was measured under on other images have a row of their own. By data set,
    the ANNs before the spiking networks. Figures of a version that is not run any more, because
    others broke it, are left out. With `names` the table is of these models alone.
    """
    if unknown := set(names) - {entry.name for entry in entries}:
        raise SJRobustError(
            f"the zoo has no {', '.join(sorted(unknown))}: expected names that sj-robust list shows"
        )
    shown = sorted(
        (entry for entry in entries if not names or entry.name in names),
        key=lambda entry: (entry.dataset or "", entry.kind, entry.name),
    )
    columns = sorted(
        {
            _column(results, point)
            for entry in shown
            for results in entry.results
            for point in _standing(results)
        }
    )
    rows = [
        [
            "model",
            "clean",
            *(f"{radius:g}/255, {protocol}" for radius, _, protocol in columns),
            "kept of its ANN at",
            "energy of its ANN",
            "images",
        ]
    ]
    rows.append(["---"] * len(rows[0]))
    for entry in shown:
        name = f"`{entry.name}` ({f'T={entry.timesteps}' if entry.kind == 'snn' else 'ANN'})"
        if not entry.results:
            rows.append([name, *["–"] * (len(columns) + 1), "", "", ""])
        for (images, dataset, clean), together in groupby(
            entry.results, lambda results: (results.n, results.dataset, str(results.clean))
        ):
            at = {
                _column(results, point): str(point)
                for results in together
                for point in _standing(results)
            }
            rows.append(
                [
                    name,
                    clean,
                    *(at.get(column, "–") for column in columns),
                    *_beside_ann(entry),
                    f"{images:,} of {dataset}",
                ]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _beside_ann(entry: Entry) -> tuple[str, str]:
    """The shares of its ANN's robust accuracy that it keeps, and of its ANN's energy that it
    takes."""
    kept = ", ".join(f"{255 * one.eps:g}/255: {100 * one.value:.0f} %" for one in entry.kept)
    found = entry.strongest
    if not (found and found.microjoules and found.ann_microjoules):
        return kept, ""
    return kept, f"{100 * found.microjoules / found.ann_microjoules:.0f} %"


def _standing(results: Results) -> Sequence[Point]:
    """The figures of an evaluation, none where its protocol has a newer version."""
    current = PROTOCOLS.get(results.named.partition("@")[0])
    return results.robust if current is None or str(current) == results.named else ()


def _column(results: Results, point: Point) -> tuple[float, int, str]:
    """Where a figure stands: by radius in 255ths, the strongest protocol first."""
    return (
        round(255 * point.eps, 6),
        STRONGEST_FIRST.index(protocol_of(results.named)),
        results.short_protocol,
    )


def rewritten(text: str, entries: Sequence[Entry]) -> str:
    """`text` with the table in place of what stands between the markers. Raises SJRobustError
    unless each stands there once, in order, and for a name that is no model's."""
    found = _BEGIN.findall(text)
    head, end, tail = text.partition(END)
    begin = _BEGIN.search(head)
    if not (begin and end) or len(found) > 1 or text.count(END) > 1:
        raise SJRobustError(
            f"expected one line {BEGIN} and one line {END} below it, around the place of the table"
        )
    names = (begin[1] or "").split()
    return f"{head[: begin.end()]}\n{table(entries, names)}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pages",
        nargs="*",
        type=Path,
        default=PAGES,
        help="default: README.md and docs/models.md of this repository",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail where a file is out of date, and leave it alone",
    )
    options = parser.parse_args(arguments)
    for page in options.pages:
        try:
            before = page.read_text(encoding="utf-8")
            after = rewritten(before, list_models())
        except (OSError, SJRobustError) as error:
            sys.exit(f"{page}: {error}")
        if options.check and before != after:
            sys.exit(
                f"{page}: its table is not what the zoo says: run python scripts/readme_table.py"
            )
        if before != after:
            write_atomic(page, after)


if __name__ == "__main__":
    main()
