"""The leaky integrate-and-fire node with a learnable threshold."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.neuron.backend import check_backend, select_backend
from sj_robust.neuron.surrogate import Surrogate
from sj_robust.neuron.view import View, wants_gradient
from sj_robust.neuron.views import parse_view

_ANY = Surrogate("PCW")  # where nothing is derived
Reset = Literal["hard", "soft"]


class ThresholdLIF(BaseNode):
    """A SpikingJelly node whose firing threshold is a parameter.

        h = leak·v + x;   s = [h − v_threshold ≥ 0]
        v = (1 − s)·h  (reset="hard")   or   h − s·v_threshold  ("soft")

    It emits 0/1 and is differentiable with respect to its input and its threshold; the reset path
    is not detached. leak = 1 is the integrate-and-fire node. Source: Özdenizci & Legenstein, TMLR
    2024, equations 3–6.

    Step modes, as in SpikingJelly: in multistep mode ("m", the default here) the input is [T, N,
    *], every forward starts from rest and leaves no state behind, so no reset is needed between
    calls; in single-step mode ("s") the input is [N, *] and the potential `v` is kept until
    `functional.reset_net`. `store_v_seq = True` records the potentials after reset in `v_seq` [T,
    N, *], at the speed of a step-by-step loop. In SpikingJelly's functional form an explicit state
    tensor is honoured in both modes.

    Args:
        v_threshold: initial threshold, above 0.
        leak: 0 < leak ≤ 1.
        surrogate: the `view` to begin with.
        backend: "auto" or a name from `available_backends()`.
        channels: C for one threshold per channel of [.., C, H, W] or [.., C]; None for one of the
            layer.

    Raises:
        SJRobustError: a value outside these bounds.
    """

    v_threshold: nn.Parameter

    def __init__(
        self,
        v_threshold: float = 1.0,
        leak: float = 1.0,
        reset: Reset = "hard",
        surrogate: Surrogate = Surrogate("PCW", 1.0),
        backend: str = "auto",
        channels: int | None = None,
    ) -> None:
        if not (math.isfinite(v_threshold) and v_threshold > 0):
            raise SJRobustError(f"v_threshold must be a finite number above 0, got {v_threshold}")
        if not 0 < leak <= 1:
            raise SJRobustError(f"leak must be above 0 and at most 1, got {leak}")
        if reset not in ("hard", "soft"):
            raise SJRobustError(f"reset must be 'hard' or 'soft', got {reset!r}")
        check_backend(backend)
        v_reset = 0.0 if reset == "hard" else None
        super().__init__(
            float(v_threshold),
            v_reset,
            surrogate_function=surrogate.spike,
            detach_reset=False,
            step_mode="m",
        )
        del self.v_threshold  # the plain float that BaseNode leaves would shadow the parameter
        self.v_threshold = nn.Parameter(
            torch.full(() if channels is None else (channels,), float(v_threshold))
        )
        self.leak = float(leak)
        self.backend = backend
        self.view = surrogate

    @property
    def view(self) -> View:
        """How gradients flow back: a Surrogate, or another of neuron.views.

        May be set by its name too: "rate" (a step's gradient passes where the neuron fired at least
        once within T), "activation" (forward and backward are those of a ReLU). Reading it gives
        the View. A forward pass fixes the view of its own backward.
        """
        return self._view

    @view.setter
    def view(self, view: View | str) -> None:
        self._view = parse_view(view)

    @property
    def soft_reset(self) -> bool:
        """Whether a spike subtracts the threshold, in place of a reset to 0."""
        return self.v_reset is None

    def extra_repr(self) -> str:
        threshold = (
            f"{self.v_threshold.item():.4g}"
            if self.v_threshold.dim() == 0
            else f"[{self.v_threshold.numel()}]"
        )
        reset = "soft" if self.soft_reset else "hard"
        return (
            f"v_threshold={threshold}, leak={self.leak:g}, reset={reset}, view={self.view},"
            f" backend={self.backend}, step_mode={self.step_mode}"
        )

    def threshold_for(self, step: Tensor) -> Tensor:
        """The threshold, shaped to broadcast over one step [N, C, *]."""
        if self.v_threshold.dim() == 0:
            return self.v_threshold
        return self.v_threshold.view(-1, *(1,) * (step.dim() - 2))

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.reset()
        if self.store_v_seq:
            return super().multi_step_forward(x_seq)  # type: ignore[no-any-return]
        return self._from_rest(x_seq)

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        # A float means "at rest": kept in multistep mode, where it lets the backend run the whole
        # sequence at once.
        if step_mode == "m" and isinstance(states[0], float):
            return states
        return super().materialize_states(inputs, states, step_mode)  # type: ignore[no-any-return]

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        if isinstance(states[0], float):
            return (self._from_rest(inputs[0]),), states
        return super().multi_step_functional_forward(inputs, states, **kwargs)  # type: ignore[no-any-return]

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        x = inputs[0]
        spike, v = self.view.step(x, states[0], self.threshold_for(x), self.leak, self.soft_reset)
        return (spike,), (v,)

    def _from_rest(self, x: Tensor) -> Tensor:
        multistep, threshold = select_backend(self.backend, x), self.threshold_for(x[0])
        view, leak, soft_reset = self.view, self.leak, self.soft_reset
        if view.true_forward and not wants_gradient(x, threshold):  # all such views are one
            return multistep(x, threshold, leak=leak, soft_reset=soft_reset, surrogate=_ANY)
        return view.steps(self, x, threshold, leak, soft_reset, multistep)
