"""A view that the package does not know: one class and one registration, for all nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_robust import from_spikingjelly
from sj_robust.attack import FGSM, GradientView
from sj_robust.model import SpikingActivation, SpikingClassifier, SpikingModel
from sj_robust.neuron import Surrogate, ThresholdLIF, View, parse_view, register_view, views
from sj_robust.neuron.view import Pass, Run, fires

T, STEP = 4, Surrogate("STE")
NORM: dict[str, Any] = {"timesteps": T, "mean": [0.5] * 3, "std": [0.25] * 3}


@dataclass(frozen=True)
class Straight(View):
    """The gradient goes around every node as it is."""

    def __str__(self) -> str:
        return "straight"

    def steps(
        self,
        node: nn.Module,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Callable[..., Tensor],
    ) -> Tensor:
        spikes = multistep(x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=STEP)
        return spikes.detach() + (x - x.detach())

    def step(
        self, x: Tensor, v: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool
    ) -> tuple[Tensor, Tensor]:
        spikes, v = STEP.step(x, v, v_threshold, leak, soft_reset)
        return spikes.detach() + (x - x.detach()), v.detach()

    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        return run(fires).detach() + (x - x.detach())


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_VIEWS", dict(views._VIEWS))  # other tests read what is there
    register_view(Straight)


def layers() -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    convolutions = layer.Conv2d(3, 6, 3, stride=2), layer.Conv2d(6, 8, 3, stride=2)
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.mul_(4)
    return (*convolutions, layer.Flatten(), layer.Linear(8, 5))


def ours() -> SpikingModel:
    first, second, *rest = layers()
    nodes = (SpikingActivation(ThresholdLIF(), T) for _ in range(2))
    return SpikingClassifier(nn.Sequential(first, next(nodes), second, next(nodes), *rest), **NORM)


def wrapped(node: Callable[[], nn.Module], step_mode: str) -> SpikingModel:
    first, second, *rest = layers()
    network = nn.Sequential(first, node(), second, node(), *rest)
    functional.set_step_mode(network, step_mode)
    return from_spikingjelly(network, **NORM)


NETWORKS: dict[str, Callable[[], SpikingModel]] = {
    "ours": ours,
    "ours, all steps": lambda: wrapped(ThresholdLIF, "m"),
    "ours, step by step": lambda: wrapped(ThresholdLIF, "s"),
    "SpikingJelly's, all steps": lambda: wrapped(neuron.LIFNode, "m"),
    "SpikingJelly's, step by step": lambda: wrapped(neuron.LIFNode, "s"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_view_defined_elsewhere_reaches_every_node_by_its_name(name: str) -> None:
    snn = NETWORKS[name]().eval()
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert parse_view("straight") == Straight()
    linear, image = nn.Sequential(*layers()), x.clone().requires_grad_()
    functional.set_step_mode(linear, "s")
    (expected,) = torch.autograd.grad(linear((image - 0.5) / 0.25).square().sum(), image)
    with torch.no_grad():
        logits = snn(x)
    pull = 2 * linear((x - 0.5) / 0.25).detach()  # the derivative of that square, at its own logits
    for seen in (GradientView(snn, "straight"), GradientView(snn, Straight())):
        image = x.clone().requires_grad_()
        shown = seen(image)
        assert torch.equal(shown, logits)
        (found,) = torch.autograd.grad((shown * pull).sum(), image)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    moved = FGSM(eps=8 / 255)(GradientView(snn, "straight"), x, torch.arange(6) % 5)
    assert 0 < float((moved - x).abs().max()) <= 8 / 255 + 1e-6
