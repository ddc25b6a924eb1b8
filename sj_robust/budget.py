"""Radii as people write them: 0.031, 8/255, "8/255", or a number of numpy or torch. Imports no
torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, SupportsFloat

from pydantic import BeforeValidator

from sj_robust.errors import SJRobustError

Radius = SupportsFloat | str


def number(value: Any) -> float:
    """A number, or a text that is one or a fraction. Raises ValueError for anything else."""
    if isinstance(value, str):
        above, slash, below = value.replace(" ", "").partition("/")
        try:  # in floats: exact fractions of a text such as 1e999999999 never end
            found = float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError):
            found = math.nan
        if not math.isfinite(found):
            raise ValueError(f"{value[:80]!r} is neither a number nor a fraction such as 8/255")
        return found
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise ValueError(f"{value!r} is not a number: expected one such as 8/255")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # an array or tensor of several
        raise ValueError(f"{value!r} is not one number: expected one such as 8/255") from None


def linf_budget(value: Any) -> float:
    """An l-infinity distance on images in [0, 1], above 0, at most 1. Raises ValueError for
    anything else."""
    found = number(value)
    if not 0 < found < math.inf:
        raise ValueError(f"{value!r} is not above 0: write 8/255 or 0.031")
    if found > 1:
        raise ValueError(f"{value!r} is not at most 1: images lie in [0,1], so write 8/255, not 8")
    return found


Budget = Annotated[float, BeforeValidator(linf_budget)]
"""Of a setting: recipes and command lines write budgets as the papers do, "8/255"."""


def radius(value: Any, norm: str = "linf") -> float:
    """An eps in units of the image range [0, 1], at most 1 under linf.

    Raises SJRobustError for what is no number, below 0, not finite, or above that.
    """
    try:
        eps = number(value)
    except ValueError as error:
        raise SJRobustError(f"eps: {error}") from None
    if not (math.isfinite(eps) and eps >= 0):
        raise SJRobustError(f"eps is {value}: expected a number ≥ 0, such as 8/255")
    if norm == "linf" and eps > 1:
        raise SJRobustError(
            f"eps is {value}: expected 0 to 1, in units of the image range "
            f"({eps:g}/255, not {eps:g})"
        )
    return eps


def radii(values: Any, norm: str = "linf") -> list[float]:
    """One or several of them, ascending, each once; two that would be written alike are one."""
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    if several and getattr(values, "ndim", 1) == 0:  # an array or tensor of one number
        several = False
    found: list[float] = []
    for value in sorted(radius(value, norm) for value in (values if several else [values])):
        if not found or value - found[-1] > max(1e-5 * value, 1e-8):
            found.append(value)
    return found
