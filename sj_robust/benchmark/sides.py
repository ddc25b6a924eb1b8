"""The sides of a comparison: one network, its spiking forms, and the nodes they are made of."""

from __future__ import annotations

import timm
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

from sj_robust.conversion import convert
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import Surrogate, available_backends

UNIT = "ann"
SIDES: dict[str, str] = {
    UNIT: "the ReLU network; T times its step is the unit",
    "spikingjelly": (
        "SpikingJelly's LIFNode in the same network, fixed threshold, the whole network repeated T"
        " times"
    ),
    "loop": (
        "a node written as a loop over time with a learnable threshold, the whole network repeated"
        " T times"
    ),
    **{name: f"ThresholdLIF, {name} backend" for name in available_backends()},
}
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def make(side: str, architecture: str, timesteps: int, images: Tensor) -> nn.Module:
    """The network of `side`, the same weights and thresholds on every side; thresholds are
    calibrated on a few of `images`."""
    torch.manual_seed(0)
    backbone = timm.create_model(architecture, num_classes=10)
    if side == UNIT:
        return NormalizedClassifier(backbone, MEAN, STD)
    snn = convert(
        backbone, images[None, :8], timesteps, mean=MEAN, std=STD, calibration_timesteps=4
    )
    if side in available_backends():
        for node in snn.nodes().values():
            node.backend = side
        return snn
    for name, node in snn.nodes().items():
        v_threshold = float(node.v_threshold.detach())
        other = SpikingJellyNode(v_threshold) if side == "spikingjelly" else LoopNode(v_threshold)
        snn.backbone.set_submodule(name, Merged(other, timesteps))
    return RepeatedClassifier(snn)


class RepeatedClassifier(nn.Module):
    """[N,C,H,W] → T copies → backbone → mean of the logits, with nothing shared between the
    copies."""

    def __init__(self, snn: SpikingClassifier) -> None:
        super().__init__()
        self.normalize, self.backbone, self.timesteps = snn.normalize, snn.backbone, snn.timesteps

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.backbone(torch.cat([self.normalize(x)] * self.timesteps))
        return logits.view(self.timesteps, -1, logits.shape[-1]).mean(0)


class Merged(nn.Module):
    """A node on [T,N,*] where the layers around it see [T·N,*]."""

    def __init__(self, node: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.node, self.timesteps = node, timesteps

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x.unflatten(0, (self.timesteps, -1))).flatten(0, 1)  # type: ignore[no-any-return]


class SpikingJellyNode(nn.Module):
    """SpikingJelly's own node in multistep mode, reset before every forward pass."""

    def __init__(self, v_threshold: float) -> None:
        super().__init__()
        # to float32 the same dynamics as the other sides'
        no_leak = dict(tau=1e8, decay_input=False)
        self.node = neuron.LIFNode(
            v_threshold=v_threshold,
            surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),
            step_mode="m",
            **no_leak,
        )

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        return self.node(x)  # type: ignore[no-any-return]


class LoopNode(nn.Module):
    """The node as one writes it first: autograd through a loop over time."""

    def __init__(self, v_threshold: float) -> None:
        super().__init__()
        self.v_threshold = nn.Parameter(torch.tensor(v_threshold))
        self.surrogate = Surrogate("PCW", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            h = v + x_t
            s = self.surrogate.spike(h - self.v_threshold)
            v = (1 - s) * h
            spikes.append(s)
        return torch.stack(spikes)
