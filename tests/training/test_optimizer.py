from __future__ import annotations

import torch

from sj_robust.neuron import ThresholdLIF
from sj_robust.training import finetune
from sj_robust.training.optimizer import decay_groups, make_optimizer


def test_weight_decay_spares_thresholds_biases_and_batch_norm(toy):
    decayed, plain = decay_groups(toy.snn(), toy.config("finetune"))
    assert decayed == ["backbone.0.weight", "backbone.5.weight"]
    assert plain == [
        "backbone.1.weight",
        "backbone.1.bias",
        "backbone.2.node.v_threshold",
        "backbone.5.bias",
    ]


def test_decay_all_spares_nothing(toy):
    decayed, plain = decay_groups(toy.snn(), toy.config("finetune", decay_all=True))
    assert len(decayed) == 6
    assert plain == []


def test_a_step_decays_just_those(toy):
    model = toy.snn()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, toy.config("finetune", lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if name in ("backbone.0.weight", "backbone.5.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_frozen_parameters_are_left_out(toy):
    model = toy.ann()
    model.backbone[0].weight.requires_grad_(False)
    decayed, plain = decay_groups(model, toy.config())
    assert "backbone.0.weight" not in decayed + plain


def test_learned_thresholds_move_and_stay_above_their_minimum(toy, tmp_path):
    free, bounded = toy.snn(threshold=0.5), toy.snn(threshold=0.5)
    config = toy.config("finetune", epochs=2, threshold_min=0.001)
    finetune(free, toy.patterns(), config, tmp_path / "free")
    assert free.thresholds()["2"] != 0.5
    # a minimum above where it would go: the threshold is held there
    finetune(
        bounded,
        toy.patterns(),
        config.model_copy(update={"threshold_min": 0.8}),
        tmp_path / "bounded",
    )
    assert bounded.thresholds()["2"] >= torch.tensor(0.8).item()


def test_thresholds_that_are_not_learned_stay_to_the_bit_and_get_their_flag_back(toy, tmp_path):
    model = toy.snn(threshold=0.02)  # below threshold_min: not clamped either
    finetune(
        model, toy.patterns(), toy.config("finetune", epochs=1, learn_thresholds=False), tmp_path
    )
    node = model.backbone[2].node
    assert isinstance(node, ThresholdLIF)
    assert node.v_threshold.item() == torch.tensor(0.02).item()
    assert node.v_threshold.requires_grad
    assert not torch.equal(model.backbone[0].weight, toy.snn().backbone[0].weight)
