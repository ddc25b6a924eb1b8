"""What an evaluation is asked for: the one schema of `evaluate`, recipes and the command line.
Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from sj_robust.budget import number
from sj_robust.settings import Growing

Distance = Annotated[float, BeforeValidator(number), Field(gt=0, allow_inf_nan=False)]


RADII: dict[str, tuple[float, ...]] = {
    "linf": (2 / 255, 4 / 255, 8 / 255),
    "l2": (0.25, 0.5, 1.0),  # 0.5 is RobustBench's; 8/255 would be next to nothing
}
"""Of an evaluation that names none, by norm."""


class EvaluationSettings(Growing):
    """The settings of `evaluate` that a file can hold; the function itself also takes attacks,
    views and protocols as objects."""

    LATE = ("norm", "restarts", "roughness_images")

    eps: list[Distance] = Field(
        list(RADII["linf"]), description="radii; without it 0.25, 0.5 and 1 under l2"
    )
    protocol: str | None = Field(
        None, description="quick, paper, strong or autoattack, in place of attacks and views"
    )
    attacks: list[str] | None = Field(None, description="by name; without them fgsm and pgd10")
    views: list[str] | None = Field(
        None, description="gradient views of a spiking network; without them all 19"
    )
    norm: Literal["linf", "l2"] = Field("linf", description="of the ball around an image")
    restarts: int = Field(1, ge=1, description="attempts of each attack that starts at random")
    max_images: int | None = Field(None, ge=1, description="the first so many images only")
    batch_size: int = Field(128, ge=1, description="images in a batch")
    check_images: int = Field(
        64, ge=0, description="images for the reliability checks; 0 leaves them out"
    )
    roughness_images: int | None = Field(
        None,
        ge=0,
        description=(
            "images around which 100 random points at each of two radii are tried; without it 64"
            " under a protocol"
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _radii_of_the_norm(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("norm") == "l2":
            return {"eps": list(RADII["l2"]), **fields}
        return fields

    @model_validator(mode="after")
    def _in_images(self) -> EvaluationSettings:
        if self.norm == "linf" and (odd := next((eps for eps in self.eps if eps > 1), None)):
            raise ValueError(
                f"eps is {odd:g}: images lie in [0,1], so write {odd:g}/255, not {odd:g}"
            )
        return self

    @model_validator(mode="after")
    def _one_choice(self) -> EvaluationSettings:
        if self.protocol and self.attacks != type(self).model_fields["attacks"].default:
            raise ValueError(
                f"protocol {self.protocol} says which attacks run: leave attacks out, or the"
                " protocol"
            )
        return self
