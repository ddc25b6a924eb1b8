"""Act: the node as a ReLU, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sj_robust.neuron.backend import Multistep
from sj_robust.neuron.view import Pass, Run, View


@dataclass(frozen=True)
class Activation(View):
    """The network as the ANN of its shape; its logits are not those of the spiking network."""

    true_forward = False
    timeless = True

    def __str__(self) -> str:
        return "activation"

    def steps(
        self,
        node: nn.Module,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Multistep,
    ) -> Tensor:
        return x.relu()

    def step(
        self, x: Tensor, v: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool
    ) -> tuple[Tensor, Tensor]:
        return x.relu(), v

    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        return x.relu()
