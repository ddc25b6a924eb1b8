"""The spiking classifier as a drop-in classifier: stateless, time-first, views restored."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sj_robust.attack import GradientView
from sj_robust.conversion import convert
from sj_robust.data import load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import ENSEMBLE_VIEWS, AdaptiveSharpness, Surrogate, View, view_name


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_dataset("sample", "test").floats(torch.arange(6))


@pytest.fixture
def snn(images: Tensor) -> SpikingClassifier:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    ann = NormalizedClassifier(
        nn.Sequential(*features, nn.Flatten(), nn.Linear(4 * 28 * 28, 10)), (0.5,) * 3, (0.25,) * 3
    )
    return convert(ann, images[None], timesteps=5, calibration_timesteps=8, source={"made": "here"})


def test_logits_are_the_mean_of_the_sequence_and_calls_leave_no_state(
    snn: SpikingClassifier, images: Tensor
) -> None:
    sequence = snn.forward_sequence(images)
    assert sequence.shape == (5, 6, 10)
    assert torch.equal(snn(images), sequence.mean(0))
    assert torch.equal(snn(images[:2]), snn(images[:2]))
    torch.testing.assert_close(snn(images)[2:4], snn(images[2:4]))
    assert (snn.timesteps, snn.num_classes, snn.source, list(snn.thresholds())) == (
        5,
        10,
        {"made": "here"},
        ["2", "4"],
    )


def test_the_prefix_of_a_longer_sequence_is_the_shorter_one(
    snn: SpikingClassifier, images: Tensor
) -> None:
    longer = snn.forward_sequence(images)
    snn.timesteps = 2
    torch.testing.assert_close(snn.forward_sequence(images), longer[:2])
    with pytest.raises(SJRobustError, match="timesteps"):
        snn.timesteps = 0


def test_views_change_gradients_not_spikes_and_are_restored(
    snn: SpikingClassifier, images: Tensor
) -> None:
    def gradient() -> tuple[Tensor, Tensor]:
        x = images.clone().requires_grad_()
        logits = snn(x)
        logits[:, 0].sum().backward()
        assert x.grad is not None
        return logits.detach(), x.grad

    logits, own = gradient()
    seen = []
    for view in (Surrogate("PCW", 0.25), Surrogate("STE"), "rate"):
        with snn.gradient(view):
            inside, grad = gradient()
        assert torch.equal(inside, logits)
        assert not torch.equal(grad, own)
        seen.append(grad)
    assert not torch.equal(seen[0], seen[1])
    with pytest.raises(KeyError), snn.gradient("rate"), snn.gradient("activation"):
        raise KeyError
    again = gradient()
    assert torch.equal(again[0], logits)
    assert torch.equal(again[1], own)


def test_the_activation_view_is_the_relu_network(snn: SpikingClassifier, images: Tensor) -> None:
    relu = copy.deepcopy(snn.backbone)
    for name in snn.nodes():
        relu.set_submodule(name, nn.ReLU())
    with snn.gradient("activation"):
        assert snn.forward_sequence(images).shape == (1, 6, 10)
        torch.testing.assert_close(snn(images), relu(snn.normalize(images)))


def test_one_node_alone_in_the_activation_view_is_refused(
    snn: SpikingClassifier, images: Tensor
) -> None:
    snn.nodes()["2"].view = "activation"
    with pytest.raises(SJRobustError, match="all nodes"):
        snn(images)


def test_wrong_use_is_named(snn: SpikingClassifier, images: Tensor) -> None:
    with pytest.raises(SJRobustError, match="images of shape"):
        snn(images[:, :1])
    with pytest.raises(SJRobustError, match="repeat_at"):
        snn.repeat_at = "0"
    with pytest.raises(SJRobustError, match="no spiking node"):
        SpikingClassifier(nn.Linear(2, 2), timesteps=2, mean=(0,), std=(1,))
    snn.repeat_at = ""
    with pytest.raises(SJRobustError, match="multiple of 5"):
        snn.backbone(images[:3])


def test_running_statistics_with_a_shared_stem_are_those_of_T_copies(
    snn: SpikingClassifier, images: Tensor
) -> None:
    assert snn.repeat_at == "2"
    repeated = copy.deepcopy(snn)
    repeated.repeat_at = ""
    for model in (snn.train(), repeated.train()):
        for _ in range(2):
            model(images[:1, :, :6, :6].repeat(2, 1, 1, 1).repeat(1, 1, 6, 6)[:, :, :32, :32])
    for a, b in zip(snn.buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "view", [*ENSEMBLE_VIEWS, "rate-temporal", AdaptiveSharpness()], ids=view_name
)
@pytest.mark.parametrize(
    "twin_of",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copied", "pickled"],
)
def test_a_twin_has_logits_and_gradients_of_its_own_in_every_view(
    snn: SpikingClassifier, images: Tensor, view: View, twin_of: Any
) -> None:
    def gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
        x = images.clone().requires_grad_()
        logits = model(x)
        logits[:, 0].sum().backward()
        assert x.grad is not None
        return logits, x.grad

    with snn.gradient(view):
        if isinstance(view, AdaptiveSharpness):
            # leaves statistics in the view, which are those of an attack on this network
            gradient(snn)
        twin = twin_of(snn)
    assert [view_name(node.view) for node in twin.nodes().values()] == [view_name(view)] * 2
    shown = twin_of(GradientView(snn, view))
    if isinstance(view, AdaptiveSharpness):
        view.forget()
    with snn.gradient(view):
        logits, grad = gradient(snn)
        for other in (twin, shown):
            assert all(
                torch.equal(a, b) for a, b in zip(gradient(other), (logits, grad), strict=True)
            )
    with torch.no_grad():
        twin.nodes()["2"].v_threshold.mul_(2)
    assert twin.thresholds()["2"] == 2 * snn.thresholds()["2"]
