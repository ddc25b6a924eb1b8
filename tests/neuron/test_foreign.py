"""Gradient views on SpikingJelly's nodes: the spikes stay theirs, the gradients are those of the
view, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, rnn, surrogate
from torch import Tensor, nn

from sj_robust import GradientView, SJRobustError, from_spikingjelly
from sj_robust.model import SpikingJellyClassifier
from sj_robust.neuron import ThresholdLIF, parse_view

T = 4
VIEWS = (
    "PCW:1",
    "PCW:0.5",
    "EXP-D:1",
    "RECT:2",
    "STE",
    "ASSG",
    "rate",
    "rate-temporal",
    "activation",
)
STEP_BY_STEP = tuple(view for view in VIEWS if view != "rate-temporal")
PIECEWISE = {"surrogate_function": surrogate.PiecewiseQuadratic(alpha=1.0)}
NODES: dict[str, Callable[[], nn.Module]] = {
    "IF": lambda: neuron.IFNode(**PIECEWISE),
    "LIF": lambda: neuron.LIFNode(**PIECEWISE),
    "LIF, reset detached": lambda: neuron.LIFNode(
        tau=1.5, decay_input=False, detach_reset=True, **PIECEWISE
    ),
    "LIF, soft reset": lambda: neuron.LIFNode(v_reset=None, decay_input=False, **PIECEWISE),
    "parametric LIF": lambda: neuron.ParametricLIFNode(**PIECEWISE),
    "KLIF": lambda: neuron.KLIFNode(**PIECEWISE),
    "current-based LIF": lambda: neuron.CUBALIFNode(**PIECEWISE),
    "exponential IF": lambda: neuron.EIFNode(**PIECEWISE),
    "ternary IF": lambda: neuron.TernaryIFNode(**PIECEWISE),
    "gated LIF": lambda: neuron.GatedLIFNode(T=T, **PIECEWISE),
    "parallel": lambda: neuron.PSN(T=T, **PIECEWISE),
}


def network(node: Callable[[], nn.Module], step_mode: str = "m") -> nn.Sequential:
    """Two convolutions with nodes, strong enough that both layers spike; the same weights for every
    node."""
    torch.manual_seed(0)
    convolutions = layer.Conv2d(3, 6, 3, stride=2), layer.Conv2d(6, 8, 3, stride=2)
    net = nn.Sequential(
        convolutions[0], node(), convolutions[1], node(), layer.Flatten(), layer.Linear(8, 5)
    )
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.mul_(4)
            convolution.bias.add_(0.3)
    functional.set_step_mode(net, step_mode)
    return net.double().eval()


def wrapped(node: Callable[[], nn.Module], step_mode: str = "m") -> SpikingJellyClassifier:
    return from_spikingjelly(
        network(node, step_mode), timesteps=T, mean=[0.5] * 3, std=[0.25] * 3
    ).double()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a fixed mixture of them."""
    x = x.clone().requires_grad_()
    logits = model(x)
    return (
        logits.detach(),
        torch.autograd.grad((logits * torch.arange(1.0, 6, dtype=x.dtype)).sum(), x)[0],
    )


@pytest.mark.parametrize("view", VIEWS)
def test_an_if_node_has_the_gradients_of_ours_which_golden_vectors_hold(
    view: str, images: Tensor
) -> None:
    theirs, ours = (
        GradientView(wrapped(neuron.IFNode), parse_view(view)),
        GradientView(wrapped(ThresholdLIF), parse_view(view)),
    )
    for shift in (0.0, 0.02, 0.04):  # ASSG remembers the passes before
        (logits, found), (expected_logits, expected) = (
            gradient(theirs, images + shift),
            gradient(ours, images + shift),
        )
        torch.testing.assert_close(logits, expected_logits)
        torch.testing.assert_close(found, expected)
        assert expected.abs().sum() > 0


@pytest.mark.parametrize("name", NODES)
def test_a_surrogate_view_is_the_gradient_of_a_network_that_has_this_surrogate(
    name: str, images: Tensor
) -> None:
    model = wrapped(NODES[name])
    own_logits, own = gradient(model, images)
    logits, found = gradient(GradientView(model, parse_view("PCW:1")), images)
    assert torch.equal(logits, own_logits)
    torch.testing.assert_close(found, own)
    assert own.abs().sum() > 0
    _, other = gradient(GradientView(model, parse_view("PCW:3")), images)
    assert not torch.allclose(other, own)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("view", [view for view in VIEWS if view != "activation"])
def test_every_view_leaves_the_spikes_alone(name: str, view: str, images: Tensor) -> None:
    model = wrapped(NODES[name])
    logits = model(images)
    if name == "ternary IF" and view == "rate-temporal":
        with pytest.raises(SJRobustError, match="does not make one spike of each input"):
            gradient(GradientView(model, parse_view(view)), images)
        return
    shown, found = gradient(GradientView(model, parse_view(view)), images)
    assert torch.equal(shown, logits)
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0


@pytest.mark.parametrize("view", STEP_BY_STEP)
@pytest.mark.parametrize("name", ["IF", "LIF", "current-based LIF", "ternary IF"])
def test_step_by_step_is_all_steps_at_once(name: str, view: str, images: Tensor) -> None:
    at_once, steps = (
        GradientView(wrapped(NODES[name]), parse_view(view)),
        GradientView(wrapped(NODES[name], "s"), parse_view(view)),
    )
    assert (at_once.snn.input, steps.snn.input) == ("sequence", "step")  # type: ignore[attr-defined]
    for _ in range(2):
        (logits, found), (expected_logits, expected) = (
            gradient(steps, images),
            gradient(at_once, images),
        )
        torch.testing.assert_close(logits, expected_logits)
        torch.testing.assert_close(found, expected)


def fail_within(model: SpikingJellyClassifier, view: str) -> None:
    with model.gradient(parse_view(view)):
        raise ZeroDivisionError


def test_the_network_is_as_it_was_afterwards_also_after_an_error(images: Tensor) -> None:
    model = wrapped(NODES["LIF"])
    nodes = [module for module in model.modules() if isinstance(module, neuron.LIFNode)]
    functions, names, state = (
        [node.surrogate_function for node in nodes],
        [name for name, _ in model.named_modules()],
        model.state_dict(),
    )
    for view in VIEWS:
        with model.gradient(parse_view(view)):
            model(images)
        with pytest.raises(ZeroDivisionError):
            fail_within(model, view)
    assert all(
        node.surrogate_function is function for node, function in zip(nodes, functions, strict=True)
    )
    assert all("forward" not in vars(node) for node in nodes)
    assert [name for name, _ in model.named_modules()] == names
    assert model.state_dict().keys() == state.keys()
    assert all(isinstance(node.v, float) for node in nodes), "potentials were left behind"


def test_a_block_within_a_block_is_the_inner_one(images: Tensor) -> None:
    model = wrapped(NODES["LIF"])
    _, expected = gradient(GradientView(model, parse_view("PCW:2")), images)
    _, own = gradient(model, images)
    with model.gradient("rate"):
        _, found = gradient(GradientView(model, parse_view("PCW:2")), images)
        _, unchanged = gradient(GradientView(model, "own"), images)
        with model.true_spikes():
            assert torch.equal(model(images), wrapped(NODES["LIF"])(images))
    assert torch.equal(found, expected)
    assert torch.equal(unchanged, own)


def test_a_function_in_place_of_a_module_is_exchanged_too(images: Tensor) -> None:
    model = wrapped(lambda: neuron.IFNode(surrogate_function=parse_view("PCW:1").spike))  # type: ignore[union-attr]
    _, own = gradient(model, images)
    _, found = gradient(GradientView(model, parse_view("PCW:1")), images)
    torch.testing.assert_close(found, own)
    assert not isinstance(next(iter(model.nodes().values())).surrogate_function, nn.Module)


def test_a_node_that_drops_its_surrogate_in_eval_mode_gets_one(images: Tensor) -> None:
    model = wrapped(neuron.ComplementaryLIFNode)
    with pytest.raises(RuntimeError, match="have been used in the graph"):
        gradient(model, images)
    assert gradient(GradientView(model, parse_view("PCW:1")), images)[1].abs().sum() > 0


class Nameless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spike = surrogate.ATan()

    def forward(self, x: Tensor) -> Tensor:
        return self.spike(x - 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (nn.ReLU, "no spiking node"),
        (Nameless, "spike: views exchange what is called surrogate_function alone"),
        (neuron.ILIFNode, r"ILIFNode\) makes \[.*\] of u = "),
        (
            lambda: neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False)),
            r"LIFNode\) makes .* expected 1 where u ≥ 0",
        ),
        (neuron.DSRIFNode, r"DSRIFNode\) has no surrogate_function"),
        (lambda: rnn.SpikingLSTMCell(3, 3), "surrogate_function1: views exchange"),
    ],
)
def test_what_no_view_reaches_is_refused_by_name(
    node: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        from_spikingjelly(
            nn.Sequential(layer.Conv2d(3, 6, 3), node()),
            timesteps=T,
            mean=[0.5] * 3,
            std=[0.25] * 3,
        )


def test_a_node_that_spikes_past_its_surrogate_is_found_out(images: Tensor) -> None:
    model = wrapped(neuron.SLTTLIFNode, "s")
    with pytest.raises(
        SJRobustError, match="makes spikes without its surrogate_function in eval mode"
    ):
        gradient(GradientView(model, parse_view("PCW:1")), images)


def test_hart_wants_all_steps_at_once() -> None:
    with pytest.raises(SJRobustError, match="rate-temporal view needs all steps at once"):
        wrapped(NODES["LIF"], "s").gradient("rate-temporal").__enter__()


class Unwound(nn.Module):
    """Calls the steps of its node, not the node."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.node, self.outer = (
            nn.Linear(12, 8),
            neuron.LIFNode(v_threshold=0.2),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.node.single_step_forward(self.inner(x.flatten(1))))  # type: ignore[no-any-return]


def test_a_node_whose_steps_are_called_is_seen_by_views_that_go_back_through_it() -> None:
    torch.manual_seed(0)
    snn = from_spikingjelly(Unwound(), timesteps=3, mean=[0.5] * 3, std=[0.5] * 3).eval()
    x = torch.rand(5, 3, 2, 2, requires_grad=True)
    true = snn(x)
    gradients = []
    for view in ("PCW:1", "PCW:2", "ASSG"):
        with snn.gradient(view):
            logits = snn(x)
        assert torch.equal(logits, true)
        gradients += torch.autograd.grad(logits.sum(), x)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.equal(gradients[0], gradients[1])
    for view in ("rate", "activation"):
        said = rf"node \(LIFNode\) makes spikes outside of its forward: it has no {view} view"
        with snn.gradient(view), pytest.raises(SJRobustError, match=said):
            snn(x)
