"""Reports of one model under several protocols, side by side on the images that all of them
attacked.

    sj-robust evaluate NAME --data cifar10 --protocol quick  --eps 8/255 --max-images 1000 --out
    quick.json sj-robust evaluate NAME --data cifar10 --protocol strong --eps 8/255 --max-images 128
    --out strong.json python scripts/compare_protocols.py quick.json strong.json

An image's outcome does not depend on the other images, so the first 128 outcomes of the longer run
are those of a shorter one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Accuracy, Report, eps_name


def survived(report: Report, eps: float) -> list[bool] | None:
    """Whether each image is right and stays so at `eps`, in order; None where the report does not
    have that eps."""
    for at, joint in enumerate(report.joint):
        if abs(joint.eps - eps) < 1e-9:
            return report.per_image.standing(at)
    return None


def robust(report: Report, eps: float, images: int) -> Accuracy | None:
    """Accuracy of the first `images` at `eps`, None where the report does not have that eps."""
    outcomes = survived(report, eps)
    return None if outcomes is None else Accuracy.of(sum(outcomes[:images]), images)


def compare(reports: dict[str, Report]) -> str:
    """A Markdown table: a row per report, a column per eps that one of them has."""
    if (
        len(
            {
                (report.model.weights_sha256, report.dataset.fingerprint)
                for report in reports.values()
            }
        )
        > 1
    ):
        raise SJRobustError("the reports are not of one model on one data set")
    images = min(report.dataset.evaluated for report in reports.values())
    every = sorted({joint.eps for report in reports.values() for joint in report.joint})
    rows = [
        ["protocol", *map(eps_name, every), "seconds per 1,000 images", "stopped"],
        ["---"] * (len(every) + 3),
    ]
    for name, report in reports.items():
        cells = [robust(report, eps, images) for eps in every]
        seconds = (
            sum(result.seconds or 0 for result in report.robust) * 1000 / report.dataset.evaluated
        )
        found = [str(cell or "not run") for cell in cells]
        rows.append(
            [report.settings.protocol or name, *found, f"{seconds:.0f}", report.stopped or "no"]
        )
    return f"first {images} images\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path)
    try:
        print(
            compare(
                {
                    path.stem: Report.from_json(path.read_text(encoding="utf-8"))
                    for path in parser.parse_args().reports
                }
            )
        )
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
