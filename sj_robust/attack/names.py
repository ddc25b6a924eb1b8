"""Attacks by name, as the command line and reports write them."""

from __future__ import annotations

import re
from collections.abc import Callable

from sj_robust.attack.autoattack import APGD, FAB
from sj_robust.attack.base import Attack, Norm
from sj_robust.attack.gradient import FGSM, PGD, RFGSM, SAPGD
from sj_robust.attack.rotating import Rotating
from sj_robust.attack.rounds import Rounds
from sj_robust.attack.square import Square
from sj_robust.attack.uniform import UniformNoise
from sj_robust.errors import SJRobustError

KNOWN = (
    "fgsm, rfgsm, pgdN (N steps: pgd10), sapgdN-ce, sapgdN-dlr, apgdN-ce, apgdN-dlr, "
    "apgdN-t (targeted; apgdN-t3: three targets), fab, fab-t, rotatingN, squareN (N queries), "
    "noiseN (N draws), without N 100 steps, 5000 queries, 10 draws; one and, from where it ends, "
    "another: rotating30+square250"
)

_COUNT = r"([1-9]\d{0,5})"
_PATTERNS: dict[str, Callable[..., Attack]] = {
    "fgsm": lambda **ball: FGSM(**ball),
    "rfgsm": lambda **ball: RFGSM(**ball),
    f"pgd{_COUNT}": lambda steps, **ball: PGD(steps=int(steps), **ball),
    f"sapgd{_COUNT}?-(ce|dlr)": lambda steps, loss, **ball: SAPGD(
        steps=int(steps or 100), loss=loss, **ball
    ),
    f"apgd{_COUNT}?-(ce|dlr)": lambda steps, loss, **ball: APGD(
        steps=int(steps or 100), loss=loss, **ball
    ),
    f"apgd{_COUNT}?-t([1-9])?": lambda steps, targets, **ball: APGD(
        steps=int(steps or 100), loss="t", targets=int(targets or 9), **ball
    ),
    "fab": lambda **ball: FAB(targets=0, **ball),
    "fab-t": lambda **ball: FAB(**ball),
    f"rotating{_COUNT}?": lambda steps, **ball: Rotating(steps=int(steps or 100), **ball),
    f"square{_COUNT}?": lambda queries, **ball: Square(queries=int(queries or 5000), **ball),
    f"noise{_COUNT}?": lambda draws, **ball: UniformNoise(restarts=int(draws or 10), **ball),
}


def parse_attack(name: str, eps: float, norm: Norm = "linf") -> Attack:
    """The attack called `name` at `eps` with its default settings.

    Raises:
        SJRobustError: any other name.
    """
    first, plus, second = name.rpartition("+")
    if plus:
        return Rounds(
            eps=eps,
            norm=norm,
            first=parse_attack(first, eps, norm),
            second=parse_attack(second, eps, norm),
        )
    for pattern, make in _PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return make(*match.groups(), eps=eps, norm=norm)
    raise SJRobustError(f"unknown attack {name!r}: expected one of {KNOWN}")
