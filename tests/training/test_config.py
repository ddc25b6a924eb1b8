from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sj_robust.errors import SJRobustError
from sj_robust.training import PRESETS, TrainConfig, learning_rate, preset, validated
from sj_robust.training.config import scheduled


def test_presets_hold_the_papers_settings():
    paper = preset("finetune", "paper")
    assert (paper.method, paper.epochs, paper.batch_size, paper.lr) == (
        "trades-rfgsm",
        60,
        64,
        1e-3,
    )
    assert (paper.weight_decay, paper.beta) == (1e-3, 2)
    assert (paper.eps, paper.alpha, paper.decay_all, paper.threshold_min) == (
        2 / 255,
        1 / 255,
        True,
        0.03,
    )
    ann = preset("ann", "paper")
    assert (ann.epochs, ann.lr, ann.attack_steps, ann.step_size, ann.eps) == (
        200,
        0.1,
        10,
        0.5 / 255,
        2 / 255,
    )
    assert not any(PRESETS[kind]["default"].decay_all for kind in PRESETS)


def test_budgets_may_be_fractions():
    assert TrainConfig(eps="8/255", alpha=" 4 / 255").eps == 8 / 255


def test_changes_are_applied_and_none_is_no_change():
    changed = preset("ann", lr=0.3, epochs=None)
    assert changed.lr == 0.3
    assert changed.epochs == preset("ann").epochs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0),
        ("lr", float("nan")),
        ("epochs", -1),
        ("epochs", float("inf")),
        ("eps", 0),
        ("eps", "8/0"),
        ("eps", "x"),
        ("eps", 2),
        ("batch_size", 0),
        ("momentum", 1),
        ("method", "free"),
        ("threshold_min", 0),
        ("ema", 1),
        ("validation", 0),
        ("seed", -1),
        ("attack_steps", 0),
        ("learning_rate", 1),
        ("precision", "int8"),
        ("consistency", -1),
    ],
)
def test_a_bad_value_is_named_in_one_line(field, value):
    with pytest.raises(SJRobustError, match=field) as caught:
        preset("ann", **{field: value})
    assert "\n" not in str(caught.value)


def test_settings_that_contradict_each_other():
    with pytest.raises(SJRobustError, match="alpha"):
        validated({"alpha": 8 / 255, "eps": 4 / 255})
    with pytest.raises(
        SJRobustError, match="crop_scale is of the augmentation resized-crop-flip, not crop-flip"
    ):
        preset("ann", crop_scale=0.35)
    with pytest.raises(SJRobustError, match="nesterov"):
        validated({"nesterov": True, "momentum": 0})
    with pytest.raises(SJRobustError, match="no preset"):
        preset("ann", "best")


def test_a_config_is_frozen_and_round_trips():
    config = preset("finetune")
    with pytest.raises(ValidationError):
        config.lr = 1
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("total", [5, 50, 391])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_learning_rate_is_torchs_schedule(schedule, total):
    config = TrainConfig(schedule=schedule, lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    else:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.3, total_steps=total, cycle_momentum=False
        )
    for step in range(total):
        assert learning_rate(config, step, total) == pytest.approx(
            scheduler.get_last_lr()[0], rel=1e-6, abs=1e-9
        )
        optimizer.step()
        if step < total - 1:
            scheduler.step()


@pytest.mark.parametrize("total", [1, 2, 3])  # where torch's own divides by zero
@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_learning_rate_of_very_short_runs(schedule, total):
    rates = [
        learning_rate(TrainConfig(schedule=schedule, lr=0.3), step, total) for step in range(total)
    ]
    assert rates[0] == 0.3
    assert all(0 <= rate <= 0.3 for rate in rates)


def test_options_that_are_off_leave_no_trace():
    """Stages of a recipe are kept by their settings: an option that is new must not make those of
    before again."""
    assert (
        not {"gradient_penalty", "consistency", "precision"}
        & TrainConfig().model_dump(exclude_none=True).keys()
    )


def test_interval_bounds_begin_with_no_ball_and_clean_images():
    config = TrainConfig(method="ibp", eps="8/255", kappa=0.25, warmup=0.1, ramp=0.4)
    at = [scheduled(config, step, 100) for step in (0, 10, 30, 50, 99)]
    assert [one.eps * 255 for one in at] == pytest.approx([0, 0, 4, 8, 8])
    assert [one.kappa for one in at] == pytest.approx([1, 1, 0.625, 0.25, 0.25])
    assert scheduled(TrainConfig(method="ibp", warmup=0, ramp=0), 0, 9).kappa == 0.5
    assert scheduled(preset("ann"), 3, 9) == preset("ann")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "pgd", "kappa": 0.5}, "kappa is of the method ibp"),
        ({"method": "natural", "warmup": 0.1}, "warmup is of the method ibp"),
        ({"method": "ibp", "checkpointing": True}, "does not go with checkpointing"),
        ({"method": "ibp", "ramp": 1.5}, "ramp"),
    ],
)
def test_settings_of_interval_bounds_have_to_fit(fields, message):
    with pytest.raises(SJRobustError, match=message):
        validated(fields)


def test_what_came_later_is_not_dumped_where_it_is_the_default():
    """Earlier states and configs stay the same."""
    late = {"kappa", "warmup", "ramp", "poison"}
    config = preset("ann")
    assert not late & config.model_dump().keys()
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    bounded = preset("ann", method="ibp", kappa=0.2)
    assert late & bounded.model_dump().keys() == {"kappa"}
    assert TrainConfig.model_validate(bounded.model_dump()) == bounded
    assert "poison" in preset("ann", poison="patch:3:target=0").model_dump()
