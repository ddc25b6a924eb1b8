"""scale="auto": thresholds at which firing rates agree with the ANN's activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sj_robust import load
from sj_robust.conversion import convert, rebuild
from sj_robust.conversion.agreement import FACTORS, OVERALL
from sj_robust.conversion.norms import batch_statistics
from sj_robust.data import MEAN_STD, calibration_batches, load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import Reset

MEAN, STD = MEAN_STD["sample"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """4 batches of 16 real images [4, 16, 3, 32, 32]."""
    return calibration_batches(load_dataset("sample", "train"), 4, 16, seed=0)


@pytest.fixture(scope="module")
def robust() -> NormalizedClassifier:
    return load("resnet20.cifar10_linf_pgd")


def plain(norm: bool = True) -> nn.Sequential:
    """Three nodes, the second and third behind average pools."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width in ((3, 12), (12, 16), (16, 16)):
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=not norm))
        layers += [*([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 10)).eval()


def converted(ann: nn.Module, images: Tensor, **changes: object) -> SpikingClassifier:
    given = {} if isinstance(ann, NormalizedClassifier) else {"mean": MEAN, "std": STD}
    defaults = {"timesteps": 4, "calibration_timesteps": 10, "scale": "auto"}
    return convert(ann, images, **{**defaults, **given, **changes})  # type: ignore[arg-type]


def rates(x: np.ndarray, threshold: float, leak: float, reset: Reset) -> np.ndarray:
    """The neuron's equations step by step in float64: [T, N, *] → [N, *]."""
    v = spikes = np.zeros(x.shape[1:])
    for step in x.astype(np.float64):
        h = leak * v + step
        fired = h >= threshold
        v = h - threshold * fired if reset == "soft" else np.where(fired, 0.0, h)
        spikes = spikes + fired
    return spikes / len(x)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / size) if size else 0.0


def one_factor(ratios: list[float]) -> float:
    """The one of OVERALL that, taken out, leaves factors of the list for single layers."""
    (found,) = [
        overall
        for overall in OVERALL
        if all(min(abs(ratio / overall / f - 1) for f in FACTORS) < 1e-4 for ratio in ratios)
    ]
    return found


@pytest.mark.parametrize(("reset", "leak"), [("soft", 1.0), ("hard", 0.9)])
def test_each_layer_has_the_factor_that_agrees_most(
    images: Tensor, reset: Reset, leak: float
) -> None:
    ann, raw = plain(), dict[str, float]()
    snn = converted(
        ann, images, reset=reset, leak=leak, norm_statistics="reset", on_layer=raw.__setitem__
    )
    chosen = snn.thresholds()
    overall = one_factor([chosen[name] / raw[name] for name in raw])
    with torch.no_grad():
        for name, node in snn.nodes().items():  # each layer was looked at before that
            node.v_threshold.div_(overall)
            chosen[name] /= overall
    seen: dict[str, np.ndarray] = {}
    for name, activation in snn.activations().items():
        activation.register_forward_pre_hook(
            lambda module, given, name=name: seen.update({name: given[0].numpy()})  # type: ignore[misc]
        )
    expected: dict[str, np.ndarray] = {}
    for name, module in ann.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda module, given, out, name=name: expected.update({name: out.numpy().copy()})  # type: ignore[misc]
            )
    x = images.flatten(0, 1)
    with torch.no_grad(), batch_statistics(snn):
        NormalizedClassifier(ann, MEAN, STD)(x)
        snn(x)
    for name, before in seen.items():
        copies = 4 if snn.activations()[name].repeats else 1
        steps = np.concatenate([before] * copies).reshape(4, *expected[name].shape)
        found = {
            factor: cosine(rates(steps, raw[name] * factor, leak, reset), expected[name])
            for factor in FACTORS
        }
        mine = min(FACTORS, key=lambda factor: abs(raw[name] * factor - chosen[name]))
        assert chosen[name] == pytest.approx(raw[name] * mine, rel=1e-5)
        assert found[mine] > max(found.values()) - 0.004, (name, found)
        assert max(found.values()) - min(found.values()) > 0.04  # it can tell them apart


def test_more_steps_have_higher_thresholds(images: Tensor) -> None:
    few, many = (
        converted(plain(), images, timesteps=t, reset="soft").thresholds() for t in (2, 16)
    )
    assert np.mean([many[name] / few[name] for name in few]) > 1.2


@pytest.mark.parametrize(
    "changes", [{}, {"per_channel": True}, {"norm": "fuse"}, {"norm": "omit"}], ids=str
)
def test_the_result_is_saved_and_rebuilt(images: Tensor, changes: dict[str, object]) -> None:
    snn = converted(plain(), images, **changes)
    assert snn.settings["scale"] == "auto"
    again = rebuild(plain(), snn.settings)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again.eval()(images[0]), snn(images[0]))
    assert converted(plain(), images, **changes).thresholds() == snn.thresholds()


def test_without_batch_norm_spikes_are_worth_the_chosen_thresholds(images: Tensor) -> None:
    ann, raw = plain(norm=False), dict[str, float]()
    snn = converted(ann, images, reset="soft", timesteps=64, on_layer=raw.__setitem__)
    x = images[0]
    with torch.no_grad():
        expected = NormalizedClassifier(ann, MEAN, STD)(x)
        with snn.gradient("activation"):  # what was moved into the weights leaves the ANN's logits
            torch.testing.assert_close(snn(x), expected, rtol=1e-3, atol=1e-4)
        error = (snn(x) - expected).square().mean().sqrt() / expected.std(0).mean()
    assert error < 0.15


def test_it_agrees_more_than_the_fixed_factor(robust: NormalizedClassifier, images: Tensor) -> None:
    test, images = load_dataset("sample", "test").first(64).floats(), images[:1]
    with torch.no_grad():
        logits = robust(test)
        distance = [
            float(
                nn.functional.cosine_similarity(
                    converted(robust, images, scale=scale)(test), logits
                ).mean()
            )
            for scale in (0.05, 1.0, "auto")
        ]
    assert distance[2] > max(distance[:2])


def test_calibration_batches_may_be_of_any_number_and_size(images: Tensor) -> None:
    ann = nn.Sequential(
        *list(plain())[:8], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    one_by_one = [image[None] for image in images.flatten(0, 1)]
    expected = converted(ann.eval(), one_by_one, calibration_timesteps=2).thresholds()
    smaller = [*one_by_one, images[0][:, :, :16, :16]]
    found = converted(ann, smaller, calibration_timesteps=2).thresholds()
    assert found.keys() == expected.keys()
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize("scale", ["best", 0, -1, 11, float("nan"), None, True, "0x1", 10**400])
def test_another_scale_is_named(images: Tensor, scale: object) -> None:
    with pytest.raises(SJRobustError, match=r"scale: .*expected auto or a number above 0"):
        converted(plain(), images, scale=scale)
