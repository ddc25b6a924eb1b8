"""Surrogate derivatives of the spike function.

A spike is s = [u ≥ 0] with u = h − v_th, the distance of the membrane potential to the threshold.
Its derivative is zero almost everywhere, so a surrogate σ'(u) stands in for it. Which one is used
decides what a gradient attack can see (see view). It is the plainest gradient view, and the one
that backends compute with: they and the other views are built on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.neuron.view import Pass, Run, View

SurrogateName = Literal["PCW", "EXP", "EXP-D", "RECT", "STE"]
SURROGATE_NAMES: tuple[str, ...] = get_args(SurrogateName)


@dataclass(frozen=True)
class Surrogate(View):
    """A surrogate derivative σ'(u) of width γ, and the view that goes back through time with it.

        name    σ'(u)                  equal in SpikingJelly 2.0
        PCW     max(0, γ − |u|) / γ²   PiecewiseQuadratic(alpha=1/γ)
        EXP     exp(−γ|u|)
        EXP-D   0.3 · exp(−γ|u|)
        RECT    1/γ where |u| < γ/2    Rect(alpha=1/γ)
        STE     1                      DeterministicPass()

    Args:
        name: as in the table.
        gamma: γ, a finite number above 0.

    Raises:
        SJRobustError: an unknown name, or another width.
    """

    name: str
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in SURROGATE_NAMES:
            raise SJRobustError(
                f"unknown surrogate {self.name!r}: expected one of {', '.join(SURROGATE_NAMES)}"
            )
        if not (
            isinstance(self.gamma, (int, float)) and math.isfinite(self.gamma) and self.gamma > 0
        ):
            raise SJRobustError(
                f"surrogate width must be a finite number above 0, got {self.gamma!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Surrogate:
        """Read "PCW:0.5" (or "PCW", width 1).

        Raises:
            SJRobustError: another text.
        """
        name, _, width = text.partition(":")
        try:
            return cls(name, float(width) if width else 1.0)
        except ValueError:
            raise SJRobustError(
                f"surrogate {text!r}: the width after ':' must be a number, as in PCW:0.5"
            ) from None

    def __str__(self) -> str:
        return self.name if self.name == "STE" else f"{self.name}:{self.gamma:g}"

    def derivative(self, u: Tensor) -> Tensor:
        """σ'(u), elementwise; same shape and dtype as `u`."""
        match self.name:
            case "PCW":
                height = torch.rsub(u.abs(), self.gamma).clamp_(min=0)
                return height if self.gamma == 1 else height.div_(self.gamma**2)
            case "EXP":
                return u.abs().mul_(-self.gamma).exp_()
            case "EXP-D":
                return u.abs().mul_(-self.gamma).exp_().mul_(0.3)
            case "RECT":
                return (u.abs() < self.gamma / 2).to(u.dtype).div_(self.gamma)
            case _:
                return torch.ones_like(u)

    def spike(self, u: Tensor) -> Tensor:
        """[u ≥ 0] as 0/1 in the dtype of `u`; its backward multiplies by σ'(u)."""
        return _Spike.apply(u, self)  # type: ignore[no-any-return]

    def steps(
        self,
        node: nn.Module,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Callable[..., Tensor],
    ) -> Tensor:
        return multistep(x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=self)

    def step(
        self, x: Tensor, v: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool
    ) -> tuple[Tensor, Tensor]:
        h = leak * v + x
        s = self.spike(h - v_threshold)
        return s, h - s * v_threshold if soft_reset else (1 - s) * h

    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        return run(self.spike)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(u), None
