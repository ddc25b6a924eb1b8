"""Write the zoo's models and what was measured of them into README.md, between its two marker lines.

    python scripts/readme_table.py            # rewrite the table
    python scripts/readme_table.py --check    # change nothing; fail where the table is not what the zoo says
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sj_robust.errors import SJRobustError
from sj_robust.files import write_atomic
from sj_robust.hub.results import Point, Results
from sj_robust.hub.zoo import Entry, list_models

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- zoo table -->", "<!-- /zoo table -->"


def table(entries: Sequence[Entry]) -> str:
    """One row per model and protocol: clean and robust accuracy with Wilson 95 % intervals, and the images they were measured on.

    By data set, the ANNs before the spiking networks made from them.
    """
    entries = sorted(entries, key=lambda entry: (entry.dataset or "", entry.kind, entry.name))
    found = [results for entry in entries for results in _all(entry)]
    radii = sorted({round(255 * point.eps, 6) for results in found for point in results.robust})
    rows = [["model", "clean", *(f"{radius:g}/255" for radius in radii), "images", "robust to"]]
    rows.append(["---"] * len(rows[0]))
    for entry in entries:
        kind = f"T={entry.timesteps}" if entry.kind == "snn" else "ANN"
        name = f"`{entry.name}` ({kind})"
        if not entry.results:
            rows.append([name, *["not measured"] * (len(radii) + 1), "", ""])
        for results in _all(entry):
            robust = {round(255 * point.eps, 6): point for point in results.robust}
            rows.append([name, _cell(results.clean), *(_cell(robust.get(radius)) for radius in radii),
                         f"{results.n:,} of {results.dataset}", results.short_protocol])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _all(entry: Entry) -> list[Results]:
    return [entry.results, *entry.further] if entry.results else []


def _cell(point: Point | None) -> str:
    return "not measured" if point is None else str(point)


def rewritten(text: str, entries: Sequence[Entry]) -> str:
    """`text` with the table in place of what stands between the markers. Raises SJRobustError unless each stands there once, in order."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise SJRobustError(f"expected one line {BEGIN} and one line {END} below it, around the place of the table")
    return f"{head}{BEGIN}\n{table(entries)}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", nargs="?", type=Path, default=README, help="default: README.md of this repository")
    parser.add_argument("--check", action="store_true", help="fail where the file is out of date, and leave it alone")
    options = parser.parse_args(arguments)
    try:
        before = options.readme.read_text(encoding="utf-8")
        after = rewritten(before, list_models())
    except (OSError, SJRobustError) as error:
        sys.exit(f"{options.readme}: {error}")
    if options.check and before != after:
        sys.exit(f"{options.readme}: its table is not what the zoo says: run python scripts/readme_table.py")
    if before != after:
        write_atomic(options.readme, after)


if __name__ == "__main__":
    main()
