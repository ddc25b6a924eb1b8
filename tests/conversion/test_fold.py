"""Networks without batch norm: a spike is worth its node's threshold."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from sj_robust import load, save
from sj_robust.conversion import convert, inspect_conversion
from sj_robust.conversion.fold import fold_thresholds
from sj_robust.data import MEAN_STD, calibration_batches, load_dataset
from sj_robust.evaluation.energy import measure_energy
from sj_robust.model import NormalizedClassifier, SpikingClassifier, create_ann

MEAN, STD = MEAN_STD["sample"]


class Fire(nn.Module):
    """As in SqueezeNet: two nodes whose spikes lie side by side in the next layer's input; a
    grouped convolution, poolings, a head."""

    def __init__(self, pool: type[nn.Module] = nn.MaxPool2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act0 = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()
        self.left, self.act1, self.right, self.act2 = (
            nn.Conv2d(8, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 1, 1),
            nn.ReLU(),
        )
        self.grouped, self.act3, self.pool, self.drop = (
            nn.Conv2d(24, 24, 3, 1, 1, groups=4),
            nn.ReLU(),
            pool(2),
            nn.Dropout(0.5),
        )
        self.hidden, self.act4, self.fc = nn.Linear(24 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.act0(self.stem(x)), 2)
        x = torch.cat([self.act1(self.left(x)), self.act2(self.right(x))], 1)
        x = self.pool(self.act3(self.grouped(x)))
        return self.fc(self.act4(self.hidden(self.drop(x.flatten(1)))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """2 batches of 16 real images [2, 16, 3, 32, 32]."""
    return calibration_batches(load_dataset("sample", "train"), 2, 16, seed=0)


def converted(ann: nn.Module, images: Tensor, **changes) -> SpikingClassifier:  # type: ignore[no-untyped-def]
    return convert(
        ann,
        images,
        **{"timesteps": 64, "mean": MEAN, "std": STD, "reset": "soft", "scale": 1.0} | changes,
    )


def error(snn: SpikingClassifier, ann: nn.Module, images: Tensor) -> float:
    """The mean distance of the logits from the ANN's, beside how far these vary between images."""
    with torch.no_grad():
        expected = NormalizedClassifier(ann, MEAN, STD)(images)
        return float(
            (snn(images) - expected).square().mean().sqrt()
            / (expected - expected.mean(0)).square().mean().sqrt()
        )


def test_many_steps_of_soft_reset_reach_the_anns_logits(images: Tensor) -> None:
    # max pooling of spikes is an OR, which is more than the maximum of their rates
    ann = Fire(nn.AvgPool2d).eval()
    errors = [error(converted(ann, images, timesteps=t), ann, images[0]) for t in (16, 64, 256)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15, errors


def test_the_weights_hold_the_thresholds_and_the_ann_is_left_alone(images: Tensor) -> None:
    ann = Fire().eval()
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    balanced: dict[str, float] = {}
    snn = converted(ann, images, scale=0.4, on_layer=balanced.__setitem__)
    v = {name: 0.4 * value for name, value in balanced.items()}
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())
    # what a layer gives is in units of the node that reads it
    assert snn.thresholds() == pytest.approx(dict.fromkeys(v, 0.9))
    # 4 groups, 6 inputs each: act1 makes the first 8, act2 the others
    expected = ann.grouped.weight.detach() * 0.9 / v["act3"]
    worth = torch.tensor([v["act1"]] * 8 + [v["act2"]] * 16)
    for out in range(24):
        group = out // 6
        expected[out] *= worth[6 * group : 6 * group + 6, None, None]
    torch.testing.assert_close(snn.backbone.get_parameter("grouped.weight"), expected)
    torch.testing.assert_close(snn.backbone.get_parameter("fc.weight"), ann.fc.weight * v["act4"])
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            snn.backbone.get_parameter(f"stem.{name}"),
            ann.get_parameter(f"stem.{name}") * 0.9 / v["act0"],
        )
    torch.testing.assert_close(snn.backbone.get_parameter("fc.bias"), ann.fc.bias)
    with snn.gradient("activation"), torch.no_grad():
        torch.testing.assert_close(
            snn(images[0]), NormalizedClassifier(ann, MEAN, STD)(images[0]), rtol=1e-4, atol=1e-5
        )
    report = inspect_conversion(snn, images[0], ann)
    assert report.folded
    assert "weights hold what the spikes of 5 of 5 nodes are worth" in report.summary()


@pytest.mark.parametrize("norm", ["integrate", "omit"])
def test_where_there_are_or_were_batch_norms_the_weights_stay(images: Tensor, norm: str) -> None:
    ann = load("resnet20.cifar10_linf_pgd").backbone
    snn = converted(ann, images, timesteps=4, calibration_timesteps=4, norm=norm)
    weights = {
        name: value for name, value in snn.backbone.named_parameters() if name.endswith("weight")
    }
    assert all(torch.equal(value, ann.get_parameter(name)) for name, value in weights.items())
    report = inspect_conversion(snn, images[0], ann)
    assert not (report.folded or snn.folded or snn.worth)


def test_a_folded_network_is_saved_and_loaded(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ann = create_ann("cifar_vgg11", 10).eval()
    snn = converted(ann, images, timesteps=4, norm="fuse", calibration_timesteps=2)
    assert snn.folded
    save(snn, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.folded
    with torch.no_grad():
        assert torch.equal(again(images[0]), snn(images[0]))


# --- structures that branch -----------------------------------------------------------------------


class Branching(nn.Module):
    """A stem with its node, whatever `forward` of a subclass does with 8 channels, and a head.
    Activations grow with depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act0 = nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU()
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(4))
        self.act1, self.act2, self.act3, self.act4 = (nn.ReLU() for _ in range(4))
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(8 * 4 * 4, 10)
        self.build()
        generator = torch.Generator().manual_seed(3)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.uniform_(layer.bias, -0.3, 0.3, generator=generator)  # type: ignore[arg-type]

    def build(self) -> None:
        """Further layers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.middle(self.act0(self.stem(x)))).flatten(1))  # type: ignore[no-any-return]

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Residual(Branching):
    """Two blocks with a shortcut, in place, and one whose shortcut is a convolution."""

    def build(self) -> None:
        self.e, self.f, self.g = (
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 1),
        )
        self.act5, self.act6 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def middle(self, x: Tensor) -> Tensor:
        out = self.b(self.act1(self.a(x)))
        out += x
        x = self.act2(out)
        x = self.act4(x + self.d(self.act3(self.c(x))))
        return self.act6(self.f(self.act5(self.e(x))) + self.g(x))  # type: ignore[no-any-return]


class Functional(Branching):
    """The same with functions, and one module for two calls: the forward passes are rewritten."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(self.act1(self.a(x))) + x)
        return (x + self.d(self.act1(self.c(x)))).relu()


class PreActivation(Branching):
    """What is added up are outputs of convolutions; two layers read one node."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.act0(x)
        x = self.b(self.act1(self.a(y))) + self.c(y)
        x = x + self.d(self.act2(x))
        return self.fc(self.pool(self.act3(x)).flatten(1))  # type: ignore[no-any-return]


class Dense(Branching):
    """Spikes of all nodes so far side by side, and shuffled, in what the next layer reads."""

    def build(self) -> None:
        self.b, self.c = nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(24, 8, 3, 1, 1, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.act1(self.a(x))], 1)
        x = torch.cat([x, self.act2(self.b(F.pad(F.avg_pool2d(x, 3, 1), (1, 1, 1, 1))))], 1)
        return self.act3(self.c(x.unflatten(1, (3, 8)).transpose(1, 2).flatten(1, 2)))  # type: ignore[no-any-return]


class Standardised(Branching):
    """As timm's networks without norms: convolutions whose weights are standardised, and learnt
    factors on the branches."""

    def build(self) -> None:
        self.a, self.b, self.c, self.d = (ScaledStdConv2d(8, 8, 3) for _ in range(4))
        self.gain = nn.Parameter(torch.tensor(0.3))

    def middle(self, x: Tensor) -> Tensor:
        x = self.act2(self.b(self.act1(self.a(x))) * self.gain + x)
        return self.act4(self.d(self.act3(self.c(x) * 1.7)).mul_(self.gain) + x)  # type: ignore[no-any-return]


class Twice(Branching):
    """A skip connection past a sum: the spikes of two nodes, and a layer's output, are added up."""

    def middle(self, x: Tensor) -> Tensor:
        y = self.act2(self.b(self.act1(self.a(x))) + x)
        return self.act4(self.d(self.act3(self.c(y))) + y + x)  # type: ignore[no-any-return]


class Bypass(Branching):
    """Concatenated spikes on a shortcut past concatenated spikes."""

    def build(self) -> None:
        self.c, self.d, self.e = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(16, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.cat([self.act1(self.a(x)), self.act2(self.b(x))], 1)
        return F.relu(self.e(x + torch.cat([self.act3(self.c(x)), self.act4(self.d(x))], 1)))


class Gated(Branching):
    """Squeeze-and-excitation, a group norm, and a convolution that is called twice."""

    def build(self) -> None:
        self.se, self.norm, self.act5 = SqueezeExcitation(8, 4), nn.GroupNorm(4, 8), nn.ReLU()
        nn.init.uniform_(self.norm.bias, 0, 0.5, generator=torch.Generator().manual_seed(0))

    def middle(self, x: Tensor) -> Tensor:
        x = self.act2(self.b(self.se(self.act1(self.a(x)))))
        x = self.act3(self.norm(self.c(x)))
        return self.act4(self.d(self.act5(self.d(x))))  # type: ignore[no-any-return]


class Headless(Branching):
    """Logits that are averages of spikes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act1(self.a(self.act0(self.stem(x)))).mean((2, 3))  # type: ignore[no-any-return]


FOLDED: list[type[Branching]] = [Residual, Functional, PreActivation, Dense, Standardised]
SCALED: dict[type[Branching], list[str]] = {
    Twice: ["act2"],
    Bypass: ["act2", "act3", "act4"],
    Gated: ["act1", "act3", "act5"],
    Headless: ["act1"],
}


def apart(ann: nn.Module, images: Tensor, **changes) -> tuple[SpikingClassifier, SpikingClassifier]:  # type: ignore[no-untyped-def]
    """The converted network, and one with the ANN's weights and thresholds as they were balanced,
    whose spikes are worth 1."""
    raw: dict[str, float] = {}
    snn = converted(ann, images, on_layer=raw.__setitem__, **changes)
    unfolded = copy.deepcopy(snn)
    unfolded.worth, unfolded.folded = {}, False
    unfolded.backbone.load_state_dict(ann.state_dict(), strict=False)
    for name, node in unfolded.nodes().items():
        node.v_threshold.data.fill_(raw[name] * changes.get("scale", 1.0))
    return snn, unfolded


# a gate or group norm of spikes is not that of their mean
@pytest.mark.parametrize("kind", [*FOLDED, Twice, Bypass, Headless])
def test_branching_networks_reach_the_anns_logits(images: Tensor, kind: type[Branching]) -> None:
    ann, few = kind().eval(), images[0, :4]
    snn, unfolded = apart(ann, images, percentile=100.0)
    errors = {}
    for steps in (64, 1024):
        snn.timesteps = unfolded.timesteps = steps
        errors[steps] = error(snn, ann, few)
    before = error(unfolded, ann, few)
    assert errors[1024] < errors[64] / 4
    assert errors[1024] < 0.15 < 0.6 < before, (errors, before)


@pytest.mark.parametrize(
    "changes",
    [{"reset": "hard", "scale": 0.4}, {"leak": 0.9, "scale": 0.8, "per_channel": True}],
    ids=["hard", "soft"],
)
@pytest.mark.parametrize("kind", [*FOLDED, *SCALED])
def test_every_spike_is_that_of_a_network_whose_nodes_emit_their_thresholds(
    images: Tensor, kind: type[Branching], changes: dict[str, object]
) -> None:
    ann = kind().eval()
    snn, explicit = apart(ann, images, timesteps=8, calibration_timesteps=16, **changes)
    with snn.gradient("activation"):
        assert error(snn, ann, images[0]) < 1e-4
    assert list(snn.worth) == SCALED.get(kind, [])
    explicit.double()  # where no rounding decides about a spike
    folded = copy.deepcopy(explicit)
    folded.folded = True
    fold_thresholds(folded, images[0, :2].double())
    for name, value in folded.backbone.state_dict().items():
        torch.testing.assert_close(
            snn.backbone.state_dict()[name].double(), value, rtol=1e-5, atol=1e-6
        )
    for activation in explicit.activations().values():
        activation.register_forward_hook(
            lambda activation, inputs, spikes: spikes * activation.node.threshold_for(spikes)
        )
    (logits, found), (expected, spikes) = (
        run(folded, images[0].double()),
        run(explicit, images[0].double()),
    )
    assert found.keys() == spikes.keys()
    for name in spikes:
        assert spikes[name].any()
        assert torch.equal(found[name], spikes[name]), name
    torch.testing.assert_close(logits, expected)


def run(snn: SpikingClassifier, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of each step, and what the nodes themselves emit."""
    spikes: dict[str, Tensor] = {}
    handles = [
        node.register_forward_hook(
            lambda node, inputs, output, name=name: spikes.update({name: output})
        )  # type: ignore[misc]
        for name, node in snn.nodes().items()
    ]
    with torch.no_grad():
        logits = snn.forward_sequence(images)
    for handle in handles:
        handle.remove()
    return logits, spikes


def test_what_stays_a_factor_is_reported_saved_and_learns(images: Tensor, tmp_path: Path) -> None:
    ann = Twice().eval()
    snn = converted(ann, images, timesteps=4, calibration_timesteps=8)
    report = inspect_conversion(snn, images[0], ann)
    assert (
        "4 of 5 nodes are worth; the others emit another number than 1: act2"
        f" ({snn.worth['act2']:.4g})" in report.summary()
    )
    assert {node.name: node.worth for node in report.nodes if node.worth != 1} == snn.worth
    assert "act2" in [left.name for left in report.analogue]
    assert [layer.name for layer in report.layers if not layer.spiking] == ["stem", "c", "fc"]
    measured = measure_energy(snn, load_dataset("sample", "test"), max_images=4)
    assert [name for name, layer in measured.layers.items() if layer.macs] == ["stem", "c"]
    # an average of spikes: additions
    assert [name for name, layer in measured.layers.items() if layer.summed] == ["fc"]
    with pytest.warns(UserWarning, match="model="):
        save(snn, tmp_path / "model", input_size=(3, 32, 32))
    again = load(tmp_path / "model", model=Twice)
    assert isinstance(again, SpikingClassifier)
    assert again.worth == snn.worth
    with torch.no_grad():
        assert torch.equal(again(images[0]), snn(images[0]))
    snn.train()(images[0]).square().mean().backward()
    for name, node in snn.nodes().items():
        assert node.v_threshold.grad is not None
        assert float(node.v_threshold.grad) != 0, name
