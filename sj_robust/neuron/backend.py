"""The backends of the multistep node, by name.

A backend computes all T steps of a layer at once, from rest, and is differentiable with respect to
the input and the threshold. A new one is a function with the signature of `Multistep`, registered
under a name; the node stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sj_robust.errors import SJRobustError
from sj_robust.neuron.surrogate import Surrogate


class Multistep(Protocol):
    """All T steps of a layer, from rest.

    x [T, N, *] float, threshold broadcastable to one step [N, *] → spikes [T, N, *] of 0/1 in x's
    dtype.
    """

    def __call__(
        self, x: Tensor, v_threshold: Tensor, *, leak: float, soft_reset: bool, surrogate: Surrogate
    ) -> Tensor: ...


_BACKENDS: dict[str, tuple[Multistep, Callable[[Tensor], bool]]] = {}


def register_backend(
    name: str, multistep: Multistep, *, automatic: Callable[[Tensor], bool]
) -> None:
    """Add a backend; the last registered wins.

    Args:
        automatic: whether "auto" may choose it for such an input.
    """
    _BACKENDS[name] = (multistep, automatic)


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` takes beside "auto"."""
    return tuple(_BACKENDS)


def check_backend(name: str) -> None:
    """Raise SJRobustError unless `name` is "auto" or registered."""
    if name != "auto" and name not in _BACKENDS:
        raise SJRobustError(
            f"unknown neuron backend {name!r}: expected auto or one of {', '.join(_BACKENDS)}"
        )


def select_backend(name: str, x: Tensor) -> Multistep:
    """The backend called `name`, or for "auto" the most recently registered one that takes `x`.

    Raises:
        SJRobustError: an unknown name.
    """
    check_backend(name)
    if name != "auto":
        return _BACKENDS[name][0]
    return next(multistep for multistep, automatic in reversed(_BACKENDS.values()) if automatic(x))
