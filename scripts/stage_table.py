"""What each stage of an evaluation left standing, and what it cost: one row per report and eps.

    python scripts/stage_table.py zoo/checkpoints/*/evaluation.json

Reports of one protocol share a table; of stages that a network does not have the cell is empty.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Report, eps_name


def table(reports: list[tuple[str, Report]]) -> str:
    """Markdown: the accuracy left after each attack, the last with its interval, and seconds per
    1,000 images at that eps."""
    attacks = list(
        dict.fromkeys(attack for _, report in reports for attack in report.settings.attacks)
    )
    rows = [["network", "images", "clean", "eps", *attacks, "left", "seconds per 1,000 images"]]
    rows.append(["---"] * len(rows[0]))
    for name, report in reports:
        images = report.dataset.evaluated
        for joint in report.joint:
            at = {result.attack: result for result in report.robust if result.eps == joint.eps}
            left = [
                f"{100 * at[attack].joint.value:.1f} %" if attack in at else ""
                for attack in attacks
            ]
            seconds = sum(result.seconds or 0 for result in at.values()) * 1000 / images
            rows.append(
                [
                    f"`{name}`",
                    str(images),
                    f"{100 * report.clean.value:.1f} %",
                    eps_name(joint.eps),
                    *left,
                    str(joint.accuracy),
                    f"{seconds:.0f}",
                ]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "reports", nargs="+", type=Path, help="evaluation.json of checkpoint folders"
    )
    try:
        read = [
            (path.parent.name, Report.from_json(path.read_text(encoding="utf-8")))
            for path in parser.parse_args().reports
        ]
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")

    def protocol(item: tuple[str, Report]) -> str:
        return item[1].settings.protocol or "attacks without a protocol"

    for named, group in groupby(sorted(read, key=protocol), protocol):
        print(f"{named}\n\n{table(list(group))}\n")


if __name__ == "__main__":
    main()
