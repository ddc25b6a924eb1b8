"""Counts of images as accuracies with their intervals."""

from __future__ import annotations

import math

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.words import interval_name
from sj_robust.settings import Strict

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal


class Facts(Strict):
    """Immutable; unknown fields are an error, so that a report of another version is not
    misread."""


class Accuracy(Facts):
    """`correct` of `total` images, as a fraction with its Wilson 95 % interval."""

    correct: int
    total: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, total: int) -> Accuracy:
        """With its fraction and interval."""
        low, high = wilson(correct, total)
        return cls(correct=correct, total=total, value=correct / total, low=low, high=high)

    def follows(self, rel_tol: float = 1e-6) -> bool:
        """Whether fraction and interval are those of the counts, but for rounding."""
        if not (self.total >= 1 and 0 <= self.correct <= self.total):
            return False
        right = Accuracy.of(self.correct, self.total)
        return all(
            math.isclose(one, other, rel_tol=rel_tol, abs_tol=1e-9)
            for one, other in (
                (self.value, right.value),
                (self.low, right.low),
                (self.high, right.high),
            )
        )

    def __str__(self) -> str:
        return interval_name(self.value, self.low, self.high)


def wilson(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval for a proportion (Wilson, JASA 22, 1927), as fractions.

    Args:
        z: 1.96 gives 95 %.

    Raises:
        SJRobustError: not 0 ≤ correct ≤ total, or total < 1.
    """
    if not (total >= 1 and 0 <= correct <= total):
        raise SJRobustError(
            f"{correct} correct of {total} images: expected at least one image and 0 ≤ correct ≤"
            " total"
        )
    p, spread = correct / total, z * z / total
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / total + spread / total / 4) / (1 + spread)
    # At 0 and at `total` correct the bounds are 0 and 1 exactly; rounding must not say otherwise.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)
