"""What certificates show of a model, as a checkpoint records it. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Accuracy, DatasetFacts, Facts, ModelFacts, eps_name
from sj_robust.settings import first_error

# of each method the ball whose radius it shows
_NORM = {"interval bounds": "linf", "randomised smoothing": "l2"}


class CertifiedAt(Facts):
    """Images that are classified right in the whole ball of this radius, as the certificate
    shows."""

    eps: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    accuracy: Accuracy


class Certified(Facts):
    """One certificate: a lower bound where attacks have an upper one.

    Attributes:
        method: interval bounds hold for the model itself, randomised smoothing for the classifier
            that votes over noisy copies.
        norm: of the ball.
        sigma: of the noise of smoothing; None of interval bounds.
        points: at ascending eps.
    """

    method: Literal["interval bounds", "randomised smoothing"]
    norm: Literal["linf", "l2"]
    sigma: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    model: ModelFacts
    dataset: DatasetFacts
    points: Annotated[list[CertifiedAt], Field(min_length=1, max_length=1000)]

    @property
    def images(self) -> int:
        """The first so many of the data set."""
        return self.dataset.evaluated

    @property
    def name(self) -> str:
        """The method, and of smoothing its noise."""
        return self.method if self.sigma is None else f"{self.method}, sigma {self.sigma:g}"

    def radius(self, eps: float) -> str:
        """As it is read: l∞ 2/255, l2 0.25."""
        return f"l∞ {eps_name(eps)}" if self.norm == "linf" else f"{self.norm} {eps:.3g}"


class Certificates(Facts):
    """certificates.json of a checkpoint: one of each method at most."""

    format: Literal[1] = 1
    found: Annotated[list[Certified], Field(max_length=len(_NORM))]

    @classmethod
    def from_json(cls, text: str | bytes) -> Certificates:
        """What `to_json` wrote.

        Raises:
            SJRobustError: `text` is no such file, or a figure contradicts another one.
        """
        try:
            certificates = cls.model_validate_json(text)
        except ValidationError as error:
            raise SJRobustError(f"no certificates of this version: {first_error(error)}") from None
        try:
            _check(certificates)
        except ArithmeticError as error:  # integers of a thousand digits
            _refuse(str(error))
        return certificates

    def to_json(self) -> str:
        """As JSON."""
        return self.model_dump_json(indent=2) + "\n"

    def with_new(self, new: Certified) -> Certificates:
        """With `new` in the place of an earlier one of its method."""
        others = [one for one in self.found if one.method != new.method]
        return Certificates(found=[*others, new])


def _check(certificates: Certificates) -> None:
    methods = [one.method for one in certificates.found]
    if len(set(methods)) < len(methods):
        _refuse(f"there are several by {methods[0]}")
    for one in certificates.found:
        if one.norm != _NORM[one.method] or (one.sigma is None) == (one.norm == "l2"):
            _refuse(f"{one.method} has balls in {one.norm}, and sigma {one.sigma}")
        if not 1 <= one.images <= one.dataset.size:
            _refuse(f"{one.images} of {one.dataset.size} images were certified by {one.method}")
        radii = [point.eps for point in one.points]
        if radii != sorted(set(radii)):
            _refuse(f"the radii of {one.method} do not ascend: {radii[:5]}")
        most = one.images
        for point in one.points:
            said = point.accuracy
            if not 0 <= said.correct <= most:
                _refuse(
                    f"{said.correct} images are certified by {one.method} at eps {point.eps:g}, at"
                    f" most {most} can be"
                )
            if said.total != one.images or not said.follows(rel_tol=0):
                _refuse(f"{said} are not {said.correct} of {one.images} images")
            most = said.correct


def _refuse(why: str) -> None:
    raise SJRobustError(f"the certificates contradict themselves: {why}")
