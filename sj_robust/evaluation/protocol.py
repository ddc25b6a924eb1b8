"""Which attacks run through which gradient views: the named, versioned protocols. No torch.

A card cites "paper@1": a protocol that changes what it runs gets a new version, so that numbers of
one name and version are comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.words import EXACT, TRANSFER

if TYPE_CHECKING:
    from sj_robust.attack import Attack

# Views that break most images go first, so that few images are left for the others; the result does
# not depend on it.
VIEWS = (
    *("PCW:1", "activation", "PCW:2", "rate", "PCW:0.5", "PCW:3", "PCW:0.25"),
    *("EXP-D:0.5", "EXP-D:1", "EXP-D:2", "EXP:0.5", "EXP:1", "EXP:2"),
    *("RECT:0.25", "RECT:0.5", "RECT:1", "RECT:2", "RECT:4", "STE"),
)

AttackMaker = str | Callable[..., "Attack"]


@dataclass(frozen=True)
class Stage:
    """One attack and the views it runs through.

    Attributes:
        views: by name; "transfer" stands for every other model that is given.
        start: where it begins, at the "image" (or near it, as the attack says) or at each image's
            "best" adversarial image of the stages before at this eps; "anew" is at the image, and
            the best of the stages before is set aside: those behind it go on from what is found
            here.
        restarts: its attempts, of which the first one alone begins there.
        only: for networks of one kind, "spiking" ones or those with an "exact" gradient.

    Raises:
        SJRobustError: other words, or no attempt.
    """

    attack: AttackMaker
    views: tuple[str, ...]
    start: Literal["image", "best", "anew"] = "image"
    restarts: int = 1
    only: Literal["spiking", "exact"] | None = None

    def __post_init__(self) -> None:
        if self.start not in ("image", "best", "anew"):
            raise SJRobustError(f"start is {self.start!r}: expected image, best or anew")
        if self.only not in (None, "spiking", "exact"):
            raise SJRobustError(f"only is {self.only!r}: expected spiking, exact or None")
        if self.restarts < 1:
            raise SJRobustError(f"restarts is {self.restarts}: expected at least 1")

    def suits(self, *, spiking: bool) -> bool:
        """Whether a network is of the kind that the stage is for."""
        return self.only is None or (self.only == "spiking") == spiking


@dataclass(frozen=True)
class Protocol:
    """Stages in order, cheap and telling ones first: what one breaks is spared the next."""

    name: str
    version: int
    stages: tuple[Stage, ...]
    about: str

    @property
    def transfers(self) -> bool:
        """Whether it tries the gradients of other models, where some are given."""
        return any(TRANSFER in stage.views for stage in self.stages)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


TURNS = ("PCW:1", "ASSG", "PCW:2", TRANSFER, "ASSG", "rate-temporal", "PCW:1", "rate")
_FEW = ("PCW:1", "PCW:2", "ASSG", "activation")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "quick",
            1,
            (Stage("fgsm", _FEW), Stage("pgd10", _FEW)),
            "FGSM and PGD-10 through the four views that break most: minutes on a laptop",
        ),
        Protocol(
            "paper",
            1,
            tuple(
                Stage(attack, VIEWS)
                for attack in ("fgsm", "pgd20", "apgd10-ce", "apgd10-dlr", "apgd10-t")
            ),
            "FGSM, PGD-20, APGD-CE, APGD-DLR and targeted APGD (10 steps, as the reference) through"
            " the 19 views",
        ),
        Protocol(
            "strong",
            2,
            (
                Stage("pgd10", ("PCW:1", "ASSG")),
                Stage("rotating50", TURNS, start="best"),
                Stage("square1000", (), start="best"),
                Stage("rotating30+square250", TURNS, start="anew", restarts=6, only="spiking"),
                Stage("square2500", (), start="best", only="spiking"),
                Stage("apgd100-t3", (EXACT,), only="exact"),
            ),
            "PGD, gradients of many views and other models in turn, and Square, each going on from"
            " the best image so far; then of a spiking network both from six new images and Square"
            " from the best of these, of an ANN targeted APGD",
        ),
        Protocol(
            "autoattack",
            1,
            tuple(
                Stage(attack, ("ASSG",))
                for attack in ("apgd100-ce", "apgd100-t", "fab-t", "square5000")
            ),
            "AutoAttack's standard version through one view (ASSG, or the one given)",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """ "strong" or "strong@1" → the protocol. Raises SJRobustError for unknown names and versions
    that this release does not have."""
    base = name.partition("@")[0]
    if base not in PROTOCOLS or name not in (base, str(PROTOCOLS[base])):
        raise SJRobustError(
            f"unknown protocol {name!r}: expected one of {', '.join(map(str, PROTOCOLS.values()))}"
        )
    return PROTOCOLS[base]
