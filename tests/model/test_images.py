"""What a classifier takes for images and labels, and what it says about anything else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sj_robust import GradientView, SJRobustError, convert
from sj_robust.attack import PGD, Square
from sj_robust.model import NormalizedClassifier, from_spikingjelly
from sj_robust.model.images import OutsideWarning, checked_labels, values_known

X = torch.linspace(0, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
Y = torch.arange(4)


def small() -> NormalizedClassifier:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 5),
    )
    return NormalizedClassifier(nn.Sequential(*layers), (0.5,) * 3, (0.25,) * 3).eval()


def own_nodes() -> nn.Module:
    from spikingjelly.activation_based import layer, neuron, surrogate

    node = neuron.IFNode(step_mode="m", surrogate_function=surrogate.ATan())
    network = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(192, 5, step_mode="m"), node)
    return from_spikingjelly(network, timesteps=2, mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=5)


@pytest.fixture(scope="module")
def models() -> dict[str, Callable[[Tensor], Tensor]]:
    ann = small()
    snn = convert(ann, X[None], 2, calibration_timesteps=4)
    return {
        "ann": ann,
        "snn": snn,
        "sequence": snn.forward_sequence,
        "view": GradientView(snn, "rate"),
        "wrapped": own_nodes().eval(),
    }


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "uint8": (lambda: (X * 255).byte(), r"images are uint8: .* images\.float\(\) / 255"),
    "int64": (lambda: (X * 255).long(), "images are int64"),
    "bool": (lambda: X > 0.5, "images are bool"),
    "sparse": (lambda: X.to_sparse(), r"images\.to_dense\(\)"),
    "complex": (lambda: X.cfloat(), "images are complex64"),
    "0 to 255": (lambda: X * 255, "reach from 0 to 255: expected .* divide by 255"),
    "16 bits": (lambda: X * 65535, "reach from 0 to"),
    "NaN": (lambda: X.where(X > 0.1, torch.nan), "reach from nan"),
    "infinite": (lambda: X.where(X > 0.1, torch.inf), "to inf"),
    "far below": (lambda: X - 300, "reach from -300"),
    "channels last": (lambda: X.permute(0, 2, 3, 1), r"\[4, 8, 8, 3\]: .*permute\(0, 3, 1, 2\)"),
    "one image": (lambda: X[0], r"unsqueeze\(0\)"),
    "one image, channels last": (lambda: X[0].permute(1, 2, 0), r"permute\(2, 0, 1\)"),
    "grey": (lambda: X[:, :1], r"\[4, 1, 8, 8\]: expected \[N,3,H,W\]"),
    "five dimensions": (lambda: X[None], "expected"),
    "array": (lambda: X.numpy(), "images are a ndarray"),
    "list": (lambda: list(X), "images are a list"),
    "elsewhere": (lambda: X.to("meta"), "images are on meta"),
}


@pytest.mark.parametrize("name", ["ann", "snn", "sequence", "view", "wrapped"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_are_no_images_is_refused(models: dict[str, Any], name: str, kind: str) -> None:
    make, message = WRONG[kind]
    with pytest.raises(SJRobustError, match=message) as refusal:
        models[name](make())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["ann", "snn", "view", "wrapped"])
def test_what_says_the_same_is_taken(models: dict[str, Any], name: str) -> None:
    model = models[name]
    expected = model(X)
    assert torch.equal(model(X.double()), expected)
    assert model(X.half()).dtype == expected.dtype
    assert model(X.bfloat16()).isfinite().all()
    assert model(X[:0]).shape == (0, 5)


def test_noise_outside_passes_with_one_warning(models: dict[str, Any]) -> None:
    noisy = X + torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    with pytest.warns(OutsideWarning, match="normalises them itself"):
        assert models["snn"](noisy).isfinite().all()
    for almost in (X - 1e-3, X + 0.2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models["snn"](almost)


def test_graphs_and_transforms_are_made_as_before() -> None:
    ann = small()
    expected = ann(X)
    assert torch.equal(torch.compile(ann, backend="eager", fullgraph=True)(X), expected)
    assert torch.equal(torch.export.export(ann, (X,)).module()(X), expected)
    torch.testing.assert_close(
        torch.func.vmap(lambda x: ann(x[None])[0])(X), expected, rtol=1e-4, atol=1e-5
    )
    leaf = X.clone().requires_grad_()
    ann(leaf.double()).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "labels",
    [
        Y.int(),
        Y.byte(),
        Y.float(),
        Y.tolist(),
        tuple(Y.tolist()),
        Y.numpy(),
        Y.numpy().astype(np.uint8),
    ],
)
@pytest.mark.parametrize("attack", [PGD(eps=0.1, steps=2), Square(eps=0.1, queries=3)])
def test_labels_of_any_whole_numbers(attack: Any, labels: Any) -> None:
    ann = small()
    assert torch.equal(attack(ann, X, labels), attack(ann, X, Y))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y - 1, "label -1: expected 0 to 4"),
        (Y + 2, r"label 5: expected 0 to 4 \(5 classes\)"),
        (Y[:3], r"shape \[3\]: expected \[4\]"),
        (torch.eye(4), r"argmax\(1\)"),
        (Y[:, None], r"squeeze\(1\)"),
        (Y + 0.5, "not all whole"),
        (Y * torch.nan, "not all whole"),
        (["cat"] * 4, "something else than numbers"),
        (Y.cfloat(), "complex64"),
    ],
)
def test_other_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        PGD(eps=0.1, steps=1)(small(), X, labels)
    with pytest.raises(SJRobustError, match=message):
        checked_labels(labels, 4, 5)


def test_labels_beyond_the_logits_of_any_model() -> None:
    with pytest.raises(SJRobustError, match="label 9, the model has fewer classes"):
        PGD(eps=0.1, steps=1)(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), X, Y + 6)


def test_whoever_made_the_images_is_not_asked(models: dict[str, Any]) -> None:
    """Attacks and training make their images themselves; on a GPU every look at them would wait."""
    for name in ("ann", "snn", "view", "wrapped"):
        with values_known():
            assert models[name](X * 255).isfinite().all()
        with pytest.raises(SJRobustError, match="reach from 0 to 255"):
            models[name](X * 255)
