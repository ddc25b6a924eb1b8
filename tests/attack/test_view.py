"""GradientView on a real spiking classifier: same spikes, other gradients, no trace left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sj_robust.attack import FGSM, PGD, GradientView
from sj_robust.attack.view import true_logits
from sj_robust.model import SpikingActivation, SpikingClassifier
from sj_robust.neuron import ENSEMBLE_VIEWS, Surrogate, ThresholdLIF, View, parse_view, view_name


@pytest.fixture
def snn() -> SpikingClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        SpikingActivation(ThresholdLIF(0.4, surrogate=Surrogate("PCW", 2.0)), 4),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        SpikingActivation(ThresholdLIF(0.3), 4),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    return SpikingClassifier(backbone, timesteps=4, mean=[0.5] * 3, std=[0.25] * 3).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


Y = torch.arange(6) % 5


def node_views(snn: SpikingClassifier) -> list[object]:
    return [node.view for node in snn.nodes().values()]


@pytest.mark.parametrize("view", ENSEMBLE_VIEWS, ids=view_name)
def test_views_show_the_true_spikes_except_activation(
    snn: SpikingClassifier, x: Tensor, view: Surrogate
) -> None:
    before = node_views(snn)
    logits = GradientView(snn, view)(x)
    if view == parse_view("activation"):
        relu = nn.Sequential(
            *(
                nn.ReLU() if isinstance(layer, SpikingActivation) else layer
                for layer in snn.backbone
            )
        )
        assert torch.allclose(logits, relu((x - snn.mean) / snn.std), atol=1e-6)
        assert not torch.allclose(logits, snn(x), atol=1e-3)
    else:
        assert torch.equal(logits, snn(x))
    assert node_views(snn) == before


def test_each_view_has_its_own_gradient_also_when_backward_comes_later(
    snn: SpikingClassifier, x: Tensor
) -> None:
    gradients = {}
    for view in ENSEMBLE_VIEWS:
        late = x.clone().requires_grad_()
        loss = GradientView(snn, view)(late).square().sum()  # the context is left before backward
        (gradients[view_name(view)],) = torch.autograd.grad(loss, late)
        within = x.clone().requires_grad_()
        with snn.gradient(view):
            (expected,) = torch.autograd.grad(snn(within).square().sum(), within)
        assert torch.equal(gradients[view_name(view)], expected)
    names = list(gradients)
    for i, one in enumerate(names):
        assert gradients[one].abs().max() > 0
        for other in names[:i]:
            assert not torch.equal(gradients[one], gradients[other]), (one, other)


def test_an_attack_through_a_view_uses_its_gradient(snn: SpikingClassifier, x: Tensor) -> None:
    for view in (Surrogate("RECT", 0.5), "rate", "activation"):
        leaf = x.clone().requires_grad_()
        with snn.gradient(view):
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(snn(leaf), Y), leaf)
        assert torch.equal(
            FGSM(eps=8 / 255)(GradientView(snn, view), x, Y),
            (x + 8 / 255 * gradient.sign()).clamp(0, 1),
        )


def test_an_attack_leaves_a_training_network_alone(snn: SpikingClassifier, x: Tensor) -> None:
    snn.train()
    snn.backbone[3].eval()
    flags = [module.training for module in snn.modules()]
    state = {name: value.clone() for name, value in snn.state_dict().items()}
    view = GradientView(snn, Surrogate("PCW", 0.25))
    PGD(eps=8 / 255, steps=2)(view, x, Y)
    assert [module.training for module in snn.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in snn.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in snn.parameters())
    assert node_views(snn) == [Surrogate("PCW", 2.0), Surrogate("PCW", 1.0)]


def test_views_are_restored_when_the_network_fails(snn: SpikingClassifier, x: Tensor) -> None:
    before = node_views(snn)
    with pytest.raises(RuntimeError):
        GradientView(snn, "rate")(torch.rand(2, 3, 4, 4))  # too small for the linear layer
    assert node_views(snn) == before


def test_modes_and_classes_are_the_networks(snn: SpikingClassifier, x: Tensor) -> None:
    view = GradientView(snn, "rate")
    assert not view.training
    assert view.num_classes == 5
    view.train()
    assert snn.training
    view.eval()
    assert not any(module.training for module in snn.modules())
    assert "view=rate" in repr(view)


class Doubled(View):
    """Spikes of 2: the network of another forward pass, all T steps of it."""

    true_forward = False

    def __init__(self) -> None:
        self.forgotten = 0

    def __str__(self) -> str:
        return "doubled"

    def steps(self, *args: Any) -> Tensor:
        return 2 * Surrogate("PCW").steps(*args)

    def foreign(self, x: Tensor, run: Any, seen: Any) -> Tensor:
        return 2 * run(Surrogate("PCW").spike)  # type: ignore[no-any-return]

    def forget(self) -> None:
        self.forgotten += 1


def test_the_view_says_whether_its_logits_decide_and_hears_when_an_attack_starts(
    snn: SpikingClassifier, x: Tensor
) -> None:
    view = Doubled()
    seen = GradientView(snn, view)
    shown = seen(x)
    assert snn.forward_sequence(x).shape == (4, 6, 5)
    assert not torch.equal(shown, snn(x))
    assert torch.equal(true_logits(seen, x, shown), snn(x))
    seen.view = "rate"  # type: ignore[assignment]
    assert true_logits(seen, x, shown) is shown
    PGD(eps=8 / 255, steps=3, restarts=2)(GradientView(snn, view), x, Y)
    assert view.forgotten == 2
