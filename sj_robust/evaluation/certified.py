"""What certificates show of a model, as a part of its report."""

from __future__ import annotations

from typing import Literal

from sj_robust.evaluation.accuracy import Accuracy, Facts
from sj_robust.evaluation.words import eps_name


class CertifiedAt(Facts):
    """Images that are classified right in the whole ball of this radius, as the certificate
    shows."""

    eps: float
    accuracy: Accuracy


class Certified(Facts):
    """A certificate beside attacks: a lower bound where they have an upper one.

    Attributes:
        method: interval bounds hold for the model itself, randomised smoothing for the classifier
            that votes over noisy copies.
        norm: of the ball.
        images: the first so many of the data set.
        settings: how it was made.
        points: at ascending eps.
    """

    method: Literal["interval bounds", "randomised smoothing"]
    norm: Literal["linf", "l2"]
    images: int
    settings: dict[str, float]
    points: list[CertifiedAt]

    @property
    def name(self) -> str:
        """The method, and of smoothing its noise."""
        sigma = self.settings.get("sigma")
        return self.method if sigma is None else f"{self.method}, sigma {sigma:g}"

    def lines(self) -> list[str]:
        """In words, one for each radius."""
        norm = {"linf": "l∞"}.get(self.norm, self.norm)
        return [
            f"{point.accuracy} within {norm} {self.radius(point.eps)}"
            f" ({self.name}; {self.images} images)"
            for point in self.points
        ]

    def radius(self, eps: float) -> str:
        """As it is read: 2/255 in l∞, 0.25 in l2."""
        return eps_name(eps) if self.norm == "linf" else f"{eps:.3g}"
