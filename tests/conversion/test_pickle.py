"""Networks with rewritten forward passes go wherever torch pickles a module."""

from __future__ import annotations

import copy
import operator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.resnet import BasicBlock

from sj_robust.conversion import convert
from sj_robust.model import SpikingClassifier


@torch.fx.wrap
def halved(x: Tensor) -> Tensor:
    return x / 2


class Wrapped(nn.Module):
    """Calls a function that stays a call of it in the rewritten forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(halved(F.relu(self.conv(x))).mean((2, 3)))


BUILD = {
    "blocks": lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5),
    "whole": lambda: DenseNet(4, (2, 2, 2, 2), 8, num_classes=5),
    "wrapped": Wrapped,
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def conversion(name: str, images: Tensor) -> SpikingClassifier:
    torch.manual_seed(0)
    return convert(
        BUILD[name]().eval(),
        images,
        timesteps=2,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        calibration_timesteps=4,
    )


@pytest.mark.parametrize("name", BUILD)
def test_a_saved_module_comes_back_whole(name: str, images: Tensor, tmp_path: Path) -> None:
    snn = conversion(name, images)
    assert snn.settings["plan"]["rewrites"]
    torch.save(snn, tmp_path / "snn.pt")
    loaded = torch.load(tmp_path / "snn.pt", weights_only=False)
    assert isinstance(loaded, SpikingClassifier)
    assert (loaded.settings, list(loaded.state_dict())) == (snn.settings, list(snn.state_dict()))
    assert torch.equal(loaded(images[0]), snn(images[0]))
    # its weights are its own, and it trains, and is copied and saved again
    expected = snn(images[0])
    loaded.train()(images[0]).sum().backward()
    assert all(node.v_threshold.grad is not None for node in loaded.nodes().values())
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(0.5)
    assert torch.equal(snn(images[0]), expected)
    torch.save(copy.deepcopy(loaded.eval()), tmp_path / "again.pt")
    assert torch.equal(
        torch.load(tmp_path / "again.pt", weights_only=False)(images[0]), loaded(images[0])
    )


def test_a_spawned_worker_runs_a_rewritten_network(images: Tensor) -> None:
    snn = conversion("blocks", images)
    assert snn.settings["plan"]["rewrites"]
    with torch.no_grad():
        expected = snn(images[0])
        for parameter in snn.parameters():
            parameter.requires_grad_(False)  # what a worker returns is not part of a graph
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(operator.call, (snn, images[0])), expected)


def test_copies_share_the_classes_of_a_network_and_so_do_blocks_of_the_same_code(
    images: Tensor,
) -> None:
    snn = conversion("blocks", images)
    assert [type(module) for module in copy.deepcopy(snn).modules()] == [
        type(module) for module in snn.modules()
    ]
    first, second = snn.backbone.get_submodule("layer1")
    assert type(first) is type(second) is not BasicBlock
