"""Bounds on logits: nothing that a sample or an attack finds lies outside, and where the exact
bounds are known they are these."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust import SJRobustError, convert, from_spikingjelly
from sj_robust.attack import PGD, GradientView
from sj_robust.bounds import interval_bounds, margin_bounds
from sj_robust.model import NormalizedClassifier, SpikingClassifier, resnet

SIZE, CLASSES = 8, 4
SCALES = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        out += x
        return self.act(out)


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        Residual(6),
        nn.AvgPool2d(2),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def with_max_pooling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 12),
        nn.ReLU(),
        nn.Identity(),
        nn.Linear(12, CLASSES),
    )


def of_timm() -> nn.Module:
    return timm.create_model("cifar_vgg", layers=[6, "A", 8], num_classes=CLASSES, pretrained=False)


def with_padded_shortcuts() -> nn.Module:
    return resnet.ResNet((1, 1), (4, 8), shortcut="identity", num_classes=CLASSES)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": with_batch_norm,
    "max pooling": with_max_pooling,
    "timm": of_timm,
    "padded shortcuts": with_padded_shortcuts,
}
KINDS = {
    "ann": None,
    "hard": {"reset": "hard"},
    "soft": {"reset": "soft"},
    "leak": {"reset": "hard", "leak": 0.9},
    "soft leak": {"reset": "soft", "leak": 0.9},
    "channels": {"reset": "soft", "per_channel": True},
}


def images(count: int = 6, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=SIZE, mode="bilinear").clamp(0, 1)


def classifier(network: str, kind: str) -> NormalizedClassifier:
    torch.manual_seed(1)
    backbone = NETWORKS[network]()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            module.bias.data.normal_(0, 0.3)
            module.weight.data.uniform_(-1.5, 1.5)  # of either sign
    ann = NormalizedClassifier(backbone.eval(), *SCALES)
    settings = KINDS[kind]
    if settings is None:
        return ann
    calibration = images(16, seed=5)[None]
    return convert(ann, calibration, 3, calibration_timesteps=4, scale=0.5, **settings).eval()


def attempts(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """[A, N, 3, H, W] points of the balls: uniform ones, corners, and those of PGD."""
    generator = torch.Generator().manual_seed(7)
    found = [x]
    for number in range(60 if eps else 0):
        step = torch.rand(x.shape, generator=generator) * 2 - 1
        found.append((x + eps * (step if number % 2 else step.sign())).clamp(0, 1))
    seen = GradientView(model, "PCW:1") if isinstance(model, SpikingClassifier) else model
    if eps:
        labels = torch.cat([y, *(torch.full_like(y, label) for label in range(CLASSES))])
        attacked = PGD(eps=eps, steps=5)(seen, x.repeat(CLASSES + 1, 1, 1, 1), labels)
        found += attacked.split(len(x))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        *itertools.product(("batch norm", "max pooling"), KINDS),
        *itertools.product(("timm", "padded shortcuts"), ("ann", "hard", "soft")),
    ],
)
def test_nothing_in_the_ball_leaves_the_bounds(network: str, kind: str) -> None:
    model, x = classifier(network, kind), images()
    widths = []
    for eps in (0.0, 1e-4, 2 / 255, 16 / 255):
        with torch.no_grad():
            y = model(x).argmax(1)
        lower, upper = interval_bounds(model, x, eps)
        margins = margin_bounds(model, x, y, eps)
        assert (lower <= upper).all()
        points = attempts(model, x, y, eps)
        with torch.no_grad():
            logits = model(points.flatten(0, 1)).double().unflatten(0, points.shape[:2])
        assert ((lower <= logits) & (logits <= upper)).all()
        found = logits.gather(2, y[None, :, None].expand(len(points), -1, 1)) - logits
        assert ((found >= margins) | margins.isinf()).all()
        # a difference bounded at once is never worse than two logits, but for rounding
        assert (margins >= lower.gather(1, y[:, None]) - upper - 1e-3).all()
        widths.append(float((upper - lower).mean()))
    assert widths == sorted(widths)
    assert widths[0] < 1e-2 if kind == "ann" else widths[0] < widths[-1]


def test_of_one_linear_layer_they_are_exact() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    model = nn.Sequential(nn.Flatten(), layer)
    x, eps = torch.rand(5, 6, 1, 1) * 0.8 + 0.1, 0.1
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).double()
    corners = x.double().flatten(1) + eps * signs[:, None]
    logits = corners @ layer.weight.double().T + layer.bias.double()
    lower, upper = interval_bounds(model, x, eps)
    assert torch.allclose(lower, logits.amin(0), atol=1e-4)
    assert torch.allclose(upper, logits.amax(0), atol=1e-4)
    y = torch.tensor([0, 1, 2, 0, 1])
    margins = margin_bounds(model, x, y, eps)
    exact = (logits.gather(2, y[None, :, None].expand(64, 5, 1)) - logits).amin(0)
    assert torch.isinf(margins.gather(1, y[:, None])).all()
    assert torch.allclose(margins[margins.isfinite()], exact[margins.isfinite()], atol=1e-4)


def test_of_a_relu_network_without_widths_they_are_its_logits() -> None:
    """At eps 0 the bounds enclose float32 and float64 alike, and nothing much wider."""
    model = classifier("batch norm", "ann")
    lower, upper = interval_bounds(model, images(), 0)
    with torch.no_grad():
        single, double = model(images()).double(), copy.deepcopy(model).double()(images().double())
    for logits in (single, double):
        assert ((lower <= logits) & (logits <= upper)).all()
    assert (upper - lower).max() < 1e-2


def test_sums_over_time_are_carried_through_layers() -> None:
    """Else the same network, of nodes that leak next to nothing, has bounds as good."""
    model, leaky = classifier("max pooling", "soft"), classifier("max pooling", "soft leak")
    leaky.load_state_dict(model.state_dict())
    leaky.worth = model.worth
    for node in leaky.nodes().values():
        node.leak = 1 - 1e-12  # followed by the hull of both cases of each step
    gains = []
    for eps in (0.5 / 255, 1 / 255, 2 / 255):
        lower, upper = interval_bounds(model, images(), eps)
        step_lower, step_upper = interval_bounds(leaky, images(), eps)
        assert (lower >= step_lower - 1e-3).all() and (upper <= step_upper + 1e-3).all()
        gains.append(((step_upper - step_lower) / (upper - lower)).mean())
    assert max(gains) > 1.02


def test_batches_do_not_matter_and_nothing_is_left_behind() -> None:
    model, y = classifier("padded shortcuts", "soft"), torch.zeros(6, dtype=torch.long)
    model.train()
    flags = [module.training for module in model.modules()]
    whole = margin_bounds(model, images(), y, "2/255")
    single = torch.cat(
        [margin_bounds(model, images()[i : i + 1], y[:1], "2/255") for i in range(6)]
    )
    assert torch.allclose(whole, single, rtol=1e-9)
    assert [module.training for module in model.modules()] == flags
    assert not any("forward" in vars(module) for module in model.modules())


class Odd(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flat, self.layer, self.function = nn.Flatten(), nn.Linear(192, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(self.flat(x)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.sigmoid, r"for sigmoid\(\)"),
        (F.gelu, r"for gelu\(\)"),
        (lambda x: x * x, "a product"),
        (lambda x: x + 1, "a sum with anything else"),
        (lambda x: x[:1], "an index of the batch"),
        (lambda x: x.softmax(1), r"for softmax\(\)"),
        (lambda x: x.mean(0), "a mean over the batch"),
        (lambda x: x.view(1, -1), "a view that changes the batch"),
        (lambda x: x[:, :, None], r"something else than logits"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    function: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message) as refusal:
        interval_bounds(Odd(function), images(), 0.1)
    assert "\n" not in str(refusal.value)


def test_other_nodes_and_norms_are_refused() -> None:
    from spikingjelly.activation_based import neuron

    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), neuron.IFNode(step_mode="s"))
    with pytest.raises(SJRobustError, match="SpikingJellyClassifier"):
        interval_bounds(
            from_spikingjelly(network, timesteps=2, mean=SCALES[0], std=SCALES[1]), images(), 0.1
        )
    grouped = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(SJRobustError, match="group_norm"):
        interval_bounds(grouped, images(), 0.1)
    with pytest.raises(SJRobustError, match="without running statistics"):
        interval_bounds(
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()), images(), 0.1
        )
    with pytest.raises(SJRobustError, match="eps is 8"):
        interval_bounds(classifier("timm", "ann"), images(), 8)
