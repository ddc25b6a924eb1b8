"""Networks that normalise the images themselves, in whatever way, are not normalised a second
time; and what is no mean or std."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust import SJRobustError, convert, load, save
from sj_robust.conversion import inspect_conversion
from sj_robust.data import MEAN_STD, ImageDataset, load_dataset
from sj_robust.model import NormalizedClassifier
from sj_robust.model.normalized import unit_scale
from sj_robust.recipes.network import open_ann
from sj_robust.recipes.spec import AnnSettings

MEAN, STD = MEAN_STD["cifar10"]
NONE, ONE = [0.0] * 3, [1.0] * 3


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    """Real images of four classes, at 8×8, under the name of a data set whose mean and std are
    known."""
    sample = load_dataset("sample", "train")
    chosen = sample.subset((sample.labels < 4).nonzero().flatten()[:200])
    small = F.avg_pool2d(chosen.images.float(), 4).round().to(torch.uint8)
    return replace(chosen, images=small, classes=chosen.classes[:4], name="cifar10")


@pytest.fixture(scope="module")
def body(dataset: ImageDataset) -> nn.Sequential:
    """A network that is right on nearly all of them, where they are normalised once."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 4),
    )
    optimizer, x = (
        torch.optim.Adam(network.parameters(), 3e-3),
        NormalizedClassifier(network, MEAN, STD).normalize(dataset.floats()),
    )
    for _ in range(60):
        loss = F.cross_entropy(network(x), dataset.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(x).argmax(1) == dataset.labels).double().mean() > 0.8
    return network.eval()


class By(nn.Module):
    """`body` after `first`, which the attributes help."""

    def __init__(
        self, body: nn.Module, first: Callable[[Any, Tensor], Tensor], **attributes: Any
    ) -> None:
        super().__init__()
        self.body, self.first = body, first
        for name, value in attributes.items():
            if isinstance(value, Tensor) and name.startswith("kept_"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.body(self.first(self, x))


def fixed_convolution() -> nn.Conv2d:
    layer = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(1 / torch.tensor(STD)).view(3, 3, 1, 1))
        layer.bias.copy_(-torch.tensor(MEAN) / torch.tensor(STD))  # type: ignore[union-attr]
    return layer


def fixed_batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3, affine=False, eps=0)
    norm.running_mean, norm.running_var = torch.tensor(MEAN), torch.tensor(STD).square()
    return norm


m, s = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
THEMSELVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "transforms.Normalize": lambda body: nn.Sequential(
        torchvision.transforms.Normalize(MEAN, STD), body
    ),
    "transforms.v2": lambda body: nn.Sequential(
        torchvision.transforms.v2.Normalize(MEAN, STD), body
    ),
    "attributes": lambda body: By(body, lambda net, x: (x - net.m) / net.s, m=m, s=s),
    "numbers": lambda body: By(
        body, lambda net, x: torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    ),
    "buffers of other names": lambda body: By(
        body, lambda net, x: (x - net.kept_centre) / net.kept_width, kept_centre=m, kept_width=s
    ),
    "function": lambda body: By(
        body, lambda net, x: torchvision.transforms.functional.normalize(x, list(MEAN), list(STD))
    ),
    "up to 255": lambda body: By(
        body, lambda net, x: (x * 255 - net.m) / net.s, m=m * 255, s=s * 255
    ),
    "-1 to 1": lambda body: By(body, lambda net, x: ((x * 2 - 1 + 1) / 2 - m) / s),
    "a layer": lambda body: nn.Sequential(fixed_convolution(), body),
    "batch norm": lambda body: nn.Sequential(fixed_batch_norm(), body),
    "in place": lambda body: By(body, lambda net, x: x.clone().sub_(m).div_(s)),
    "a wrapper within": lambda body: By(
        nn.DataParallel(By(body, lambda net, x: (x - m) / s)), lambda net, x: x
    ),
    "whitened": lambda body: By(
        body,
        lambda net, x: torch.einsum("ij,njhw->nihw", net.matrix, x - m),
        matrix=torch.diag(1 / s.flatten()),
    ),
}


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("networks_of_mine")
    sys.modules["networks_of_mine"] = made
    yield made
    del sys.modules["networks_of_mine"]


def opened(
    module: types.ModuleType, network: nn.Module, dataset: ImageDataset, **settings: Any
) -> NormalizedClassifier:
    module.make = lambda: network  # type: ignore[attr-defined]
    ann = open_ann(AnnSettings(model="networks_of_mine:make", **settings), dataset)
    assert isinstance(ann, NormalizedClassifier)
    return ann


def statistics(ann: NormalizedClassifier) -> tuple[list[float], list[float]]:
    return ann.mean.flatten().tolist(), ann.std.flatten().tolist()


@pytest.mark.parametrize("name", THEMSELVES)
def test_a_network_that_normalises_itself_is_known_by_what_it_gets_right(
    name: str, module: types.ModuleType, body: nn.Sequential, dataset: ImageDataset
) -> None:
    with pytest.warns(
        UserWarning,
        match=(
            r"normalises the images itself: it is right on \d+% of 128 images as they are, and on"
            r" \d+% with"
        ),
    ):
        assert statistics(opened(module, THEMSELVES[name](body), dataset)) == (NONE, ONE)
    with pytest.warns(UserWarning, match="if it normalises them itself, give 0 and 1"):
        given = opened(module, THEMSELVES[name](body), dataset, mean=list(MEAN), std=list(STD))
    assert statistics(given)[0] == pytest.approx(MEAN)


@pytest.mark.filterwarnings("error")
def test_a_network_that_does_not_gets_the_data_sets_mean_and_std(
    module: types.ModuleType, body: nn.Sequential, dataset: ImageDataset
) -> None:
    assert statistics(opened(module, body, dataset))[1] == pytest.approx(STD)
    assert statistics(opened(module, body, dataset, mean=list(MEAN), std=list(STD)))[
        1
    ] == pytest.approx(STD)


def test_weights_of_a_network_that_saw_the_images_as_they_are(
    dataset: ImageDataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make = dict(architecture="cifar_resnet20", num_classes=4)
    ann = open_ann(AnnSettings(**make, scratch=True), dataset)  # type: ignore[arg-type]
    network, x = ann.backbone.train(), dataset.floats()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(60):
        part = slice(50 * (step % 4), 50 * (step % 4 + 1))
        loss = F.cross_entropy(network(x[part]), dataset.labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    with pytest.warns(UserWarning, match="normalises the images itself"):
        again = open_ann(
            AnnSettings(**make, weights=str(tmp_path / "weights.safetensors")), dataset
        )  # type: ignore[arg-type]
    assert statistics(again) == (NONE, ONE)


def test_what_cannot_be_told_is_asked_for(
    module: types.ModuleType, body: nn.Sequential, dataset: ImageDataset
) -> None:
    indifferent = By(body, lambda net, x: (x - x.mean((2, 3), True)) / x.std((2, 3), keepdim=True))
    with pytest.raises(
        SJRobustError,
        match=(
            r"whether .*make normalises the images itself cannot be told: it is right on .*; give"
            r" both"
        ),
    ):
        opened(module, indifferent, dataset)
    assert statistics(opened(module, indifferent, dataset, mean=NONE, std=ONE)) == (NONE, ONE)
    with pytest.raises(
        SJRobustError, match="are not known: give both, mean and std, 3 values each"
    ):
        opened(module, body, replace(dataset, name="mine"))


def test_random_weights_say_nothing_and_take_the_data_sets(
    module: types.ModuleType, body: nn.Sequential, dataset: ImageDataset
) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    with pytest.warns(
        UserWarning, match=r"cifar10's are taken.*on no more of 128 images than by chance"
    ):
        assert statistics(opened(module, network, dataset))[0] == pytest.approx(MEAN)


# --- what is a mean, what a std -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (
            (125.3, 123.0, 113.9),
            (63.0, 62.1, 66.7),
            ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
        ),
        ((127.5,), (127.5,), ((0.5,), (0.5,))),
        ((33.3184,), (78.5675,), ((0.1307,), (0.3081,))),
        ((123.68, 116.78, 103.94), (1, 1, 1), ((0.485, 0.458, 0.4076), (1 / 255,) * 3)),
        (
            torch.tensor([125.3, 0.0, 113.9]),
            torch.tensor([63.0, 62.1, 66.7]),
            ((0.4914, 0.0, 0.4467), (0.2471, 0.2435, 0.2616)),
        ),
    ],
)
def test_those_of_images_up_to_255_are_divided_and_that_is_said(
    mean: Any, std: Any, expected: Any
) -> None:
    with pytest.warns(UserWarning, match="are of images up to 255: divided by 255") as said:
        ann = NormalizedClassifier(nn.Flatten(), mean, std)
    assert len(said) == 1
    assert statistics(ann)[0] == pytest.approx(expected[0], abs=1e-4)
    assert statistics(ann)[1] == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.25,)),
        (0.5, 0.25),
        ((0, 0, 0), (1, 1, 1)),
        ((0.485, 0.456, 0.406), (1 / 255,) * 3),
        ((1.0,), (0.5,)),
    ],
)
def test_those_of_images_up_to_1_are_taken(mean: Any, std: Any) -> None:
    assert unit_scale(mean, std)[0] == pytest.approx(torch.tensor(mean).flatten().tolist())


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.0,)),
        ((0.5,), (-0.25,)),
        ((-0.1,), (0.5,)),
        ((300.0,), (60.0,)),
        ((125.3,), (0.25,)),
        ((0.5,), (63.0,)),
        ((float("nan"),), (0.5,)),
        ((0.5,), (float("inf"),)),
        ((0.5, 0.5), (0.25,)),
        ((), ()),
        (("0.5",), (0.25,)),
        ("0.5", 0.25),
        (None, 0.25),
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.0)),
        ((0.0,), (255.0,)),
    ],
)
def test_what_no_images_have_is_refused(mean: Any, std: Any) -> None:
    with pytest.raises(SJRobustError, match=r"mean|std") as refusal:
        NormalizedClassifier(nn.Flatten(), mean, std)
    assert "\n" not in str(refusal.value)


def test_the_scale_is_the_same_everywhere(
    module: types.ModuleType, body: nn.Sequential, dataset: ImageDataset, tmp_path: Path
) -> None:
    mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
    with pytest.warns(UserWarning, match="up to 255") as said:
        ann = opened(module, body, dataset, mean=mean, std=std)
    assert len(said) == 1
    assert statistics(ann)[0] == pytest.approx(MEAN)
    calibration = dataset.floats()[None, :16]
    with pytest.warns(UserWarning, match="up to 255") as said:
        snn = convert(body, calibration, 2, mean=mean, std=std, calibration_timesteps=2)
    assert len(said) == 1
    assert snn.settings["mean"] == pytest.approx(MEAN)
    assert torch.equal(
        snn(calibration[0]), convert(ann, calibration, 2, calibration_timesteps=2)(calibration[0])
    )
    with pytest.raises(SJRobustError, match="3 channels: give mean and std 3 values each"):
        opened(module, body, dataset, mean=[0.5], std=[0.25])


def test_a_checkpoint_is_not_rescaled_when_it_is_loaded(
    body: nn.Sequential, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="timm"):
        save(NormalizedClassifier(body, MEAN, STD), tmp_path / "ann", input_size=(3, 8, 8))
    config = tmp_path / "ann" / "config.json"
    config.write_text(config.read_text().replace("0.4914", "125.3"))
    with pytest.raises(SJRobustError, match=r"mean \[125\.3"):
        load(tmp_path / "ann", model=body)


def test_the_report_tells_both_accuracies(body: nn.Sequential, dataset: ImageDataset) -> None:
    x, y = dataset.floats(), dataset.labels
    snn = convert(body, x[None, :64], 4, mean=MEAN, std=STD, calibration_timesteps=8)
    right = inspect_conversion(snn, x, NormalizedClassifier(body, MEAN, STD), y)
    twice = inspect_conversion(
        snn,
        x,
        NormalizedClassifier(
            nn.Sequential(torchvision.transforms.Normalize(MEAN, STD), body), MEAN, STD
        ),
        y,
    )
    assert (
        right.ann_accuracy is not None
        and twice.ann_accuracy is not None
        and right.accuracy is not None
    )
    assert right.ann_accuracy > 0.8 and right.ann_accuracy > twice.ann_accuracy + 0.1
    assert (
        f"Right on these images: the ANN {right.ann_accuracy:.1%}, the spiking network"
        f" {right.accuracy:.1%}" in right.summary()
    )
    assert "Right on" not in inspect_conversion(snn, x).summary()
