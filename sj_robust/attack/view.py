"""A gradient view of a spiking classifier, as a plain nn.Module for any attack code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from sj_robust.model import SpikingClassifier
    from sj_robust.neuron import View


class GradientView(nn.Module):
    """`snn` as seen by an attack: images [N, C, H, W] in [0, 1] → logits [N, K], gradients by `view`.

    A Surrogate keeps the true spikes and changes the backward pass only, "rate" (BPTR) too; "activation" (Act) replaces the
    nodes by ReLU in both directions. The nodes capture the view while running forward, so backward may come
    later. `snn` itself is shared, not copied, and shows no trace of the view outside of the call.
    """

    def __init__(self, snn: SpikingClassifier, view: View) -> None:
        super().__init__()
        self.snn = snn
        self.view = view
        self.training = snn.training

    @property
    def num_classes(self) -> int:
        return self.snn.num_classes

    def forward(self, x: Tensor) -> Tensor:
        with self.snn.gradient(self.view):
            return self.snn(x)

    def extra_repr(self) -> str:
        return f"view={self.view}"
