"""A network as it was trained: a view of the network, not of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from sj_robust.errors import SJRobustError
from sj_robust.neuron.view import View

T = TypeVar("T")


@dataclass(frozen=True)
class Own(View):
    """Each node keeps the surrogate function that the network was trained with.

    Only the network knows it: no node is ever shown in this view, but in what `instead_of` answers.
    """

    def __str__(self) -> str:
        return "own"

    def instead_of(self, own: T) -> T:
        return own

    def steps(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()

    def step(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()

    def foreign(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SJRobustError("own is a view of a network, not of a node: use its gradient('own')")
