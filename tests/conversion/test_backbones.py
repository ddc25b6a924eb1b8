"""Backbones as people have them: activations inside norms, function calls, modules that are called
again, gates, and refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision.models import DenseNet, ResNet, shufflenet_v2_x0_5
from torchvision.models.resnet import BasicBlock, Bottleneck

import sj_robust
from sj_robust.conversion import convert, rebuild
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """2 batches of 4 random images [2, 4, 3, 16, 16], smooth enough to be no noise."""
    x = torch.rand(2 * 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(x, size=16, mode="bilinear").unflatten(0, (2, 4))


def conversion(ann: nn.Module, images: Tensor, **changes: Any) -> SpikingClassifier:
    settings = {
        "timesteps": 2,
        "mean": MEAN,
        "std": STD,
        "calibration_timesteps": 4,
        "percentile": 95.0,
        **changes,
    }
    return convert(ann.eval(), images, **settings)


class Stem(nn.Module):
    """Two convolutions with an activation each and a head; subclasses say what the activations
    are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.conv2, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3),
            nn.Linear(8, 5),
        )
        self.act, self.act2 = nn.ReLU(), nn.ReLU()

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.conv2(self.act(self.bn(self.conv(x))))))


class NormAct(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.act = BatchNormAct2d(8), nn.Identity()  # type: ignore[assignment]
        nn.init.uniform_(self.bn.running_mean, -1, 1)  # type: ignore[arg-type]


class Functional(Stem):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        x = torch.relu(self.conv2(x)).add(x[..., 1:-1, 1:-1]).sub(0.1)
        return self.head(x.relu_())


class Reused(Stem):
    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        if features:
            return x
        x = self.act(self.conv2(self.act(self.bn(self.conv(x)))))
        return self.head(self.act(x - 0.1))


class SharedObject(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.act2 = self.act


class Untraceable(Stem):
    """Assigns to items of a list that it is given: nothing that can be traced."""

    class Exchange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: list[Tensor]) -> list[Tensor]:
            for i in range(len(x)):
                x[i] = self.act(x[i])
            return x

    def __init__(self) -> None:
        super().__init__()
        self.exchange = self.Exchange()
        self.act = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        one, other = self.exchange([x, x - 0.5])
        return self.head(self.act2(self.conv2(one + other)))


class Gated(Stem):
    """Squeeze-and-excitation with functions, in the same forward pass as the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(self.act2(self.conv2(x * gate)))


class PreActivation(nn.Module):
    """The block of ResNetV2: its first activation also feeds the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1, self.norm2 = (
            nn.Conv2d(3, 8, 3),
            BatchNormAct2d(8),
            BatchNormAct2d(8),
        )
        self.shortcut, self.conv2, self.conv3 = (
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )
        self.norm3, self.fc = BatchNormAct2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(self.conv1(x))
        x = self.shortcut(active) + self.conv3(self.norm2(self.conv2(active)))
        return self.fc(self.norm3(x).mean((2, 3)))


CASES: list[tuple[Any, list[str]]] = [
    (NormAct, ["bn.act", "act2"]),
    (Functional, ["relu", "relu_2", "relu_3"]),
    (Reused, ["act", "act_2", "act_3"]),
    (SharedObject, ["act", "act2"]),
    (Untraceable, ["exchange.act.0", "exchange.act.1", "act2"]),
    (Gated, ["relu", "act2"]),
    (PreActivation, ["norm1.act", "norm2.act", "norm3.act"]),
]


@pytest.mark.parametrize(
    ("network", "names"), CASES, ids=[network.__name__ for network, _ in CASES]
)
def test_every_activation_becomes_a_node_of_its_own(
    network: Any, names: list[str], images: Tensor
) -> None:
    ann = network()
    raw: dict[str, float] = {}
    snn = conversion(ann, images, on_layer=raw.__setitem__)
    assert list(raw) == names
    assert set(snn.nodes()) == set(names)
    # the weights keep their names, and with ReLUs in the place of nodes the logits are those of the
    # ANN, but for batch norm
    assert snn.state_dict().keys() - {f"backbone.{key}" for key in ann.state_dict()} == {
        f"backbone.{name}.node.v_threshold" for name in names
    }
    omitted = conversion(ann, images, norm="omit")
    bare = copy.deepcopy(ann)
    bare.bn = nn.Identity() if network is not NormAct else nn.ReLU()
    if network is not PreActivation:
        with omitted.gradient("activation"), torch.no_grad():
            torch.testing.assert_close(
                omitted(images[0]), NormalizedClassifier(bare, MEAN, STD)(images[0])
            )
    # it trains, copies and rebuilds
    F.cross_entropy(snn.train()(images[0]), torch.arange(4)).backward()
    assert all(node.v_threshold.grad is not None for node in snn.nodes().values())
    again = rebuild(network(), snn.eval().settings).eval()
    again.load_state_dict(snn.state_dict())
    for same in (again, copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert torch.equal(same(images[1]), snn(images[1]))
    assert again.settings == snn.settings


def test_fusing_keeps_the_activation_of_a_norm(images: Tensor) -> None:
    ann = NormAct()
    snn = conversion(ann, images, norm="fuse")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in snn.modules())
    assert set(snn.nodes()) == {"bn.act", "act2"}
    with snn.gradient("activation"), torch.no_grad():
        torch.testing.assert_close(
            snn(images[0]), NormalizedClassifier(ann, MEAN, STD)(images[0]), rtol=1e-4, atol=1e-5
        )
    again = rebuild(NormAct(), snn.settings).eval()
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(images[0]), snn(images[0]))


def test_only_what_needs_it_is_rewritten(images: Tensor) -> None:
    assert "plan" not in conversion(Stem(), images).settings
    block = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        BasicBlock(8, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    snn = conversion(block, images)
    assert list(snn.settings["plan"]["rewrites"]) == ["2"]
    assert isinstance(snn.backbone[2], BasicBlock)  # type: ignore[index]
    assert set(snn.nodes()) == {"1", "2.relu", "2.relu_2"}


def test_dropout_in_a_rewritten_forward_pass_still_follows_the_mode(images: Tensor) -> None:
    class Dropping(Stem):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(
                F.dropout(F.relu(self.conv2(self.act(self.conv(x)))), 0.5, training=self.training)
            )

    snn = conversion(Dropping(), images)
    assert torch.equal(snn(images[0]), snn(images[0]))
    snn.train()
    assert not torch.equal(snn(images[0]), snn(images[0]))


def test_thresholds_per_channel_in_a_rewritten_network(images: Tensor) -> None:
    snn = conversion(Functional(), images, per_channel=True)
    assert {tuple(node.v_threshold.shape) for node in snn.nodes().values()} == {(8,)}
    assert torch.equal(snn(images[0]), conversion(Functional(), images)(images[0]))


class SixCut(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.act2 = nn.ReLU6(), nn.LeakyReLU()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.act2(self.conv2(self.act(100 * self.conv(x))))))


def test_other_activations_are_converted_by_choice_and_with_their_ceiling(images: Tensor) -> None:
    with pytest.raises(
        SJRobustError,
        match=(
            r"act \(ReLU6\), act2 \(LeakyReLU\), relu6\(\) in the network"
            r" itself.*--replace-activation"
        ),
    ):
        conversion(SixCut(), images)
    raw: dict[str, float] = {}
    snn = conversion(SixCut(), images, replace_activation="relu", on_layer=raw.__setitem__)
    assert list(raw) == ["act", "act2", "relu6"]
    assert raw["act"] == 6.0
    assert snn.settings["replace_activation"] == "relu"
    again = rebuild(SixCut(), snn.settings).eval()
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(images[0]), snn(images[0]))


def test_max_pooling_becomes_average_pooling_on_request(images: Tensor) -> None:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ]
    kept, average = (
        conversion(nn.Sequential(*layers), images, pooling=pooling)
        for pooling in ("max", "average")
    )
    assert isinstance(kept.backbone[2], nn.MaxPool2d)  # type: ignore[index]
    pool = average.backbone[2]  # type: ignore[index]
    assert isinstance(pool, nn.AvgPool2d)
    assert torch.allclose(pool(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 4, 4))
    again = rebuild(nn.Sequential(*copy.deepcopy(layers)), average.settings).eval()
    again.load_state_dict(average.state_dict())
    assert torch.equal(again(images[0]), average(images[0]))


class FunctionalPooling(Stem):
    """Max pooling by functions, in the network itself and in a block without activations."""

    class Down(nn.Module):
        def forward(self, x: Tensor, size: int = 2) -> Tensor:
            return torch.max_pool2d(x, size)

    def __init__(self) -> None:
        super().__init__()
        self.down = self.Down()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, padding=1, ceil_mode=True)
        x = F.adaptive_max_pool2d(self.act2(self.conv2(self.down(x))), 1)
        return self.fc(x.flatten(1))


class ModulePooling(FunctionalPooling):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool, self.last = (
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2, 1, True, False),
            nn.AdaptiveAvgPool2d(1),
        )  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.bn(self.conv(x))))
        return self.fc(self.last(self.act2(self.conv2(self.down(x)))).flatten(1))


class PoolingOfBranches(FunctionalPooling):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act(self.conv(x))))
        return self.head(F.max_pool2d(x, 2) if x.sum() > 0 else x)


class PoolingWithIndices(FunctionalPooling):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            F.max_pool2d(self.act2(self.conv2(self.act(self.conv(x)))), 2, return_indices=True)[0]
        )


def test_functions_of_max_pooling_become_average_pooling_on_request(images: Tensor) -> None:
    kept = conversion(FunctionalPooling(), images)
    assert list(kept.settings["plan"]["rewrites"]) == [""]
    snn, expected = (
        conversion(FunctionalPooling(), images, pooling="average"),
        conversion(ModulePooling(), images),
    )
    assert list(snn.settings["plan"]["rewrites"]) == ["", "down"]
    raw, same = (sorted(each.thresholds().values()) for each in (snn, expected))
    assert raw == same != sorted(kept.thresholds().values())
    assert torch.equal(snn(images[0]), expected(images[0]))
    again = rebuild(FunctionalPooling(), snn.settings).eval()
    again.load_state_dict(snn.state_dict())
    for same in (again, copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert torch.equal(same(images[0]), snn(images[0]))
    with pytest.raises(
        SJRobustError, match=r"the max pooling of the network itself \(PoolingOfBranches\) average"
    ):
        conversion(PoolingOfBranches(), images, pooling="average")
    with pytest.raises(SJRobustError, match="index-returning"):
        conversion(PoolingWithIndices(), images, pooling="average")


class Normed(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.LayerNorm([8, 14, 14])  # type: ignore[assignment]


class Attention(Stem):
    def forward(self, x: Tensor) -> Tensor:
        q = self.act(self.conv(x)).flatten(2)
        return self.head(self.act2((q @ q.transpose(1, 2)).softmax(-1) @ q).unflatten(2, (14, 14)))


class ThroughSigmoid(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sigmoid()  # type: ignore[assignment]


class Clamped(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.conv2(self.conv(x).clamp(min=0))))


class SharedBlock(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.act(self.conv(x)))))


class InPlace(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.act2(self.conv2(self.act(x))) + x[..., 1:-1, 1:-1])


class InPlaceFunction(Stem):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        F.relu(x, inplace=True)
        return self.head(self.act2(self.conv2(x)))


class Branching(Stem):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head(x if x.sum() > 0 else -x)


class Features(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class TrainingOutputs(Stem):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


REFUSED: list[tuple[Any, str]] = [
    (Normed, r"Normed: bn \(LayerNorm\) normalises over the channels"),
    (Attention, "the network itself .Attention. multiplies two activations"),
    (ThroughSigmoid, r"passes through act \(Sigmoid\)"),
    (Clamped, r"Clamped.*clamp\(\)"),
    (SharedBlock, r"block \(Sequential\) is called 2 times"),
    (InPlace, r"act \(ReLU\) works in place"),
    (InPlaceFunction, "a relu function works in place"),
    (Branching, "cannot be traced.*TraceError"),
    (Features, r"returns \[2, 8, 14, 14\].*expected a classifier's logits"),
    (TrainingOutputs, "returns tuple in training mode"),
]


@pytest.mark.parametrize(
    ("network", "message"), REFUSED, ids=[network.__name__ for network, _ in REFUSED]
)
def test_what_cannot_be_converted_is_named_in_one_line(
    network: Any, message: str, images: Tensor
) -> None:
    with pytest.raises(SJRobustError, match=message) as refused:
        conversion(network(), images)
    assert "\n" not in str(refused.value)


def test_a_plan_for_another_network_is_refused(images: Tensor) -> None:
    settings = conversion(Functional(), images).settings
    with pytest.raises(
        SJRobustError, match=r"is not what was recorded: .* shows 2 activations when traced and 3"
    ):
        rebuild(Stem(), settings)
    with pytest.raises(SJRobustError, match="has no place for a node"):
        rebuild(Stem(), conversion(Untraceable(), images).settings)
    with pytest.raises(SJRobustError, match="plan"):
        rebuild(Functional(), {**settings, "plan": {"nodes": 3}})


TORCHVISION: list[tuple[Any, int, list[str]]] = [
    (lambda: DenseNet(4, (1, 2), 8, num_classes=5), 1 + 2 + 4 + 1 + 1, [""]),
    (
        lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5),
        13,
        ["layer1.0", "layer2.0", "layer3.0", "layer4.0"],
    ),
    (lambda: shufflenet_v2_x0_5(num_classes=5), 37, []),
]


@pytest.mark.parametrize(
    ("build", "nodes", "rewritten"), TORCHVISION, ids=["densenet", "resnet", "shufflenet"]
)
def test_torchvision_networks(build: Any, nodes: int, rewritten: list[str]) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 4, 3, 64, 64)
    snn = conversion(build(), images)
    assert len(snn.nodes()) == nodes
    assert list(snn.settings.get("plan", {}).get("rewrites", {})) == rewritten
    again = rebuild(build(), snn.settings).eval()
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(images[0]), snn(images[0]))


@pytest.mark.parametrize(
    ("architecture", "replace"),
    [
        ("resnet10t", None),
        ("regnety_002", None),
        ("dla46_c", None),
        ("hrnet_w18_small", None),
        ("mobilenetv3_small_050", "relu"),
        ("ghostnet_050", None),
        ("resnetv2_18", None),
    ],
)
def test_a_timm_network_survives_saving_and_loading(
    architecture: str, replace: Any, tmp_path: Path
) -> None:
    if architecture.startswith("regnet") and torch.__version__ < "2.7":
        pytest.skip("torch 2.6 cannot plan a RegNet without building it: load needs model=")
    torch.manual_seed(0)
    ann = timm.create_model(architecture, num_classes=4)
    images = torch.rand(1, 4, 3, 64, 64)
    if replace:
        with pytest.raises(SJRobustError, match="Hardswish"):
            conversion(ann, images)
    snn = conversion(ann, images, replace_activation=replace)
    sj_robust.save(snn, tmp_path / "snn", input_size=(3, 64, 64))
    loaded = sj_robust.load(tmp_path / "snn")
    assert isinstance(loaded, SpikingClassifier)
    assert torch.equal(loaded(images[0]), snn(images[0]))
    assert loaded.settings == snn.settings
