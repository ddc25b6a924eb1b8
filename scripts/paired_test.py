"""Two models on the same images: how many stay right on one alone, and the exact McNemar test of
the difference.

python scripts/paired_test.py zoo/checkpoints/ONE/evaluation.json
zoo/checkpoints/OTHER/evaluation.json --eps 8/255
"""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

from compare_protocols import survived
from scipy.stats import binomtest

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Accuracy, Report


def compare(one: Report, other: Report, eps: float) -> str:
    if (
        one.dataset.fingerprint != other.dataset.fingerprint
        or one.settings.protocol != other.settings.protocol
    ):
        raise SJRobustError("the reports are not of one data set under one protocol")
    first, second = survived(one, eps), survived(other, eps)
    if first is None or second is None:
        raise SJRobustError(f"a report does not have eps {eps:g}")
    pairs = list(zip(first, second, strict=False))  # of the shorter one's images
    alone = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p = binomtest(alone[0], sum(alone)).pvalue if any(alone) else 1.0
    accuracies = " against ".join(
        str(Accuracy.of(sum(kept), len(pairs))) for kept in zip(*pairs, strict=True)
    )
    return (
        f"{len(pairs)} images: {accuracies}; {alone[0]} hold on the first alone, {alone[1]} on the"
        f" second alone, exact McNemar p = {p:.3g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--eps", type=Fraction, default=Fraction(8, 255))
    options = parser.parse_args()
    try:
        one, other = (
            Report.from_json(path.read_text(encoding="utf-8"))
            for path in (options.one, options.other)
        )
        print(compare(one, other, float(options.eps)))
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
