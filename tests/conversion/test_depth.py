"""A network of more than 100 layers converts: thresholds are balanced through all of them."""

from __future__ import annotations

import math

import pytest
import torch

from sj_robust import convert
from sj_robust.attack import PGD
from sj_robust.evaluation.activity import count_spikes
from sj_robust.model import NormalizedClassifier, create_ann
from sj_robust.training.config import preset
from sj_robust.training.loss import training_loss


@pytest.mark.slow
def test_resnet110_converts_fires_in_every_layer_and_trains() -> None:
    torch.manual_seed(0)
    ann = NormalizedClassifier(create_ann("cifar_resnet110", 10), (0.5,) * 3, (0.25,) * 3)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    with torch.no_grad():
        ann.train()(x)  # running statistics of some images
    snn = convert(ann.eval(), x[None], 3, calibration_timesteps=3, reset="soft")
    thresholds = snn.thresholds()
    assert len(thresholds) == 109
    assert all(0 < value < math.inf for value in thresholds.values())
    with torch.no_grad(), count_spikes(snn.eval()) as spikes:
        logits = snn(x)
    layers = spikes.activity(3, len(x)).layers
    assert min(layer.rate for layer in layers.values()) > 0
    assert torch.isfinite(logits).all() and logits.std(0).min() > 0
    x_adv = PGD(eps=8 / 255, steps=1)(snn, x, y)
    assert not torch.equal(x_adv, x)
    config = preset("finetune", method="natural")
    training_loss(snn.train(), x, y, torch.arange(4), config, 0).total.backward()
    grads = [node.v_threshold.grad for node in snn.nodes().values()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert sum(bool(grad != 0) for grad in grads) > 100
