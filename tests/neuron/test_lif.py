"""The node as a SpikingJelly module, and its hand-written backward against autograd of a plain loop
in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import base, functional, memopt, monitor, op_counter, surrogate
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.neuron import (
    ENSEMBLE_VIEWS,
    SURROGATE_NAMES,
    Surrogate,
    ThresholdLIF,
    available_backends,
    parse_view,
    register_backend,
    select_backend,
    view_name,
)
from sj_robust.neuron.torch_backend import multistep

TEXTBOOK = {
    "PCW": lambda u, g: torch.clamp(g - u.abs(), min=0) / g**2,
    "EXP": lambda u, g: torch.exp(-g * u.abs()),
    "EXP-D": lambda u, g: 0.3 * torch.exp(-g * u.abs()),
    "RECT": lambda u, g: (u.abs() < g / 2).to(u) / g,
    "STE": lambda u, g: torch.ones_like(u),
}


class TextbookSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, name, gamma):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(u)
        ctx.shape = name, gamma
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (u,) = ctx.saved_tensors
        name, gamma = ctx.shape
        return grad * TEXTBOOK[name](u, gamma), None, None


def plain_loop(
    x: Tensor, threshold: Tensor, leak: float, soft: bool, name: str, gamma: float
) -> Tensor:
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        h = leak * v + x_t
        s = TextbookSpike.apply(h - threshold, name, gamma)
        v = h - s * threshold if soft else (1 - s) * h
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("leak", [1.0, 0.8])
@pytest.mark.parametrize("name", SURROGATE_NAMES)
def test_backward_equals_autograd_of_a_plain_loop_in_float64(
    name: str, leak: float, soft: bool, per_channel: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 3, 4, 4, dtype=torch.float64, generator=generator) + 0.4
    cotangent = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    node = ThresholdLIF(
        0.9,
        leak,
        "soft" if soft else "hard",
        Surrogate(name, 0.7),
        channels=3 if per_channel else None,
    ).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    threshold = node.v_threshold.detach().clone().requires_grad_()
    ours = node(a)
    expected = plain_loop(
        b, threshold.view(-1, 1, 1) if per_channel else threshold, leak, soft, name, 0.7
    )
    ours.backward(cotangent)
    expected.backward(cotangent)
    assert torch.equal(ours, expected)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(node.v_threshold.grad, threshold.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "cupy"])
@pytest.mark.parametrize(
    "shape", [(4, 300, 16, 9, 9), (4, 5000), (3, 1, 2, 300, 301), (2, 4, 5), (4, 0, 3)]
)
def test_blocks_of_any_size_give_the_same_spikes_and_gradients(
    shape: tuple[int, ...], backend: str
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    node = ThresholdLIF(0.5, 0.9, backend=backend)
    threshold = torch.tensor(0.5, requires_grad=True)
    spikes, expected = node(x), plain_loop(y, threshold, 0.9, False, "PCW", 1.0)
    assert torch.equal(spikes, expected)
    spikes.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(node.v_threshold.grad, threshold.grad, rtol=1e-4, atol=1e-4)


def test_both_memory_formats_agree_and_stay_as_they_are() -> None:
    x = torch.randn(4 * 6, 8, 10, 10)
    last = x.to(memory_format=torch.channels_last)
    node = ThresholdLIF(0.7)
    spikes = [node(images.unflatten(0, (4, 6))).flatten(0, 1) for images in (x, last)]
    assert torch.equal(spikes[0], spikes[1])
    assert spikes[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("PCW", lambda g: surrogate.PiecewiseQuadratic(alpha=1 / g)),
        ("RECT", lambda g: surrogate.Rect(alpha=1 / g)),
        ("STE", lambda g: surrogate.DeterministicPass()),
    ],
)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_surrogates_that_spikingjelly_has_are_equal(ours: str, theirs, gamma: float) -> None:  # type: ignore[no-untyped-def]
    u = torch.linspace(-3, 3, 401).requires_grad_()
    theirs(gamma)(u).sum().backward()
    torch.testing.assert_close(Surrogate(ours, gamma).derivative(u.detach()), u.grad)


def test_multistep_forwards_start_from_rest_and_leave_no_state() -> None:
    node, x = ThresholdLIF(1.0), torch.full((3, 1, 2), 0.4)
    first = node(x)
    assert torch.equal(node(x), first)
    assert first[:, 0, 0].tolist() == [0, 0, 1]
    node.step_mode = "s"
    node(x[0])
    node.step_mode = "m"  # potential left over from single steps
    assert torch.equal(node(x), first)


def test_a_second_backward_needs_no_reset() -> None:
    node, x = ThresholdLIF(1.0), torch.rand(4, 2, 3)
    grads = []
    for _ in range(2):
        y = x.clone().requires_grad_()
        node(y).sum().backward()
        grads.append(y.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_single_steps_keep_their_state_until_reset_net_and_equal_the_sequence(reset: str) -> None:
    x = torch.rand(6, 2, 5)
    net = nn.Sequential(ThresholdLIF(0.8, 0.9, reset))  # type: ignore[arg-type]
    sequence = net(x)
    functional.set_step_mode(net, "s")
    single = torch.stack([net(x_t) for x_t in x])
    assert torch.equal(single, sequence)
    # the potential is still there
    assert not torch.equal(torch.stack([net(x_t) for x_t in x]), sequence)
    functional.reset_net(net)
    assert torch.equal(torch.stack([net(x_t) for x_t in x]), sequence)


def test_single_step_gradients_equal_the_sequence() -> None:
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    node = ThresholdLIF(0.8, 0.9, "soft").double()
    grads = []
    for mode in "ms":
        node.step_mode, node.v_threshold.grad = mode, None
        node.reset()
        y = x.clone().requires_grad_()
        spikes = node(y) if mode == "m" else torch.stack([node(y_t) for y_t in y])
        (spikes * torch.arange(5, dtype=torch.float64).view(5, 1, 1)).sum().backward()
        grads.append((y.grad, node.v_threshold.grad))
    torch.testing.assert_close(grads[0], grads[1])


def test_monitors_see_spikes_and_potentials() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), ThresholdLIF(0.5)), torch.rand(6, 2, 3)
    with monitor.OutputMonitor(net, ThresholdLIF) as spikes:
        out = net(x)
        assert torch.equal(spikes["1"][0], out)
    net[1].store_v_seq = True
    with monitor.AttributeMonitor("v_seq", False, net, ThresholdLIF) as potentials:
        assert torch.equal(net(x), out)
        assert potentials["1"][0].shape == (6, 2, 4)
    node = net[1]
    h = torch.cat([torch.zeros(1, 2, 4), node.v_seq[:-1]]) + net[0](x)
    torch.testing.assert_close(node.v_seq, torch.where(out > 0, torch.zeros_like(h), h))


def test_op_counter_counts_synaptic_operations_of_the_layer_behind() -> None:
    net, x = nn.Sequential(ThresholdLIF(0.5), nn.Linear(3, 4, bias=False)), torch.rand(6, 2, 3)
    with torch.no_grad():
        spikes = int(net[0](x).sum())
        counter = op_counter.SynOpCounter()
        with op_counter.DispatchCounterMode([counter]):
            net(x)
    assert counter.get_total() == spikes * 4


def test_memopt_checkpointing_gives_the_same_gradients() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), ThresholdLIF(0.5, 0.9)), torch.rand(6, 2, 3)
    plain = copy.deepcopy(net)
    wrapped = nn.Sequential(memopt.checkpoint_module(net))
    for module in (plain, wrapped):
        module(x).square().sum().backward()
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_functional_form_takes_and_returns_the_state() -> None:
    node, x = ThresholdLIF(0.8, 0.9), torch.rand(6, 2, 3)
    forward = base.to_functional_forward(node)
    (whole,), _ = forward((x,), (0.0,))
    (first,), state = forward((x[:2],), (torch.zeros(2, 3),))
    (second,), _ = forward((x[2:],), state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(whole, node(x))


def test_rate_view_passes_gradients_only_where_the_neuron_fired() -> None:
    node = ThresholdLIF(1.0)
    node.view = "rate"
    x = torch.tensor([[[0.6, 0.1]], [[0.6, 0.1]]]).requires_grad_()
    spikes = node(x)
    assert spikes.tolist() == [[[0, 0]], [[1, 0]]]
    spikes.backward(torch.tensor([[[3.0, 3.0]], [[5.0, 5.0]]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[[3, 0]], [[5, 0]]]


def test_the_view_of_a_backward_pass_is_that_of_its_forward_pass() -> None:
    node, x = (
        ThresholdLIF(1.0, surrogate=Surrogate("PCW", 3.0)),
        torch.rand(3, 2, 4).requires_grad_(),
    )
    expected = torch.autograd.grad(node(x).sum(), x)[0]
    spikes = node(x)
    node.view = Surrogate("STE")
    assert torch.equal(torch.autograd.grad(spikes.sum(), x)[0], expected)


def test_views_are_the_19_of_the_paper_and_read_back() -> None:
    names = "PCW:1 PCW:2 PCW:3 PCW:0.5 PCW:0.25 EXP-D:0.5 EXP-D:1 EXP-D:2 EXP:0.5 EXP:1 EXP:2 "
    names += "RECT:0.25 RECT:0.5 RECT:1 RECT:2 RECT:4 STE rate activation"
    assert [view_name(view) for view in ENSEMBLE_VIEWS] == names.split()
    assert tuple(parse_view(name) for name in names.split()) == ENSEMBLE_VIEWS


@pytest.mark.parametrize("text", ["", "PCW:", "PCW:x", "PCW:-1", "PCW:nan", "pcw", "ReLU:1"])
def test_views_that_do_not_exist_are_refused(text: str) -> None:
    if text == "PCW:":
        assert parse_view(text) == Surrogate("PCW", 1.0)
        return
    with pytest.raises(SJRobustError, match="view"):
        parse_view(text)


@pytest.mark.parametrize(
    "arguments",
    [
        {"v_threshold": 0.0},
        {"v_threshold": float("nan")},
        {"leak": 0.0},
        {"leak": 1.5},
        {"reset": "none"},
        {"backend": "cuda"},
    ],
)
def test_values_out_of_bounds_are_refused(arguments: dict) -> None:
    with pytest.raises(SJRobustError):
        ThresholdLIF(**arguments)


def test_a_new_backend_is_chosen_by_name_without_touching_the_node() -> None:
    calls = []

    def counting(x: Tensor, v_threshold: Tensor, **settings) -> Tensor:  # type: ignore[no-untyped-def]
        calls.append(x.shape)
        return multistep(x, v_threshold, **settings)

    register_backend("counting", counting, automatic=lambda x: False)
    x = torch.rand(2, 3, 4)
    assert torch.equal(ThresholdLIF(backend="counting")(x), ThresholdLIF(backend="torch")(x))
    assert len(calls) == 1
    assert select_backend("auto", x) is not counting


def test_threshold_follows_state_dict_dtype_and_deepcopy() -> None:
    node = ThresholdLIF(0.3, channels=4)
    other = ThresholdLIF(1.0, channels=4)
    other.load_state_dict(node.state_dict())
    assert other.v_threshold.tolist() == node.v_threshold.tolist()
    clone = copy.deepcopy(node).double()
    assert clone.v_threshold.dtype == torch.float64
    assert clone.v_threshold is not node.v_threshold
