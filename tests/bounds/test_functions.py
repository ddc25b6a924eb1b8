"""Functions of torch on intervals: those in place above all, which other names of the same tensor
see, and the settings of layers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust import SJRobustError
from sj_robust.bounds import Interval, interval_bounds, margin_bounds

CLASSES = 4
Function = Callable[[SimpleNamespace, Tensor], Tensor]


class Network(nn.Module):
    """Two layers, and whatever is done with them."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.flat, self.first, self.second = nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, 8)
        self.last, self.relu = nn.Linear(8, CLASSES), nn.ReLU(inplace=True)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.first(self.flat(x)))


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def check_bounds(model: nn.Module) -> None:
    """They enclose what the network answers at the centre and around it."""
    x, eps = images(), 4 / 255
    generator = torch.Generator().manual_seed(1)
    for radius in (0.0, eps):
        lower, upper = interval_bounds(model, x, radius)
        for number in range(30 if radius else 1):
            step = torch.rand(x.shape, generator=generator) * 2 - 1
            step = step.sign() if number % 2 else step
            with torch.no_grad():
                logits = model((x + radius * step).clamp(0, 1))
                y = logits.argmax(1)
            assert ((lower <= logits) & (logits <= upper)).all()
            found = logits.gather(1, y[:, None]) - logits
            margins = margin_bounds(model, x, y, radius)
            assert ((found >= margins) | margins.isinf()).all()


def statement_only(layers: SimpleNamespace, x: Tensor) -> Tensor:
    y = layers.second(x)
    y.add_(x)
    torch.relu_(y)
    return layers.last(y)


def other_name(layers: SimpleNamespace, x: Tensor) -> Tensor:
    kept = x
    x += layers.second(x)
    return layers.last(kept)


def overwritten_after_reading(layers: SimpleNamespace, x: Tensor) -> Tensor:
    logits = layers.last(x)
    x.add_(layers.second(x))
    F.relu(x, inplace=True)
    return logits


def overwritten_logits(layers: SimpleNamespace, x: Tensor) -> Tensor:
    logits = layers.last(x)
    logits.add_(layers.last(layers.second(x)))
    return logits


def copied_before(layers: SimpleNamespace, x: Tensor) -> Tensor:
    kept = x.clone()
    x.relu_()
    return layers.last(kept) + layers.last(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda layers, x: layers.last(x + layers.relu(x)),
        lambda layers, x: layers.last(layers.second(layers.relu(x)) + x),
        lambda layers, x: layers.last(F.dropout(x, 0.5, False, inplace=True).relu_() + x),
        statement_only,
        other_name,
        overwritten_after_reading,
        overwritten_logits,
        copied_before,
    ],
)
def test_what_is_written_in_place_is_so_under_every_name(function: Function) -> None:
    model = Network(function)
    check_bounds(model)
    # else the network would answer alike without it, and no wrong bounds could be found
    with torch.no_grad():
        assert (model(images()) < 0).any()


@pytest.mark.parametrize(
    "function",
    [
        lambda layers, x: layers.last(layers.relu(x.view(len(x), 8))),
        lambda layers, x: layers.last(layers.relu(x[:, :]) + x),
        lambda layers, x: layers.last((x + x.flatten(1)).relu_() + x.contiguous().relu_()),
        lambda layers, x: layers.last(x.reshape(len(x), 8) + x.add_(x)),
        lambda layers, x: layers.last(F.dropout(x, 0.5, False).relu_() + x),
    ],
)
def test_in_place_where_there_are_views_is_refused(function: Function) -> None:
    with pytest.raises(SJRobustError, match="in place on a tensor that has views"):
        interval_bounds(Network(function), images(), 0.01)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3)
        self.norm, self.relu = nn.BatchNorm2d(3), nn.ReLU()
        self.norm.weight.data = torch.tensor([-1.2, 0.8, -0.3])
        self.norm.running_mean.copy_(torch.tensor([0.2, -0.1, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.relu(self.norm(self.conv(x))) + x
        return x


@pytest.mark.parametrize(
    "layer",
    [
        Reused(),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
        nn.AvgPool2d((3, 2), 2, padding=1, count_include_pad=False, divisor_override=2),
        nn.Conv2d(3, 6, (3, 1), stride=(1, 2), padding=(1, 0), groups=3),
        nn.Conv2d(3, 4, 2, dilation=3, padding=3, padding_mode="circular"),
    ],
)
def test_settings_of_layers(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer = layer.eval()
    with torch.no_grad():
        width = layer(images(1)).numel()
    check_bounds(nn.Sequential(layer, nn.Flatten(), nn.Linear(width, CLASSES)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: -x, "a change of sign"),
        (lambda x: x**2, "a power"),
        (lambda x: 2**x, "a power"),
        (lambda x: x > 0, "a comparison"),
        (lambda x: x == 0, "a comparison"),
        (lambda x: x or x, "a condition"),
        (lambda x: sum([x, x]), "a sum with anything else"),
        (lambda x: 1 - x, "a difference"),
        (lambda x: 1 / x, "a product"),
        (lambda x: abs(x), "a change of sign"),
        (lambda x: float(x), "a number"),
        (lambda x: x.__setitem__(0, 1), "an assignment"),
        (lambda x: x.requires_grad, r"for requires_grad\(\)"),
        (lambda x: x.mul_(2), r"for mul_\(\)"),
        (lambda x: [*x], "an index of the batch"),
        (lambda x: F.avg_pool2d(x[:, :, None, None], 1, divisor_override=-1), "divides by -1"),
    ],
)
def test_operators_are_refused_in_one_line(
    function: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        interval_bounds(Network(lambda layers, x: function(x)), images(), 0.1)


def test_it_answers_hasattr_as_any_object() -> None:
    x = Interval(torch.zeros(1, 2), torch.ones(1, 2))
    assert hasattr(x, "relu") and not hasattr(x, "is_quantized")
    assert getattr(x, "no_such", 3) == 3


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_spike_is_worth_something(factor: float) -> None:
    with pytest.raises(SJRobustError, match="spikes that are worth"):
        Interval(torch.zeros(1, 2), torch.ones(1, 2)).times(factor)
