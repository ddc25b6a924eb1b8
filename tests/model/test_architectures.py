"""The architectures, as a user of timm meets them."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from sj_robust.errors import SJRobustError
from sj_robust.model.normalized import NormalizedClassifier
from sj_robust.model.resnet import SubsampleAndPad
from sj_robust.model.weights import create_ann


def resnet_parameters(blocks: int, widths: tuple[int, ...], classes: int, projection: bool) -> int:
    """Counted by hand from He et al., table 6: 3×3 convolutions without bias, each with a batch
    norm, and a linear layer."""
    total = 27 * widths[0] + 2 * widths[0]
    before = widths[0]
    for width in widths:
        total += 9 * before * width + 9 * width * width * (2 * blocks - 1) + 2 * width * 2 * blocks
        total += (before * width + 2 * width) if projection and before != width else 0
        before = width
    return total + before * classes + classes


def wide_resnet_parameters(depth: int, width: int, classes: int) -> int:
    blocks = (depth - 4) // 6
    total, before = 27 * 16, 16
    for channels in (16 * width, 32 * width, 64 * width):
        # 3×3 convolutions, 1×1 shortcut
        total += (
            9 * before * channels + 9 * channels * channels * (2 * blocks - 1) + before * channels
        )
        # the batch norm in front of each 3×3 convolution
        total += 2 * before + 2 * channels * (2 * blocks - 1)
        before = channels
    return total + 2 * before + before * classes + classes


def vgg_parameters(convolutions: tuple[int, ...], linears: tuple[int, ...]) -> int:
    total, before = 0, 3
    for channels in convolutions:
        total += 9 * before * channels + 2 * channels
        before = channels
    return total + sum((inputs + 1) * outputs for inputs, outputs in pairwise(linears))


NARROW = (16, 32, 64)
CASES = {
    # name: (options, image size, classes, parameters, ReLUs)
    "cifar_resnet20": ({}, 32, 10, resnet_parameters(3, NARROW, 10, True), 19),
    "cifar_resnet20-identity": ({"shortcut": "identity"}, 32, 10, 269_722, 19),
    "cifar_resnet32": ({}, 32, 10, resnet_parameters(5, NARROW, 10, True), 31),
    "cifar_resnet32-identity": ({"shortcut": "identity"}, 32, 10, 464_154, 31),
    "cifar_resnet56": ({}, 32, 10, resnet_parameters(9, NARROW, 10, True), 55),
    "cifar_resnet110": ({}, 32, 10, resnet_parameters(18, NARROW, 10, True), 109),
    "cifar_resnet56-identity": ({"shortcut": "identity"}, 32, 10, 853_018, 55),
    "cifar_resnet18": ({}, 32, 10, 11_173_962, 17),
    "cifar_wrn16_4": ({}, 32, 10, wide_resnet_parameters(16, 4, 10), 13),
    "cifar_wrn28_4": ({}, 32, 10, wide_resnet_parameters(28, 4, 10), 25),
    "cifar_vgg-pool_first": (
        {"layers": [24, "A", 48, 96, "A"], "pool_first": True},
        32,
        10,
        vgg_parameters((24, 48, 96), (96, 10)),
        3,
    ),
    "cifar_vgg6": ({}, 32, 10, vgg_parameters((64, 128, 128, 256, 256), (256, 10)), 5),
    "cifar_vgg5": ({}, 32, 10, vgg_parameters((48, 96, 192, 192), (192, 10)), 4),
    "cifar_vgg11": (
        {},
        32,
        10,
        vgg_parameters((64, 128, 256, 512, 512, 512, 512, 512), (512 * 4 * 4, 4096, 4096, 10)),
        10,
    ),
    "tiny_vgg11": (
        {},
        64,
        200,
        vgg_parameters((64, 128, 256, 256, 512, 512, 512, 512), (512, 4096, 200)),
        9,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, int, int, int, int]:
    options, size, classes, parameters, activations = CASES[request.param]
    torch.manual_seed(0)
    return (
        timm.create_model(request.param.split("-")[0], **options),
        size,
        classes,
        parameters,
        activations,
    )


def test_published_sizes_agree_with_the_hand_count():
    assert resnet_parameters(3, NARROW, 10, False) == 269_722
    assert resnet_parameters(2, (64, 128, 256, 512), 10, True) == 11_173_962
    # the 36.5 M of Zagoruyko & Komodakis, table 4
    assert wide_resnet_parameters(28, 10, 10) == 36_479_194
    assert round(wide_resnet_parameters(16, 4, 10) / 1e6, 2) == 2.75


def test_has_the_published_number_of_parameters(case):
    model, _, _, parameters, _ = case
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_every_relu_is_called_once_and_gradients_reach_all_parameters(case):
    model, size, classes, _, activations = case
    calls: dict[str, int] = {
        name: 0 for name, module in model.named_modules() if isinstance(module, nn.ReLU)
    }

    def count(name: str) -> None:
        calls[name] += 1

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: count(name))
        for name in calls
    ]
    x = torch.rand(2, 3, size, size, requires_grad=True)
    logits = model.train()(x)
    for hook in hooks:
        hook.remove()
    assert logits.shape == (2, classes)
    assert len(calls) == activations
    assert set(calls.values()) == {1}
    nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ] == []
    assert next(model.parameters()).grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)


def test_no_max_pooling(case):
    assert not any("MaxPool" in type(module).__name__ for module in case[0].modules())


def test_timm_interface(case):
    model, size, classes, _, _ = case
    model = model.eval()
    config = model.pretrained_cfg
    assert config["input_size"] == (3, size, size)
    assert config["num_classes"] == model.num_classes == classes
    assert model.get_submodule(config["first_conv"]).in_channels == 3
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    assert model.get_classifier(name_only=True) == config["classifier"]
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        assert torch.equal(model.forward_head(features), model(x))
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (1, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(hidden), model(x))


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_wrn16_4", "tiny_vgg11"])
def test_reset_classifier_and_other_channels(name):
    model = timm.create_model(name, num_classes=7, in_chans=1)
    x = torch.rand(2, 1, 32, 32)
    assert model(x).shape == (2, 7)
    model.eval().double().reset_classifier(3)
    assert model(x.double()).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0)
    assert model(x.double()).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("cifar_resnet18", [64, 128, 256, 512]), ("cifar_wrn16_4", [64, 128, 256])],
)
def test_features_only(name, channels):
    maps = timm.create_model(name, features_only=True)(torch.rand(1, 3, 32, 32))
    assert [(m.shape[1], m.shape[2]) for m in maps] == [
        (c, 32 >> stage) for stage, c in enumerate(channels)
    ]


def test_vgg_of_another_image_size():
    assert timm.create_model("cifar_vgg11", img_size=16)(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(SJRobustError, match="multiples of 8"):
        timm.create_model("cifar_vgg11", img_size=36)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("before", "after", "side"), [(4, 8, 8), (3, 8, 7)])
def test_option_a_shortcut(before, after, side, layout):
    """Against indexing by hand; gradients too, and images with even sides keep their layout."""
    x = torch.randn(2, before, side, side).contiguous(memory_format=layout).requires_grad_()
    out = SubsampleAndPad(before, after, stride=2)(x)
    half = (side + 1) // 2
    expected = torch.zeros(2, after, half, half)
    for i in range(half):
        for j in range(half):
            expected[:, (after - before) // 2 : (after - before) // 2 + before, i, j] = x.detach()[
                :, :, 2 * i, 2 * j
            ]
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=layout) or side % 2
    out.sum().backward()
    sampled = torch.zeros_like(x)
    sampled[:, :, ::2, ::2] = 1
    assert torch.equal(x.grad, sampled)


def test_unknown_shortcut_names_the_choices():
    with pytest.raises(SJRobustError, match=r"'projection'.*'identity'"):
        create_ann("cifar_resnet20", shortcut="A")


def test_normalisation_is_inside():
    torch.manual_seed(0)
    backbone = create_ann("cifar_resnet20", num_classes=5).eval()
    model = NormalizedClassifier(backbone, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack(
        [(x[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)])], dim=1
    )
    torch.testing.assert_close(model(x), backbone(by_hand))
    assert model.num_classes == 5
    assert model.mean.shape == model.std.shape == (3, 1, 1)
    assert not {"mean", "std"} & set(model.state_dict())
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def test_num_classes_without_timm():
    assert (
        NormalizedClassifier(
            nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (0.5,), (0.5,)
        ).num_classes
        == 4
    )
    with pytest.raises(SJRobustError, match="num_classes"):
        _ = NormalizedClassifier(nn.Flatten(), (0.5,), (0.5,)).num_classes


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.5, 0.5)),
        ((), ()),
        ((0.5,), (0.0,)),
        ((0.5,), (-1.0,)),
        ((float("nan"),), (1.0,)),
        ((0.5,), (float("inf"),)),
    ],
)
def test_impossible_normalisation(mean, std):
    with pytest.raises(SJRobustError, match="mean"):
        NormalizedClassifier(nn.Flatten(), mean, std)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_images_of_the_wrong_shape(shape):
    with pytest.raises(SJRobustError, match=r"expected \[N,3,H,W\]"):
        NormalizedClassifier(nn.Flatten(), (0.5,) * 3, (0.5,) * 3)(torch.rand(shape))


def test_a_pool_may_come_before_the_node_it_would_average() -> None:
    kinds = {
        first: [
            type(module).__name__
            for module in timm.create_model(
                "cifar_vgg", layers=[8, "A", 16, 16, "A"], pool_first=first
            ).features
        ]
        for first in (False, True)
    }
    block = ["Conv2d", "BatchNorm2d"]
    assert kinds[False] == [
        *block,
        "ReLU",
        "AvgPool2d",
        *block,
        "ReLU",
        *block,
        "ReLU",
        "AvgPool2d",
    ]
    assert kinds[True] == [*block, "AvgPool2d", "ReLU", *block, "ReLU", *block, "AvgPool2d", "ReLU"]


@pytest.mark.parametrize("layers", [[], ["A", 8], [8, "B"], [8, 0], [8, -1], [8.5], "A", 8, [True]])
def test_layers_that_are_none_are_refused(layers: object) -> None:
    with pytest.raises(SJRobustError, match=r"layers is .*expected channels of convolutions"):
        create_ann("cifar_vgg", 10, layers=layers)
