"""The views that are more than a derivative: their formulas, written out with autograd in
float64."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from sj_robust.errors import SJRobustError
from sj_robust.neuron import (
    AdaptiveSharpness,
    Surrogate,
    ThresholdLIF,
    View,
    available_backends,
    parse_view,
    view_name,
)

BACKENDS = [name for name in available_backends() if name != "cupy"]


def layer(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Input and cotangent [T=5, N=3, C=4, H=6, W=6]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 3, 4, 6, 6, generator=generator) * 0.8, torch.randn(
        5, 3, 4, 6, 6, generator=generator
    )


class _Spike(torch.autograd.Function):
    """[u ≥ 0] whose derivative is given."""

    @staticmethod
    def forward(ctx, u: Tensor, sigma: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(sigma)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return g * ctx.saved_tensors[0], None


def assg_by_hand(
    x: Tensor, threshold: Tensor, leak: float, soft: bool, moments: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """One forward pass, a step at a time; `moments` per step are advanced in place."""
    omega = 2 * math.tan(0.425 * math.pi) / math.pi
    v, spikes = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = leak * v + x[t]
        size = (h - threshold).abs().detach()
        m = 0.9 * moments[t][0] + 0.1 * size
        d = 0.9 * moments[t][1] + 0.1 * (size - m).abs()
        moments[t] = m, d
        alpha = omega / (m + 1.5 * d + 1e-4)
        s = _Spike.apply(h - threshold, alpha / (2 * (1 + (math.pi / 2 * alpha * size) ** 2)))
        v = h - s * threshold if soft else (1 - s) * h
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize(
    ("leak", "reset"), [(1.0, "hard"), (0.9, "hard"), (1.0, "soft"), (0.8, "soft")]
)
def test_assg_follows_its_formula_over_iterations(
    backend: str, leak: float, reset: str, channels: int | None
) -> None:
    node = ThresholdLIF(0.7, leak=leak, reset=reset, backend=backend, channels=channels)  # type: ignore[arg-type]
    node.view = AdaptiveSharpness()
    threshold = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, cotangent = layer()
    moments = [
        (
            torch.ones(x.shape[1:], dtype=torch.float64),
            torch.zeros(x.shape[1:], dtype=torch.float64),
        )
        for _ in range(5)
    ]
    # an attack moves its image a little every time; the layout in memory may change, the statistics
    # follow
    for step in range(4):
        image = x + 0.05 * step * layer(step + 1)[0]
        if step == 2:
            image = (
                image.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
            )
        image.requires_grad_()
        exact = image.detach().double().requires_grad_()
        node.v_threshold.grad = threshold.grad = None
        spikes, expected = (
            node(image),
            assg_by_hand(exact, threshold, leak, reset == "soft", moments),
        )
        assert torch.equal(spikes.double(), expected)
        spikes.backward(cotangent)
        expected.backward(cotangent.double())
        scale = exact.grad.abs().max()
        assert (image.grad.double() - exact.grad).abs().max() < 1e-4 * scale
        assert (
            abs(float(node.v_threshold.grad.sum()) - float(threshold.grad))
            < 1e-4 * float(threshold.grad.abs()) + 1e-3
        )


def test_assg_statistics_live_as_long_as_one_attack() -> None:
    view = AdaptiveSharpness()
    node = ThresholdLIF(0.7)
    node.view = view

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(node(x).sum(), x)[0]

    x, _ = layer()
    first, second = gradient(x), gradient(x)
    assert not torch.equal(first, second)  # they moved on
    with torch.no_grad():
        node(x)  # looking does not move them
    third = gradient(x)
    view.forget()
    assert torch.equal(gradient(x), first)
    assert torch.equal(gradient(x), second)
    assert torch.equal(gradient(x), third)
    assert gradient(x[:, :2]).shape == x[:, :2].shape  # another batch starts anew
    assert torch.equal(gradient(x[:, :1]), first[:, :1])


@pytest.mark.parametrize("channels", [None, 6])
def test_assg_keeps_its_statistics_in_float32(channels: int | None) -> None:
    x = torch.randn(4, 2, 6, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        node = ThresholdLIF(0.6, channels=channels, backend="torch")
        node.view = "ASSG"
        a = x.to(dtype).requires_grad_()
        for _ in range(3):  # a tenth of the difference each
            (gradient,) = torch.autograd.grad(node(a).sum(), a)
        found.append(gradient.float())
    assert (found[0] - found[1]).norm() < 0.02 * found[1].norm()


def test_assg_does_not_let_the_gradient_vanish_where_potentials_are_large() -> None:
    """The mean of σ'(u)·|u| stays put when all inputs and the threshold are scaled: a fixed width
    fails there."""
    x, _ = layer()

    def reach(view: object, scale: float) -> float:
        node = ThresholdLIF(0.7 * scale)
        node.view = view  # type: ignore[assignment]
        image = (scale * x).requires_grad_()
        for _ in range(60):
            (gradient,) = torch.autograd.grad(node(image).sum(), image)
        return float((gradient != 0).float().mean() * gradient.abs().mean() * scale)

    adaptive = [reach(AdaptiveSharpness(), scale) for scale in (1.0, 30.0)]
    fixed = [reach(Surrogate("PCW"), scale) for scale in (1.0, 30.0)]
    assert abs(adaptive[1] / adaptive[0] - 1) < 0.15
    assert fixed[1] < 0.3 * fixed[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rate_temporal_follows_its_formula(backend: str) -> None:
    node = ThresholdLIF(0.7, leak=0.9, backend=backend)
    node.view = "rate-temporal"
    x, cotangent = layer()
    image = x.clone().requires_grad_()
    spikes = node(image)
    node.view = Surrogate("PCW")
    assert torch.equal(spikes, node(x))
    spikes.backward(cotangent)
    v, potential = torch.zeros_like(x[0]), []
    for step in x:
        h = 0.9 * v + step
        v = h * (h < 0.7)
        potential.append(h)
    sigma = (1 - (torch.stack(potential) - 0.7).abs()).clamp(min=0)
    assert torch.allclose(image.grad, (cotangent * sigma).mean(0).expand_as(x), atol=1e-6)


def test_names_parse_back() -> None:
    for text in ("PCW:0.5", "STE", "rate", "rate-temporal", "activation", "own", "ASSG"):
        assert view_name(parse_view(text)) == text
    with pytest.raises(
        SJRobustError, match="expected rate, rate-temporal, activation, own, ASSG or a surrogate"
    ):
        parse_view("assg")
    with pytest.raises(SJRobustError, match="gradient view 3: expected a view or its name"):
        parse_view(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["PCW:0.5", "STE", "rate", "rate-temporal", "activation", "own"])
def test_views_are_equal_by_what_they_mean(text: str) -> None:
    view = parse_view(text)
    assert isinstance(view, View)
    assert parse_view(view) is view
    for other in (parse_view(text), copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert (other, hash(other)) == (view, hash(view))
    others = {"PCW:3", "rate", "activation", "own", "ASSG"} - {text}
    assert all(view != parse_view(name) for name in others)


def test_adaptive_sharpness_is_equal_to_itself_alone_because_of_what_it_remembers() -> None:
    view = AdaptiveSharpness()
    assert view == parse_view(view)
    assert view not in (AdaptiveSharpness(), copy.deepcopy(view))


def test_a_node_takes_the_name_of_a_view_and_shows_the_view() -> None:
    node, x = ThresholdLIF(), layer()[0].requires_grad_()
    node.view = "activation"
    assert node.view == parse_view("activation")
    assert torch.equal(node(x), x.relu())
    with pytest.raises(SJRobustError, match="gradient view 'relu': expected"):
        node.view = "relu"
    node.view = "own"
    with pytest.raises(SJRobustError, match="view of a network, not of a node"):
        node(x)


def test_step_by_step_modes_refuse_what_needs_the_whole_sequence() -> None:
    for view in ("rate", "rate-temporal", "ASSG"):
        node = ThresholdLIF()
        node.view = parse_view(view)
        node.step_mode = "s"
        with pytest.raises(SJRobustError, match="needs the whole sequence"):
            node(layer()[0][0])
