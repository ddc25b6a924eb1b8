"""Networks without batch norm: a spike is worth its node's threshold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sj_robust import load, save
from sj_robust.convert import convert, inspect_conversion
from sj_robust.data import MEAN_STD, calibration_batches, load_dataset
from sj_robust.model import NormalizedClassifier, SpikingClassifier, create_ann

MEAN, STD = MEAN_STD["sample"]


class Fire(nn.Module):
    """As in SqueezeNet: two nodes whose spikes lie side by side in the next layer's input; a grouped convolution, poolings, a head."""

    def __init__(self, pool: type[nn.Module] = nn.MaxPool2d, *, residual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act0 = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()
        self.left, self.act1, self.right, self.act2 = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU()
        self.grouped, self.act3, self.pool, self.drop = nn.Conv2d(24, 24, 3, 1, 1, groups=4), nn.ReLU(), pool(2), nn.Dropout(0.5)
        self.hidden, self.act4, self.fc = nn.Linear(24 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.act0(self.stem(x)), 2)
        x = torch.cat([self.act1(self.left(x)), self.act2(self.right(x))], 1)
        x = self.pool(self.act3(self.grouped(x) + x if self.residual else self.grouped(x)))
        return self.fc(self.act4(self.hidden(self.drop(x.flatten(1)))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """2 batches of 16 real images [2, 16, 3, 32, 32]."""
    return calibration_batches(load_dataset("sample", "train"), 2, 16, seed=0)


def converted(ann: nn.Module, images: Tensor, **changes) -> SpikingClassifier:  # type: ignore[no-untyped-def]
    return convert(ann, images, **{"timesteps": 64, "mean": MEAN, "std": STD, "reset": "soft", "scale": 1.0} | changes)


def error(snn: SpikingClassifier, ann: nn.Module, images: Tensor) -> float:
    """The mean distance of the logits from the ANN's, beside how far these vary between images."""
    with torch.no_grad():
        expected = NormalizedClassifier(ann, MEAN, STD)(images)
        return float((snn(images) - expected).square().mean().sqrt() / (expected - expected.mean(0)).square().mean().sqrt())


def test_many_steps_of_soft_reset_reach_the_anns_logits(images: Tensor) -> None:
    ann = Fire(nn.AvgPool2d).eval()  # max pooling of spikes is an OR, which is more than the maximum of their rates
    errors = [error(converted(ann, images, timesteps=t), ann, images[0]) for t in (16, 64, 256)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15, errors


def test_the_weights_hold_the_thresholds_and_the_ann_is_left_alone(images: Tensor) -> None:
    ann = Fire().eval()
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    snn = converted(ann, images, scale=0.4)
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())
    v = snn.thresholds()
    expected = ann.grouped.weight.detach().clone()  # 4 groups of 6 outputs, each of 6 inputs: act1 makes the first 8, act2 the other 16
    worth = torch.tensor([v["act1"]] * 8 + [v["act2"]] * 16)
    for out in range(24):
        group = out // 6
        expected[out] *= worth[6 * group : 6 * group + 6, None, None]
    torch.testing.assert_close(snn.backbone.get_parameter("grouped.weight"), expected)
    torch.testing.assert_close(snn.backbone.get_parameter("fc.weight"), ann.fc.weight * v["act4"])
    torch.testing.assert_close(snn.backbone.get_parameter("stem.weight"), ann.stem.weight)
    with snn.gradient("activation"), torch.no_grad():
        torch.testing.assert_close(snn(images[0]), NormalizedClassifier(ann, MEAN, STD)(images[0]), rtol=1e-4, atol=1e-5)
    report = inspect_conversion(snn, images[0], ann)
    assert report.folded
    assert "for want of batch norms" in report.summary()


@pytest.mark.parametrize("residual", [True, False], ids=["a sum of spikes", "batch norm"])
def test_where_thresholds_cannot_or_need_not_be_folded_the_weights_stay(images: Tensor, residual: bool) -> None:
    ann = Fire(residual=True).eval() if residual else load("resnet20.cifar10_linf_pgd").backbone
    snn = converted(ann, images, timesteps=4, calibration_timesteps=4)
    weights = {name: value for name, value in snn.backbone.named_parameters() if name.endswith("weight")}
    assert all(torch.equal(value, ann.get_parameter(name)) for name, value in weights.items())
    report = inspect_conversion(snn, images[0], ann)
    assert not report.folded
    assert not snn.folded


def test_a_folded_network_is_saved_and_loaded(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ann = create_ann("cifar_vgg11", 10).eval()
    snn = converted(ann, images, timesteps=4, norm="fuse", calibration_timesteps=8)
    assert snn.folded
    save(snn, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.folded
    with torch.no_grad():
        assert torch.equal(again(images[0]), snn(images[0]))
