"""A network of SpikingJelly's own nodes as a classifier that can be attacked and evaluated like
ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.spiking import SpikingModel, check_timesteps
from sj_robust.neuron import View, parse_view
from sj_robust.neuron.foreign import NodeInView, described, find_nodes

Input = Literal["sequence", "step", "images"]


class SpikingJellyClassifier(SpikingModel):
    """A network of SpikingJelly's own nodes as a classifier; see `from_spikingjelly`.

    `backbone` is the user's network, which nothing is changed in but during a block of `gradient`.

    Raises:
        SJRobustError: as of `from_spikingjelly`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        timesteps: int,
        mean: Sequence[float],
        std: Sequence[float],
        input: Input | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(network, mean, std, num_classes=num_classes)
        check_timesteps(timesteps)
        if input not in (None, *get_args(Input)):
            raise SJRobustError(f"input is {input!r}: expected one of {', '.join(get_args(Input))}")
        # in a tuple: they are the network's modules, not a second time ours
        self._nodes = (find_nodes(network),)
        multistep = all(getattr(node, "step_mode", "m") == "m" for node in self.nodes().values())
        self.timesteps = timesteps
        self.input: Input = input or ("sequence" if multistep else "step")
        self._shown: list[NodeInView] = []
        self.source = {}

    @property
    def settings(self) -> dict[str, Any]:
        """How it computes.

        What its nodes are is read off them, because training may have changed it.
        """
        return {
            "timesteps": self.timesteps,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "input": self.input,
            "nodes": {name: described(node) for name, node in self.nodes().items()},
        }

    def nodes(self) -> dict[str, nn.Module]:
        return self._nodes[0]

    def forward_sequence(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0,1] → logits of every step [T, N, K].

        [1, N, K] where the network takes the mean itself.

        Raises:
            SJRobustError: the network returns anything else.
        """
        images = len(x)
        functional.reset_net(self.backbone)
        for node in self._shown:
            node.restart()
        try:
            logits = self._run(self.normalize(x))
        finally:
            functional.reset_net(self.backbone)  # potentials would keep the graph alive
        if not (
            isinstance(logits, Tensor) and logits.dim() in (2, 3) and logits.shape[-2] == images
        ):
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise SJRobustError(
                f"{type(self.backbone).__name__} returns {found} for {images} images as"
                f" input={self.input!r}: expected logits [T, N, K] or [N, K]; choose input among"
                f" {', '.join(get_args(Input))}"
            )
        return logits if logits.dim() == 3 else logits.unsqueeze(0)

    def _run(self, x: Tensor) -> Any:
        if self.input == "images":
            return self.backbone(x)
        if self.input == "sequence":
            return self.backbone(x.unsqueeze(0).repeat(self.timesteps, *(1,) * x.dim()))
        return torch.stack([self.backbone(x) for _ in range(self.timesteps)])

    @contextmanager
    def gradient(self, view: View | str) -> Iterator[SpikingJellyClassifier]:
        """Within the block gradients flow by `view`, through every node.

        Outside of blocks, and by "own", they flow through its own functions.

        Raises:
            SJRobustError: "rate-temporal" where nodes are in single-step mode, or an unknown name.
        """
        shown = parse_view(view).instead_of(None)
        nodes = (
            []
            if shown is None
            else [NodeInView(name, node, shown) for name, node in self.nodes().items()]
        )
        with self._showing(nodes):
            yield self

    @contextmanager
    def as_ann(self) -> Iterator[SpikingJellyClassifier]:
        """Within the block the network is the ANN of its shape, in one pass.

        Raises:
            SJRobustError: the network makes its own time steps, and so has no single pass.
        """
        if self.input == "images":
            raise SJRobustError(
                "a network that makes its own time steps has no single pass to count: give it"
                " sequences or steps"
            )
        timesteps, self.timesteps = self.timesteps, 1
        try:
            with self.gradient("activation"):
                yield self
        finally:
            self.timesteps = timesteps

    @contextmanager
    def _showing(self, nodes: list[NodeInView]) -> Iterator[None]:
        def show(other: list[NodeInView]) -> None:
            for node in self._shown:
                node.release()
            self._shown = other
            for node in other:
                node.take()

        before = self._shown
        show(nodes)
        try:
            yield
        finally:
            show(before)


def from_spikingjelly(
    network: nn.Module,
    *,
    timesteps: int,
    mean: Sequence[float],
    std: Sequence[float],
    input: Input | None = None,
    num_classes: int | None = None,
) -> SpikingJellyClassifier:
    """Your SpikingJelly network as a classifier of images in [0,1].

    It is for `evaluate`, `GradientView`, and any attack library. It starts from rest at every call
    (`functional.reset_net`) and shows the same image at each of `timesteps` steps. `evaluate`
    attacks it through every gradient view, in place of the surrogate functions it was trained with:
    its nodes may be SpikingJelly's or yours, in single- or multi-step mode, as long as they make
    spikes with a `surrogate_function` that is the step [u ≥ 0] forward.

    Args:
        network: used as it is, not copied. Its forward pass gives logits [T, N, K], whose mean
            decides, or [N, K].
        mean: per channel, of images in [0,1]; 0 where the network normalises for itself.
        std: per channel, of images in [0,1]; 1 where the network normalises for itself.
        input: "sequence": [T, N, C, H, W] at once (the default where all nodes are in multi-step
            mode). "step": [N, C, H, W], `timesteps` times (the default otherwise). "images": [N, C,
            H, W] once; the network makes its own steps.
        num_classes: K, where neither the network's `num_classes` nor a pass of images of a usual
            size shows it.

    Raises:
        SJRobustError: nodes that views cannot reach (`neuron.foreign.find_nodes`), none at all, and
            settings out of range.
    """
    return SpikingJellyClassifier(
        network, timesteps=timesteps, mean=mean, std=std, input=input, num_classes=num_classes
    )
