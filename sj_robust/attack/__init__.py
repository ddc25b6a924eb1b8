"""Gradient attacks in the l∞ ball and gradient views of spiking networks."""

from sj_robust.attack.gradient import FGSM, PGD, RFGSM, LinfAttack, parse_attack
from sj_robust.attack.mode import evaluation_mode
from sj_robust.attack.view import GradientView

__all__ = ["FGSM", "PGD", "RFGSM", "GradientView", "LinfAttack", "evaluation_mode", "parse_attack"]
