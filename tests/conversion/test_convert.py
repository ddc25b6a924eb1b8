"""Conversion of real modules: what it refuses, what it keeps, and that each layer is computed
once."""

from __future__ import annotations

import copy
import gc
import inspect
import itertools

import numpy as np
import pytest
import torch
from spikingjelly.activation_based.ann2snn import ModuleConverter
from torch import Tensor, nn

from sj_robust.conversion import (
    ConversionSettings,
    ThresholdBalancing,
    convert,
    rebuild,
    reestimate_statistics,
)
from sj_robust.conversion.percentile import percentile
from sj_robust.data import MEAN_STD, calibration_batches, load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier, create_ann

MEAN, STD = MEAN_STD["sample"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """3 batches of 8 real images [3, 8, 3, 32, 32]."""
    return calibration_batches(load_dataset("sample", "train"), 3, 8, seed=0)


@pytest.fixture(scope="module")
def ann(images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = create_ann("cifar_resnet20", 10)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network((images.flatten(0, 1) - 0.47) / 0.25)
    return network.eval()


def conversion(ann: nn.Module, images: Tensor, **changes) -> SpikingClassifier:  # type: ignore[no-untyped-def]
    return convert(
        ann,
        images,
        **{"timesteps": 4, "mean": MEAN, "std": STD, "calibration_timesteps": 10, **changes},
    )


def layer_by_layer(
    snn: SpikingClassifier, images: Tensor, q: float, timesteps: int
) -> dict[str, float]:
    """The definition, with the whole prefix computed anew for every layer and the images repeated
    at the input."""
    snn = copy.deepcopy(snn)
    snn.repeat_at, snn.timesteps = "", timesteps
    reestimate_statistics(snn, [])
    for module in snn.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    thresholds: dict[str, float] = {}
    for name, activation in snn.activations().items():
        seen: list[float] = []

        def look(module: nn.Module, inputs: tuple[Tensor, ...], seen: list[float] = seen) -> None:
            seen.append(float(np.percentile(inputs[0].numpy(), q, method="nearest")))

        handle = activation.register_forward_pre_hook(look)
        with torch.no_grad():
            for batch in images:
                snn(batch)
        handle.remove()
        thresholds[name] = max(seen)
        activation.node.v_threshold.data.fill_(thresholds[name])
    return thresholds


def test_thresholds_equal_the_definition_and_every_layer_runs_once_per_batch(
    ann: nn.Module, images: Tensor
) -> None:
    raw: dict[str, float] = {}
    calls = {"conv": 0}
    original = nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: Tensor) -> Tensor:
        calls["conv"] += x.shape[0] >= 8 * 10 or (x.shape[0] == 8 and self.in_channels == 3)
        return original(self, x)

    nn.Conv2d.forward = counted  # type: ignore[method-assign]
    try:
        snn = conversion(ann, images, on_layer=raw.__setitem__, norm_statistics="reset")
    finally:
        nn.Conv2d.forward = original  # type: ignore[method-assign]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in ann.modules())
    assert calls["conv"] == convolutions * len(images)
    assert raw == pytest.approx(layer_by_layer(snn, images, 99.7, 10), rel=1e-5)
    assert list(snn.thresholds().values()) == pytest.approx([0.3 * value for value in raw.values()])
    assert list(raw) == list(snn.nodes())


def test_conversion_leaves_the_ann_alone_and_is_repeatable(ann: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(ann.state_dict())
    first, second = conversion(ann, images), conversion(ann, images)
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())
    assert any(isinstance(module, nn.ReLU) for module in ann.modules())
    x = images[0]
    assert torch.equal(first(x), second(x))
    assert not first.training
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_statistics_are_reestimated_so_that_the_network_can_be_used_at_once(
    ann: nn.Module, images: Tensor
) -> None:
    snn, reset = conversion(ann, images), conversion(ann, images, norm_statistics="reset")
    norms = [
        [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] for model in (snn, reset)
    ]
    assert all(torch.equal(m.running_mean, torch.zeros_like(m.running_mean)) for m in norms[1])
    assert all(m.momentum == 0.1 for m in norms[0])
    # by hand: the average over batches of the statistics of T copies, for the first batch norm
    x = (
        torch.stack(
            [snn.backbone.conv1(snn.normalize(batch)).repeat(4, 1, 1, 1) for batch in images]
        )
        .transpose(1, 2)
        .flatten(2)
    )
    torch.testing.assert_close(norms[0][0].running_mean, x.mean(2).mean(0))
    torch.testing.assert_close(norms[0][0].running_var, x.var(2).mean(0))


def test_fused_network_equals_the_ann_without_its_batch_norms(
    ann: nn.Module, images: Tensor
) -> None:
    snn = conversion(ann, images, norm="fuse")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in snn.modules())
    with snn.gradient("activation"), torch.no_grad():
        expected = NormalizedClassifier(ann, MEAN, STD)(images[0])
        torch.testing.assert_close(snn(images[0]), expected, rtol=1e-3, atol=1e-4)


def test_omitted_batch_norms_are_gone(ann: nn.Module, images: Tensor) -> None:
    snn = conversion(ann, images, norm="omit")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in snn.modules())
    assert torch.equal(snn.backbone.conv1.weight, ann.get_parameter("conv1.weight"))


def test_spikes_are_binary_and_per_channel_thresholds_start_at_the_layers(
    ann: nn.Module, images: Tensor
) -> None:
    snn, channels = conversion(ann, images), conversion(ann, images, per_channel=True)
    assert torch.equal(snn(images[0]), channels(images[0]))
    assert {tuple(node.v_threshold.shape) for node in channels.nodes().values()} == {
        (16,),
        (32,),
        (64,),
    }
    outputs: list[Tensor] = []
    for node in snn.nodes().values():
        node.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    snn(images[0])
    assert all(set(output.unique().tolist()) <= {0.0, 1.0} for output in outputs)
    assert {output.shape[:2] for output in outputs} == {(4, 8)}


@pytest.mark.parametrize("norm", ["integrate", "fuse", "omit"])
def test_rebuild_gives_the_same_structure_and_logits(
    ann: nn.Module, images: Tensor, norm: str
) -> None:
    snn = conversion(ann, images, norm=norm, per_channel=True, reset="soft", leak=0.9)
    again = rebuild(create_ann("cifar_resnet20", 10), snn.settings)
    again.load_state_dict(snn.state_dict())
    assert again.settings == snn.settings
    assert torch.equal(again.eval()(images[0]), snn(images[0]))


def test_the_recipe_runs_in_spikingjellys_own_converter(ann: nn.Module, images: Tensor) -> None:
    settings = ConversionSettings(timesteps=4, calibration_timesteps=10)
    recipe = ThresholdBalancing(settings, list(images), mean=MEAN, std=STD)
    snn = ModuleConverter(recipe).convert(ann)
    assert torch.equal(snn(images[0]), conversion(ann, images)(images[0]))


@pytest.mark.parametrize("architecture", ["cifar_resnet20", "cifar_wrn16_4", "cifar_vgg11"])
def test_sharing_the_stem_changes_neither_logits_nor_buffers(
    architecture: str, images: Tensor
) -> None:
    torch.manual_seed(0)
    shared = conversion(
        create_ann(architecture, 10), images[:1, :2], calibration_timesteps=2, timesteps=3
    ).train()
    assert shared.repeat_at
    repeated = copy.deepcopy(shared)
    repeated.repeat_at = ""
    torch.manual_seed(1)
    torch.testing.assert_close(shared(images[1, :3]), repeated(images[1, :3]), rtol=1e-4, atol=1e-4)
    for (name, a), b in zip(shared.named_buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


class Skip(nn.Module):
    """A skip connection around the first activation: its input cannot be repeated behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.conv2, self.act2, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.Linear(4, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(self.act2(x + self.conv2(self.act(x))).mean((2, 3)))


def test_a_stem_that_is_used_behind_the_first_node_is_not_shared(images: Tensor) -> None:
    snn = conversion(Skip(), images)
    assert snn.repeat_at == ""
    assert snn(images[0]).shape == (8, 5)


class Other(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.act2 = nn.GELU()  # type: ignore[assignment]


class Unused(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


class NoActivation(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.act = self.act2 = nn.Identity()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("network", "message"), [(Other, r"act2 \(GELU\)"), (NoActivation, "no ReLU to turn")]
)
def test_an_activation_that_cannot_become_a_node_is_named(
    network: type[nn.Module], message: str, images: Tensor
) -> None:
    with pytest.raises(SJRobustError, match=message):
        conversion(network(), images)


def test_an_activation_that_is_never_called_stays_as_it_is(images: Tensor) -> None:
    snn = conversion(Unused(), images)
    assert list(snn.nodes()) == ["act"]
    assert isinstance(snn.backbone.act2, nn.ReLU)
    again = rebuild(Unused(), snn.settings)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again.eval()(images[0]), snn(images[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": 0}, "timesteps"),
        ({"percentile": 101.0}, "percentile"),
        ({"scale": -1.0}, "scale"),
        ({"leak": 0.0}, "leak"),
        ({"reset": "none"}, "reset"),
        ({"norm": "fold"}, "norm"),
        ({"mean": None}, "mean and std"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"mean": (0.5,)}, "std"),
    ],
)
def test_wrong_settings_are_named(changes: dict, message: str, images: Tensor) -> None:
    with pytest.raises(SJRobustError, match=message):
        conversion(Skip(), images, **changes)


def test_wrong_calibration_images_are_named(images: Tensor) -> None:
    cases = [
        ([], "calibration images"),
        (images[0, 0], "shape"),
        (images * 255, r"\[0,1\]"),
        ((images * 255).byte(), "uint8"),
    ]
    for wrong, message in cases:
        with pytest.raises(SJRobustError, match=message):
            conversion(Skip(), wrong)


def test_a_layer_that_never_fires_is_named(images: Tensor) -> None:
    network = Skip()
    nn.init.zeros_(network.conv.weight)
    nn.init.constant_(network.conv.bias, -1.0)
    with pytest.raises(SJRobustError, match="threshold of act"):
        conversion(network, images)


def test_a_failure_in_the_middle_ends_all_threads(images: Tensor) -> None:
    class Broken(Skip):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 40:
                raise ValueError("broken on purpose")
            return super().forward(x)

    with pytest.raises(ValueError, match="on purpose"):
        conversion(Broken(), images)
    gc.collect()


def test_the_layout_a_network_comes_in_changes_no_threshold(ann: nn.Module, images: Tensor) -> None:
    """Kernels round differently in each layout, and over 100 steps a spike that flips moves a
    threshold by a percent."""
    networks = []
    for layout, other in itertools.product(
        (torch.contiguous_format, torch.channels_last), repeat=2
    ):
        batches = [images[0].contiguous(memory_format=other)]
        network = copy.deepcopy(ann).to(memory_format=layout)
        networks.append(conversion(network, batches, calibration_timesteps=40))
    first = networks[0].state_dict()
    for network in networks[1:]:
        assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())
    weights = [network.get_parameter("backbone.layer1.0.conv1.weight") for network in networks]
    # each stays in its ANN's
    assert [weight.is_contiguous() for weight in weights] == [True, True, False, False]


@pytest.mark.parametrize("q", [0.0, 50.0, 99.0, 99.7, 99.99, 100.0])
@pytest.mark.parametrize("shape", [(7,), (1000,), (600_000,), (64, 20, 32, 32)])
def test_percentile_equals_numpys_of_the_repeated_values(q: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).relu_()
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    for copies in (1, 3):
        assert percentile(x, q, copies) == float(
            np.percentile(np.tile(x.numpy().ravel(), copies), q, method="nearest")
        )


def test_the_keywords_of_convert_have_the_defaults_of_the_settings() -> None:
    """Recipes and the command line take theirs from ConversionSettings."""
    keywords = inspect.signature(convert).parameters
    for name, field in ConversionSettings.model_fields.items():
        default = keywords[name].default
        assert (str(default) if name == "surrogate" else default) == field.default, name
