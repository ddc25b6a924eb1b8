"""Operations counted by hand on a net whose spikes are known, and by relations that must hold on a
real one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

import sj_robust
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import evaluate
from sj_robust.evaluation.energy import E_AC, E_MAC, Energy, measure_energy
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.neuron import ThresholdLIF

T = 2
ZOO = "resnet20-snn-t4.cifar10_linf_pgd"


class Sums(nn.Module):
    """Spikes on two paths, added: 0, 1 or 2."""

    def __init__(self) -> None:
        super().__init__()
        self.act = spiking()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(x)


def spiking() -> SpikingActivation:
    return SpikingActivation(ThresholdLIF(1.0), T)


def filled(layer: nn.Conv2d | nn.Linear, weight: float) -> nn.Module:
    """All weights positive and large, so that whatever a spike reaches fires at the same step."""
    nn.init.constant_(layer.weight, weight)
    return layer


def classifier(*layers: nn.Module, repeat_at: str = "act1") -> SpikingClassifier:
    """After a 1×1 stem and a node that fires at every step where the pixel is white, and nowhere
    else."""
    backbone = nn.Sequential()
    backbone.add_module("stem", filled(nn.Conv2d(1, 1, 1, bias=False), 1.0))
    backbone.add_module("act1", spiking())
    for number, layer in enumerate(layers):
        backbone.add_module(f"layer{number}", layer)
    return SpikingClassifier(
        backbone, timesteps=T, mean=[0.0], std=[0.5], repeat_at=repeat_at
    ).eval()


def images(*whites: tuple[int, int] | None) -> ImageDataset:
    """A black 4×4 image for each, with one white pixel where it is named."""
    pixels = torch.zeros(len(whites), 1, 4, 4, dtype=torch.uint8)
    for image, white in zip(pixels, whites, strict=True):
        if white:
            image[0, white[0], white[1]] = 255
    return ImageDataset(
        pixels,
        torch.zeros(len(whites), dtype=torch.int64),
        ("a", "b", "c", "d", "e"),
        "by hand",
        "test",
    )


@pytest.fixture
def net() -> SpikingClassifier:
    return classifier(
        filled(nn.Conv2d(1, 2, 3, padding=1), 10.0),
        spiking(),
        filled(nn.Conv2d(2, 3, 3, stride=2, padding=1), 10.0),
        spiking(),
        nn.Flatten(),
        filled(nn.Linear(12, 5), 1.0),
    )


# A white pixel reaches 3 outputs along an axis, 2 at the border (`fanout`, over both axes), and
# these fire. The strided convolution reads rows 0 and 1 for its first output and rows 1, 2 and 3
# for its second: row 1 counts twice (`strided`).
@pytest.mark.parametrize(
    ("white", "fanout", "strided", "out"),
    [
        ((0, 0), 2 * 2, 3 * 3, 12),
        ((1, 0), 3 * 2, 4 * 3, 12),
        ((1, 2), 3 * 3, 4 * 4, 12),
        ((3, 3), 2 * 2, 2 * 2, 3),  # rows 2 and 3: the second output alone, along both axes
    ],
)
def test_counts_by_hand(
    net: SpikingClassifier, white: tuple[int, int], fanout: int, strided: int, out: int
) -> None:
    found = measure_energy(net, images(white, None))  # the black image halves the means
    acs = {name: layer.acs for name, layer in found.layers.items()}
    assert acs == {
        "stem": 0,
        "layer0": T * fanout * 2 / 2,
        "layer2": T * strided * 2 * 3 / 2,
        "layer5": T * out * 5 / 2,
    }
    assert found.layers["layer2"].rate == fanout * 2 / 32 / 2
    assert found.layers["layer2"].spikes_per_neuron == T * fanout * 2 / 32 / 2
    assert found.activity is not None
    assert (
        found.activity.layers["layer1"].spikes_per_neuron
        == found.layers["layer2"].spikes_per_neuron
    )

    ann = {name: layer.ann_macs for name, layer in found.layers.items()}
    assert ann == {"stem": 16, "layer0": 16 * 9 * 2, "layer2": 4 * 9 * 2 * 3, "layer5": 12 * 5}
    assert (found.ann.acs, found.ann.macs) == (0, 580)
    assert found.ann.microjoules == pytest.approx(580 * E_MAC * 1e-6)
    assert found.snn is not None
    assert (found.snn.acs, found.snn.macs) == (sum(acs.values()), 16)
    assert found.snn.microjoules == pytest.approx((16 * E_MAC + found.snn.acs * E_AC) * 1e-6)
    assert found.ratio == pytest.approx(found.snn.microjoules / found.ann.microjoules)
    assert found.updates == T * (16 + 32 + 12)
    # of 3 taps along an axis 2 meet a pixel at a border: 2 + 3 + 3 + 2 = 10, and 2 + 3
    padded = (16 * 9 - 100) * 2 + (4 * 9 - 25) * 6
    assert any(f"{padded / 580:.1%}" in limit for limit in found.limits)


def test_a_shared_stem_counts_once_and_says_so(net: SpikingClassifier) -> None:
    data = images((1, 1))
    shared = measure_energy(net, data)
    net.repeat_at = ""
    everywhere = measure_energy(net, data)
    assert (shared.layers["stem"].passes, everywhere.layers["stem"].passes) == (1, T)
    assert shared.snn_repeated == everywhere.snn
    assert everywhere.snn_repeated is None
    assert everywhere.snn is not None
    assert everywhere.snn.macs == T * 16
    assert any(limit.startswith("Computed once") and "stem" in limit for limit in shared.limits)
    assert "SNN, stem at every step" in shared.summary()


class Paths(nn.Module):
    """What two ways of one tensor give, joined."""

    def __init__(
        self, one: nn.Module, other: nn.Module, joined: Callable[[list[Tensor]], Tensor]
    ) -> None:
        super().__init__()
        self.one, self.other, self.joined = one, other, joined

    def forward(self, x: Tensor) -> Tensor:
        return self.joined([self.one(x), self.other(x)])


# One white pixel of three images, a spike at each step. `additions`: weights that it adds in the
# layer named, per step, by hand.
SUMMED = [
    ([nn.AvgPool2d(2), nn.Flatten()], nn.Linear(4, 5), 5, "a pool: the connections of its place"),
    (
        [nn.AvgPool2d(3, 1, 1), nn.Flatten()],
        nn.Linear(16, 5),
        9 * 5,
        "overlapping windows: of nine places",
    ),
    (
        [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten()],
        nn.Linear(4, 5),
        4 * 5,
        "every other window",
    ),
    ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], nn.Linear(1, 5), 5, "of the whole image"),
    ([nn.AdaptiveAvgPool2d(2), nn.Flatten()], nn.Linear(4, 5), 5, "of its quarters"),
    ([nn.AvgPool2d(2), nn.AvgPool2d(2), nn.Flatten()], nn.Linear(1, 5), 5, "a pool of a pool"),
    ([nn.AvgPool2d(2)], nn.Conv2d(1, 3, 3, padding=1), 4 * 3, "a convolution, at a corner of 2×2"),
    ([nn.AvgPool2d(2)], nn.ConvTranspose2d(1, 3, 2, 2), 4 * 3, "a transposed one"),
    ([Sums()], nn.Conv2d(1, 2, 3, padding=1), 2 * 9 * 2, "a residual path: both spikes"),
    (
        [Paths(nn.Identity(), nn.AvgPool2d(3, 1, 1), sum)],
        nn.Conv2d(1, 1, 1),
        1 + 9,
        "of different sizes",
    ),
    (
        [Paths(nn.AvgPool2d(2), nn.MaxPool2d(2), partial(torch.cat, dim=1)), nn.Dropout()],
        nn.Conv2d(2, 3, 1),
        3 + 3,
        "side by side",
    ),
    (
        [Paths(nn.AvgPool2d(2), nn.AvgPool2d(2), partial(torch.cat, dim=1))],
        nn.Conv2d(2, 4, 1, groups=2),
        2 + 2,
        "in groups",
    ),
]


@pytest.mark.parametrize(
    ("between", "layer", "additions", "what"), SUMMED, ids=[what for *_, what in SUMMED]
)
def test_sums_and_means_of_spikes_are_folded_into_the_weights_behind_them(
    between: list[nn.Module], layer: nn.Conv2d | nn.Linear, additions: int, what: str
) -> None:
    data = images(None, (1, 1), None)
    found = measure_energy(classifier(*between, layer, nn.Flatten(), nn.LazyLinear(5)), data)
    name = f"layer{len(between)}"
    at = found.layers[name]
    assert (at.acs, at.macs, at.summed) == (pytest.approx(T * additions / 3), 0, True), what
    assert found.snn is not None
    assert found.snn_dense is not None
    assert found.snn_dense.macs == found.snn.macs + T * at.ann_macs
    assert found.snn_dense.acs == pytest.approx(found.snn.acs - at.acs)
    assert any(
        limit.startswith("Sums or means of spikes") and name in limit for limit in found.limits
    )
    assert found.estimate().dense_microjoules == found.snn_dense.microjoules
    assert "SNN, sums multiplied" in found.summary()
    # without a node in between no spikes come there
    behind = found.layers[f"layer{len(between) + 2}"]
    assert (behind.acs, behind.macs, behind.rate) == (0, T * behind.ann_macs, None)


def test_folding_adds_what_a_network_with_the_pool_in_its_weights_adds() -> None:
    """A mean over 2×2 and a convolution of 3×3 are one convolution of 6×6 with stride 2."""
    data = images((1, 1), (0, 3), (2, 2))
    pooled = measure_energy(
        classifier(nn.AvgPool2d(2), nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(12, 5)),
        data,
    )
    folded = measure_energy(
        classifier(nn.Conv2d(1, 3, 6, stride=2, padding=2), nn.Flatten(), nn.Linear(12, 5)), data
    )
    assert pooled.layers["layer1"].acs == folded.layers["layer0"].acs > 0


def test_what_is_no_sum_of_spikes_is_multiplied() -> None:
    data = images(None, (1, 1), None)
    for between in (
        nn.BatchNorm2d(1),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(3),
        Paths(nn.Identity(), nn.Tanh(), sum),
        nn.Softmax(-1),
    ):
        found = measure_energy(
            classifier(between, nn.Conv2d(1, 2, 1), nn.Flatten(), nn.LazyLinear(5)), data
        )
        at = found.layers["layer1"]
        assert (at.acs, at.macs, at.rate, at.summed) == (0, T * at.ann_macs, None, False)
        assert found.snn_dense is None
        assert any(
            limit.startswith("Inputs that are not made of spikes") and "layer1" in limit
            for limit in found.limits
        )


def test_a_change_in_place_ends_what_was_known() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.avg_pool2d(x, 2)
            return x.sigmoid_()

    found = measure_energy(
        classifier(InPlace(), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.LazyLinear(5)), images((1, 1))
    )
    assert found.layers["layer1"].macs == T * 8


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_make_no_difference(batch_size: int) -> None:
    """A batch of black images alone has no sum of 2 in it, and no other spike either."""
    data = images((1, 1), None, None, (0, 3), None)
    model = classifier(
        Sums(),
        filled(nn.Conv2d(1, 2, 3, padding=1), 10.0),
        spiking(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    assert (
        measure_energy(model, data, batch_size=batch_size).layers
        == measure_energy(model, data).layers
    )


def test_binary_images_are_spikes_already() -> None:
    backbone = nn.Sequential(
        filled(nn.Conv2d(1, 1, 3, padding=1), 1.0), spiking(), nn.Flatten(), nn.Linear(16, 5)
    )
    model = SpikingClassifier(backbone, timesteps=T, mean=[0.0], std=[1.0], repeat_at="1")
    found = measure_energy(model, images((0, 0)))
    assert (found.layers["0"].acs, found.layers["0"].macs) == (4, 0)
    assert found.snn is not None
    assert found.snn_repeated is not None
    assert found.snn_repeated.acs - found.snn.acs == 4


def test_an_ann_has_macs_alone() -> None:
    backbone = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2, 2),
        nn.Flatten(),
        nn.Linear(32, 5, bias=False),
    )
    for parameter in backbone.parameters():
        nn.init.zeros_(parameter)  # nothing is saved by what the values happen to be
    found = measure_energy(NormalizedClassifier(backbone, [0.0], [1.0]), images(None, None))
    assert {name: layer.macs for name, layer in found.layers.items()} == {
        "0": 4 * 9 * 4,
        "2": 4 * 9 * 2 * 4,
        "4": 16 * 2 * 4,
        "6": 160,
    }
    assert (found.snn, found.snn_repeated, found.ratio, found.activity, found.updates) == (
        None,
        None,
        None,
        None,
        None,
    )
    assert found.ann.macs == 144 + 288 + 128 + 160
    assert found.model.kind == "ann"
    assert "ACs" in found.summary()


def test_a_real_network() -> None:
    model = sj_robust.load(ZOO)
    assert isinstance(model, SpikingClassifier)
    data = load_dataset("sample", "test").first(6)
    model.backbone.fc.train()
    with model.gradient("activation"):  # whatever the caller left there: the spikes are counted
        found = measure_energy(model, data, batch_size=4)
        assert {str(node.view) for node in model.nodes().values()} == {"activation"}
    assert model.backbone.fc.training
    assert not model.backbone.training
    assert found == Energy.model_validate_json(found.to_json())

    steps, snn, activity = model.timesteps, found.snn, found.activity
    assert snn is not None
    assert activity is not None
    assert found.ann.macs == 40_551_040  # with identity shortcuts; He et al. give 41 M
    assert snn.acs == pytest.approx(sum(layer.acs for layer in found.layers.values()))
    assert 0 < snn.acs < steps * found.ann.macs
    for layer in found.layers.values():
        assert layer.acs + layer.macs <= layer.passes * layer.ann_macs
        # spikes may avoid the padding
        assert layer.rate is None or layer.acs <= layer.rate * layer.passes * layer.ann_macs * 1.15
    assert [name for name, layer in found.layers.items() if layer.macs] == ["conv1", "fc"]
    assert found.layers["conv1"].passes == 1
    assert found.layers["layer1.0.conv1"].spikes_per_neuron == pytest.approx(
        activity.layers["act1"].spikes_per_neuron
    )
    assert 0 < snn.microjoules < found.ann.microjoules

    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        model(data.floats())
    assert snn.acs == pytest.approx(counter.get_total() / len(data))

    ann = measure_energy(sj_robust.load("resnet20.cifar10_linf_pgd"), data)
    assert ann.ann == found.ann


def test_a_report_has_the_energy_of_its_first_images(net: SpikingClassifier) -> None:
    data = images((1, 1), (0, 0), None)
    net.backbone[-1].weight.data[0] = 2.0  # type: ignore[index]  # class 0 wins where there are spikes: both images are attacked
    settings = dict(attacks=["fgsm"], eps=[0.1], views=["PCW:1"], check_images=0)
    found, same = (
        evaluate(net, data, max_images=2, batch_size=1, **settings).energy,
        measure_energy(net, data.first(2)),
    )
    assert found is not None
    assert same.snn is not None
    assert (found.images, found.acs, found.macs) == (2, same.snn.acs, same.snn.macs)
    assert (found.microjoules, found.ann_macs, found.ann_microjoules) == (
        same.snn.microjoules,
        same.ann.macs,
        same.ann.microjoules,
    )
    assert found.picojoules == same.picojoules == {"MAC": E_MAC, "AC": E_AC}
    stopped = evaluate(net, data, max_images=2, time_limit=1e-9, **settings)
    assert stopped.stopped
    assert stopped.energy == found  # the time limit is for attacks

    ann = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), [0.0], [1.0])
    own = evaluate(ann, data, attacks=[]).energy
    assert own is not None
    assert (own.images, own.acs, own.macs, own.microjoules) == (
        1,
        0,
        80,
        pytest.approx(80 * E_MAC * 1e-6),
    )
    assert (own.ann_macs, own.ann_microjoules) == (None, None)


class Pixels(nn.Module):
    """Logits without any product."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5]


class Shy(nn.Module):
    """Fails where somebody counts its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if is_in_torch_dispatch_mode():
            raise RuntimeError("not in here")
        out: Tensor = self.layer(x.flatten(1))
        return out


@pytest.mark.parametrize("network", [Pixels, Shy])
def test_a_network_that_cannot_be_counted_has_a_report_all_the_same(
    network: type[nn.Module],
) -> None:
    report = evaluate(network(), images(None, (1, 1)), attacks=[])
    assert report.energy is None
    assert "energy  not measured" in report.summary()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_images": 0}, "max_images is 0"),
        ({"max_images": 3}, "expected 1 to 2"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_settings_are_named(
    net: SpikingClassifier, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        measure_energy(net, images(None, None), **settings)


def test_data_that_does_not_fit_is_named(net: SpikingClassifier) -> None:
    with pytest.raises(SJRobustError, match="no images"):
        measure_energy(net, images())
    with pytest.raises(SJRobustError, match="cannot take the images of sample"):
        measure_energy(net, load_dataset("sample", "test").first(2))
