"""A converted network against the authors' code: thresholds, logits, every gradient, buffers, and
all 19 views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_robust.conversion import convert
from sj_robust.model import SpikingClassifier
from sj_robust.neuron import ENSEMBLE_VIEWS, Surrogate

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "convert_tiny.npz"))
META = json.loads(str(GOLDEN["meta"]))
MEAN, STD = META["norm"]
EPS = 8 / 255


def tensor(key: str) -> Tensor:
    return torch.tensor(GOLDEN[key])


def close(found: Tensor, key: str, relative: float = 1e-4) -> None:
    """Within `relative` of the largest entry: single entries may cancel to nothing."""
    expected = tensor(key).to(found.dtype)
    assert float((found.detach() - expected).abs().max()) <= relative * float(
        expected.abs().max()
    ), key


def layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


class TinyVGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *layer(3, 8),
            nn.AvgPool2d(2),
            *layer(8, 16),
            *layer(16, 16),
            nn.AvgPool2d(2),
            *layer(16, 16),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


@pytest.fixture(scope="module")
def ann() -> TinyVGG:
    network = TinyVGG()
    network.load_state_dict(
        {key.removeprefix("ann/"): tensor(key) for key in GOLDEN if key.startswith("ann/")}
    )
    return network.eval()


@pytest.fixture(scope="module")
def raw() -> dict[str, float]:
    return {}


@pytest.fixture(scope="module")
def snn(ann: TinyVGG, raw: dict[str, float]) -> SpikingClassifier:
    return convert(
        ann,
        tensor("calib_x"),
        META["T"],
        mean=MEAN,
        std=STD,
        norm_statistics="reset",
        on_layer=raw.__setitem__,
    )


@pytest.fixture(scope="module")
def trained(snn: SpikingClassifier) -> tuple[SpikingClassifier, Tensor, Tensor]:
    """The network after one forward and backward pass in training mode, with the logits and the
    input's gradient."""
    x = tensor("x").requires_grad_()
    logits = snn.train()(x)
    F.cross_entropy(logits, tensor("y")).backward()
    assert x.grad is not None
    return snn.eval(), logits.detach(), x.grad


def test_ann_and_thresholds(ann: TinyVGG, snn: SpikingClassifier, raw: dict[str, float]) -> None:
    x = (tensor("x") - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    close(ann(x), "ann_logits_eval", 1e-5)
    assert list(raw.values()) == pytest.approx(GOLDEN["thresholds_T100_p99.7"].tolist(), rel=1e-5)
    assert list(snn.thresholds().values()) == pytest.approx(GOLDEN["v_th_init"].tolist(), rel=1e-5)


def test_logits_gradients_and_buffers_in_training_mode(
    trained: tuple[SpikingClassifier, Tensor, Tensor],
) -> None:
    snn, logits, dx = trained
    assert snn.repeat_at == "features.2"  # the stem was computed once, and the buffers still agree
    close(logits, "snn_T4_train_logits")
    close(dx, "snn_T4_train_dx")
    gradients = [key for key in GOLDEN if key.startswith("snn_T4_train_grad/")]
    assert len(gradients) == len(list(snn.parameters()))
    for key in gradients:
        name = key.partition("/")[2].replace("v_th", "node.v_threshold")
        grad = snn.backbone.get_parameter(name).grad
        assert grad is not None
        if (
            name.endswith("bias")
            and snn.backbone.get_submodule(name.rpartition(".")[0]).__class__ is nn.Conv2d
        ):
            # a batch norm follows: exactly 0 but for rounding, there as here
            assert float(grad.abs().max()) < 1e-6
        else:
            close(grad, key)
    for key in GOLDEN:
        if key.startswith("snn_T4_after_train_fwd_buffer/"):
            close(snn.backbone.get_buffer(key.partition("/")[2]).float(), key)


def test_logits_in_eval_mode(trained: tuple[SpikingClassifier, Tensor, Tensor]) -> None:
    snn = trained[0]
    close(snn(tensor("x")), "snn_T4_eval_logits")
    assert snn.forward_sequence(tensor("x")).shape == (4, 8, 10)


@pytest.mark.parametrize("index", range(19))
def test_input_gradient_and_fgsm_of_every_view(
    trained: tuple[SpikingClassifier, Tensor, Tensor], index: int
) -> None:
    view, meta = ENSEMBLE_VIEWS[index], META["views"][index]
    if isinstance(view, Surrogate):
        assert (view.name, view.gamma) == (meta["surrogate"], meta["gamma"])
    x = tensor("x").requires_grad_()
    with trained[0].gradient(view):
        logits = trained[0](x)
    F.cross_entropy(logits, tensor("y")).backward()
    assert x.grad is not None
    close(x.grad, f"inputgrad_{index:02d}")
    clean = x.detach()
    step = ((clean + EPS * x.grad.sign()).clamp(0, 1) - clean) / EPS
    # `close` says how far a gradient may be off: below that its sign is not determined, above it is
    expected, size = tensor(f"fgsm_{index:02d}"), tensor(f"inputgrad_{index:02d}").abs()
    certain = (size > 1e-4 * size.max()) | (size == 0)
    assert certain.float().mean() > 0.99
    assert torch.equal(step.round().to(torch.int8)[certain], expected[certain])
