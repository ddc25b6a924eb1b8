"""The spiking classifier: images in [0,1] → normalise → repeat T times → backbone → mean of the
logits over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sj_robust.distributed import pooled_batches
from sj_robust.errors import SJRobustError
from sj_robust.model.hooks import hooked
from sj_robust.model.spiking import SpikingModel, check_timesteps
from sj_robust.neuron import Surrogate, ThresholdLIF, View, parse_view


class SpikingActivation(nn.Module):
    """A multistep node on merged batches: [T·N, *] (time-major) → spikes [T·N, *].

    It stands where the ANN had a ReLU, so that the layers around it see ordinary batches.

    Attributes:
        repeats: whether it is the first node of the network: its input [N, *] is the same at every
            step and is repeated here instead of at the network's input.
        folded: whether its spikes are worth its threshold to what reads them: the ReLU in its place
            gives activations divided by it.
        worth: what it emits for a spike; else 0.
    """

    def __init__(self, node: ThresholdLIF, timesteps: int) -> None:
        super().__init__()
        self.node = node
        self.timesteps = timesteps
        self.repeats = False
        self.folded = False
        self.worth = 1.0

    def extra_repr(self) -> str:
        worth = "" if self.worth == 1 else f", emits {self.worth:.4g}"
        return (
            f"timesteps={self.timesteps}" + (", repeats its input" if self.repeats else "") + worth
        )

    def forward(self, x: Tensor) -> Tensor:
        """Merged inputs → what the node emits.

        Raises:
            SJRobustError: a batch that is no multiple of T.
        """
        if self.node.view.timeless:  # one step of a ReLU network: nothing to unfold
            activation: Tensor = self.node(x.unsqueeze(0)).squeeze(0)
            return (
                activation * (self.worth / self.node.threshold_for(x).detach())
                if self.folded
                else activation
            )
        spikes: Tensor = self.node(self._unfolded(x)).flatten(0, 1)
        return spikes if self.worth == 1 else spikes * self.worth

    def _unfolded(self, x: Tensor) -> Tensor:
        """Merged inputs as a sequence [T, N, *]; a repeated input is T views of one memory."""
        if self.repeats:
            return x.expand(self.timesteps, *x.shape)
        if x.shape[0] % self.timesteps:
            raise SJRobustError(
                f"batch of {x.shape[0]} is no multiple of {self.timesteps} time steps: call the"
                " SpikingClassifier, not its backbone"
            )
        return x.view(self.timesteps, x.shape[0] // self.timesteps, *x.shape[1:])


class SpikingClassifier(SpikingModel):
    """A spiking network as a drop-in classifier, stateless between calls.

    Inputs are coded directly: the same image at every step. What comes before the first node (the
    stem) sees that constant input and is computed once when `repeat_at` names that node; its batch
    norms keep the running statistics that T copies would have left.

    Args:
        backbone: it holds a SpikingActivation wherever a spike is made and works on merged batches
            [T·N, C, H, W]; batch norm therefore pools its statistics over T and N (tdBN).
        timesteps: T ≥ 1.
        mean: per channel, of images in [0,1].
        std: per channel, of images in [0,1].
        repeat_at: the activation that repeats its input T times, "" for the network's input; chosen
            by the conversion, which checks that it changes nothing.
        settings: JSON-able dict from which `convert.rebuild` makes the same structure.
        source: JSON-able dict, where the network came from.

    Raises:
        SJRobustError: a backbone without a spiking node, and values out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        timesteps: int,
        mean: Sequence[float],
        std: Sequence[float],
        repeat_at: str = "",
        settings: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, mean, std)
        if not any(isinstance(module, SpikingActivation) for module in backbone.modules()):
            raise SJRobustError(
                "the backbone has no spiking node: convert it with sj_robust.convert first"
            )
        self.settings: dict[str, Any] = settings or {}
        self.source: dict[str, Any] = source or {}
        self.timesteps = timesteps
        self.repeat_at = repeat_at
        self.folded = self.settings.get("folded", False)
        self.worth = self.settings.get("worth", {})

    # --- structure --------------------------------------------------------------------------------

    def activations(self) -> dict[str, SpikingActivation]:
        """The spiking activations by their name in the backbone, in the backbone's own order."""
        return {
            name: m for name, m in self.backbone.named_modules() if isinstance(m, SpikingActivation)
        }

    def nodes(self) -> dict[str, ThresholdLIF]:
        """The nodes by the name of the activation they replaced."""
        return {name: activation.node for name, activation in self.activations().items()}

    @property
    def timesteps(self) -> int:
        """T, the number of time steps.

        Setting it changes the latency of the network, not its weights.

        Raises:
            SJRobustError: set to anything but a whole number of at least 1.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        check_timesteps(value)
        self._timesteps = value
        self.settings["timesteps"] = value
        for activation in self.activations().values():
            activation.timesteps = value

    @property
    def repeat_at(self) -> str:
        """The activation whose input is repeated T times: all before it is computed once.

        "" repeats the images.

        Raises:
            SJRobustError: set to the name of no spiking activation.
        """
        return self._repeat_at

    @repeat_at.setter
    def repeat_at(self, name: str) -> None:
        activations = self.activations()
        if name and name not in activations:
            raise SJRobustError(f"repeat_at names no spiking activation: {name!r}")
        for key, activation in activations.items():
            activation.repeats = key == name
        self._repeat_at = self.settings["repeat_at"] = name

    @property
    def folded(self) -> bool:
        """Whether a spike is worth its node's threshold, which weights and thresholds hold.

        See conversion.fold.
        """
        return self._folded

    @folded.setter
    def folded(self, value: bool) -> None:
        self._folded = value
        if value:
            self.settings["folded"] = True
        for activation in self.activations().values():
            activation.folded = value

    @property
    def worth(self) -> dict[str, float]:
        """What the nodes emit whose spikes are another number than 1, where weights cannot hold it.

        See conversion.fold.

        Raises:
            SJRobustError: set with the name of no spiking activation.
        """
        return {
            name: activation.worth
            for name, activation in self.activations().items()
            if activation.worth != 1
        }

    @worth.setter
    def worth(self, values: dict[str, float]) -> None:
        activations = self.activations()
        if unknown := values.keys() - activations.keys():
            raise SJRobustError(f"worth names no spiking activation: {sorted(unknown)[0]!r}")
        for name, activation in activations.items():
            activation.worth = values.get(name, 1.0)
        self.settings.pop("worth", None)
        if self.worth:
            self.settings["worth"] = self.worth

    # --- forward ----------------------------------------------------------------------------------

    def forward_sequence(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0,1] → logits of every step [T, N, K].

        T = 1 under the "activation" view.

        Raises:
            SJRobustError: that view is not that of all nodes.
        """
        views = {node.view for node in self.nodes().values()}
        timeless = [view for view in views if view.timeless]
        if timeless and len(views) > 1:
            raise SJRobustError(
                f"the {timeless[0]} view must be set on all nodes at once: "
                f"use SpikingClassifier.gradient('{timeless[0]}')"
            )
        steps = 1 if timeless else self.timesteps
        x = self.normalize(x)
        with self._stem_statistics(x.shape[0]):
            logits: Tensor = self.backbone(x if self.repeat_at else _repeat(x, steps))
        # not -1: a batch may be empty
        return logits.view(steps, logits.shape[0] // steps, logits.shape[-1])

    @contextmanager
    def gradient(self, view: View | str) -> Iterator[SpikingClassifier]:
        """Within the block gradients flow by `view`.

        On exit every node has the view it had before. A backward pass uses the view of its forward
        pass.

        Args:
            view: a View or its name: a Surrogate, "rate" (BPTR), "rate-temporal" (HART), "ASSG",
                "activation" (Act: forward too) or "own" (the surrogate of its settings, which it
                was trained with).

        Raises:
            SJRobustError: an unknown name.
        """
        shown = parse_view(view).instead_of(Surrogate.parse(self.settings.get("surrogate", "PCW")))
        before = [(node, node.view) for node in self.nodes().values()]
        try:
            for node, _ in before:
                node.view = shown
            yield self
        finally:
            for node, old in before:
                node.view = old

    @contextmanager
    def _stem_statistics(self, batch: int) -> Iterator[None]:
        """While the block runs, training-mode batch norms that see un-repeated input update as T
        copies would.

        Mean and biased variance of T copies are those of one; the running variance is unbiased over
        n values, so its new term needs the factor of T·n values instead: [Tn/(Tn−1)] / [n/(n−1)].
        """
        if not self.repeat_at:
            yield
            return
        handles = [
            norm.register_forward_hook(self._correct_variance(norm.running_var.clone(), batch))
            for norm in self.backbone.modules()
            if isinstance(norm, _BatchNorm) and norm.training and norm.running_var is not None
        ]
        with hooked(handles):
            yield

    def _correct_variance(self, before: Tensor, batch: int) -> Any:
        def hook(norm: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if inputs[0].shape[0] != batch or norm.running_var is None:
                return  # behind the first node: T·N images
            n = pooled_batches() * inputs[0].numel() // inputs[0].shape[1]
            if self.timesteps == 1 or n < 2:
                return
            momentum = (
                norm.momentum
                if norm.momentum is not None
                else 1.0 / float(norm.num_batches_tracked or 1)
            )
            factor = self.timesteps * (n - 1) / (self.timesteps * n - 1)
            old = (1 - momentum) * before
            # .data: autograd saved the buffer, though batch statistics never read it in the
            # backward pass
            norm.running_var.data.copy_(old + (norm.running_var - old) * factor)

        return hook


def _repeat(x: Tensor, timesteps: int) -> Tensor:
    """[N, *] → [T·N, *], time-major; `cat` keeps channels_last, which `repeat` does not."""
    return x if timesteps == 1 else torch.cat([x] * timesteps)
