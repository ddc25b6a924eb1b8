"""What attacks and evaluation ask of a spiking network, whoever made its nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.normalized import NormalizedClassifier
from sj_robust.neuron import View


def check_timesteps(value: object) -> None:
    """Raise SJRobustError unless `value` is T ≥ 1."""
    if not (isinstance(value, int) and value >= 1):
        raise SJRobustError(f"timesteps must be a whole number of at least 1, got {value!r}")


class SpikingModel(NormalizedClassifier, ABC):
    """A spiking network as a drop-in classifier, stateless between calls.

    Images [N, C, H, W] in [0,1] → logits [N, K].

    Attributes:
        timesteps: T.
        settings: JSON-able, how it computes.
        source: JSON-able, where it came from.
    """

    timesteps: Any  # T, an int; a property of some
    settings: Any  # a dict; a property of some
    source: dict[str, Any]

    @abstractmethod
    def nodes(self) -> Mapping[str, nn.Module]:
        """The spiking nodes by name; what a node returns are its spikes."""

    def thresholds(self) -> dict[str, float]:
        """The firing threshold of every node that has one; the mean of several, one per channel."""
        values = {name: getattr(node, "v_threshold", None) for name, node in self.nodes().items()}
        return {
            name: float(value.detach().mean() if isinstance(value, Tensor) else value)
            for name, value in values.items()
            if isinstance(value, int | float | Tensor)
        }

    @abstractmethod
    def gradient(self, view: View | str) -> AbstractContextManager[SpikingModel]:
        """Within the block gradients flow by `view`, or the view of that name."""

    def true_spikes(self) -> AbstractContextManager[SpikingModel]:
        """Within the block the network spikes as it does by itself.

        Whatever view is shown outside of it.
        """
        return self.gradient("own")

    def as_ann(self) -> AbstractContextManager[SpikingModel]:
        """Within the block the network is the ANN of its shape.

        ReLUs are in the nodes' places, and one pass in place of T steps.
        """
        return self.gradient("activation")

    @abstractmethod
    def forward_sequence(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0,1] → logits of every step [T, N, K].

        T may be 1 where all steps would be the same.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0,1] → logits [N, K], the mean over time."""
        return self.forward_sequence(x).mean(0)
