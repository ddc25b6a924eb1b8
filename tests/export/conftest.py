"""Real images, the zoo's spiking ResNet-20 and small networks of every kind that can be
exported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sj_robust
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.neuron import ThresholdLIF

SIZE = (3, 8, 8)
SpikesOf = Callable[[SpikingClassifier, Tensor], tuple[Tensor, dict[str, Tensor]]]


@pytest.fixture(scope="session")
def spikes_of() -> SpikesOf:
    """Logits of each step [T,N,K], and the spikes of each node [T,N,*]."""

    def run(snn: SpikingClassifier, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            found[name] = output.unflatten(0, (snn.timesteps, -1))

        hooks = [
            activation.register_forward_hook(
                lambda module, inputs, output, name=name: keep(name, output)
            )
            for name, activation in snn.activations().items()
        ]
        with torch.no_grad():
            logits = snn.forward_sequence(images)
        for hook in hooks:
            hook.remove()
        return logits, found

    return run


def spike(threshold: float = 0.7, leak: float = 1.0, **options: object) -> SpikingActivation:
    return SpikingActivation(ThresholdLIF(threshold, leak, **options), 4)  # type: ignore[arg-type]


def classifier(backbone: nn.Module, repeat_at: str = "") -> SpikingClassifier:
    """With batch norms that do something, in eval mode."""
    torch.manual_seed(1)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.3, 0.5)
            norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
    return SpikingClassifier(
        backbone, timesteps=4, mean=[0.5, 0.4, 0.3], std=[0.25, 0.2, 0.3], repeat_at=repeat_at
    ).eval()


class PreActivation(nn.Module):
    """A batch norm behind a sum, a grouped convolution with a leaky node of one threshold per
    channel, the mean over all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.act1 = spike(0.6)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.bn = nn.BatchNorm2d(8)
        self.act2 = spike(0.4, 0.8, channels=8)
        self.act2.node.v_threshold.data.uniform_(
            0.2, 0.6, generator=torch.Generator().manual_seed(0)
        )
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(8, 12)
        self.bn1 = nn.BatchNorm1d(12)
        self.act3 = spike(0.3, 0.5)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.act2(self.bn(x + self.conv2(self.act1(x)) * 0.5))
        return self.fc2(self.act3(self.bn1(self.fc1(self.pool(x).mean((2, 3))))))


def plain() -> SpikingClassifier:
    """A feed-forward network, the stem of which is computed once."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        spike(0.8),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        spike(0.3),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(48, 5),
    ]
    return classifier(nn.Sequential(*layers), "2")


def pre_activation() -> SpikingClassifier:
    torch.manual_seed(0)
    return classifier(PreActivation())


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Eight real images [8,3,32,32]."""
    return sj_robust.load_dataset("sample", "test").floats()[:8]


@pytest.fixture(scope="session")
def small(images: Tensor) -> Tensor:
    """The same at 8×8 pixels."""
    return nn.functional.avg_pool2d(images, 4)


@pytest.fixture
def resnet() -> SpikingClassifier:
    model = sj_robust.load("resnet20-snn-t4.cifar10_linf_pgd")
    assert isinstance(model, SpikingClassifier)
    return model


@pytest.fixture(params=["plain", "pre_activation"])
def network(request: pytest.FixtureRequest) -> SpikingClassifier:
    return {"plain": plain, "pre_activation": pre_activation}[request.param]()


@pytest.fixture
def feed_forward() -> SpikingClassifier:
    return plain()


@pytest.fixture
def ann() -> NormalizedClassifier:
    torch.manual_seed(0)
    return NormalizedClassifier(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
        [0.5] * 3,
        [0.2] * 3,
    ).eval()
