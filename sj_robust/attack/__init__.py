"""Attacks in the l∞ and l2 balls, and gradient views of spiking networks."""

from sj_robust.attack.autoattack import APGD, FAB
from sj_robust.attack.base import Attack, Norm
from sj_robust.attack.gradient import FGSM, PGD, RFGSM, SAPGD, GradientAttack
from sj_robust.attack.mode import evaluation_mode
from sj_robust.attack.names import parse_attack
from sj_robust.attack.rotating import Rotating
from sj_robust.attack.rounds import Rounds
from sj_robust.attack.square import Square
from sj_robust.attack.uniform import UniformNoise
from sj_robust.attack.view import GradientView, Sources

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "RFGSM",
    "SAPGD",
    "Attack",
    "GradientAttack",
    "GradientView",
    "Norm",
    "Rotating",
    "Rounds",
    "Sources",
    "Square",
    "UniformNoise",
    "evaluation_mode",
    "parse_attack",
]
