"""Reading early is running fewer steps: answers, attacks and what is left behind."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import sj_robust
from sj_robust.attack import FGSM, GradientView
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import evaluate
from sj_robust.evaluation.latency import Latency, measure_latency
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import parse_view

T = 4
EPS = 8 / 255


@pytest.fixture
def snn(trained_snn: SpikingClassifier) -> SpikingClassifier:
    return deepcopy(trained_snn)  # tests here truncate it and hang hooks on it


@pytest.fixture(scope="module")
def zoo() -> SpikingClassifier:
    model = sj_robust.load("resnet20-snn-t4.cifar10_linf_pgd")
    assert isinstance(model, SpikingClassifier)
    return model


def settled(answers: list[int]) -> tuple[int, int]:
    """The first step with the last answer, and the step from which it is kept."""
    first = answers.index(answers[-1]) + 1
    kept = (
        max((t for t, answer in enumerate(answers, start=1) if answer != answers[-1]), default=0)
        + 1
    )
    return first, kept


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_reading_early_is_exactly_the_truncated_network(
    snn: SpikingClassifier, zoo: SpikingClassifier, shared: bool, dataset: ImageDataset
) -> None:
    for model, x in (
        (snn, dataset.floats()[:50]),
        (zoo, load_dataset("sample", "test").first(6).floats()),
    ):
        before = model.repeat_at
        assert before  # else there is no shared stem to test
        try:
            model.repeat_at = before if shared else ""
            logits = model.forward_sequence(x)
            for t in range(1, T + 1):
                model.timesteps = t
                assert torch.equal(model(x), logits[:t].mean(0))
        finally:
            model.timesteps, model.repeat_at = T, before


@torch.no_grad()
def test_answers_over_time(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    found = measure_latency(snn, dataset, max_images=100, batch_size=33)
    answers = []
    for t in range(1, T + 1):
        snn.timesteps = t
        answers.append(snn(dataset.floats()[:100]).argmax(1))
    labels = dataset.labels[:100]
    assert [point.correct for point in found.clean] == [int((at == labels).sum()) for at in answers]
    assert [point.correct for point in found.agreement] == [
        int((at == answers[-1]).sum()) for at in answers
    ]
    steps = [settled(of_image) for of_image in torch.stack(answers, dim=1).tolist()]
    assert found.steps_to_agree == pytest.approx(sum(first for first, _ in steps) / 100)
    assert found.steps_to_settle == pytest.approx(sum(kept for _, kept in steps) / 100)
    # else the two would not be told apart here
    assert 1 < found.steps_to_agree < found.steps_to_settle < T
    assert found.robust == []
    assert found.dataset.evaluated == 100


def test_the_last_step_is_the_evaluation(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    found = measure_latency(
        snn, dataset, eps=(EPS, 2 / 255), attack="pgd3", robust_images=40, seed=5
    )
    report = evaluate(
        snn,
        dataset,
        eps=(2 / 255, EPS),
        attacks=("pgd3",),
        views=("PCW:1",),
        max_images=40,
        seed=5,
        survivors_only=False,
    )
    assert found.clean[-1] == evaluate(snn, dataset, eps=(), attacks=()).clean
    assert [at.eps for at in found.robust] == [2 / 255, EPS]
    for at, ours in zip(report.robust, found.robust, strict=True):
        assert at.alone == ours.accuracy[-1]
        assert (ours.attack, ours.view, ours.settings) == (at.attack, "PCW:1", at.settings)


def test_each_truncated_network_is_attacked_as_it_is(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    found = measure_latency(
        snn, dataset, eps=(EPS,), attack="fgsm", view="STE", robust_images=30, batch_size=7
    )
    for t, accuracy in enumerate(found.robust[0].accuracy, start=1):
        snn.timesteps = t
        robust = 0
        for image in range(30):
            x, y = dataset.floats([image]), dataset.labels[image : image + 1]
            x_adv = FGSM(eps=EPS)(GradientView(snn, parse_view("STE")), x, y)
            robust += bool(snn(x).argmax(1) == y) and bool(snn(x_adv).argmax(1) == y)
        assert (accuracy.correct, accuracy.total) == (robust, 30)
    assert found.robust[0].accuracy[0] != found.robust[0].accuracy[-1]


@pytest.mark.parametrize("interruption", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failing_attack_leaves_no_trace(
    snn: SpikingClassifier, dataset: ImageDataset, interruption: BaseException
) -> None:
    def fail(module: SpikingClassifier, inputs: Any) -> None:
        if torch.is_grad_enabled() and module.timesteps == 2:
            raise interruption

    snn.register_forward_pre_hook(fail)
    snn.backbone[1].train()
    settings, views = dict(snn.settings), [node.view for node in snn.nodes().values()]
    with pytest.raises(type(interruption)):
        measure_latency(snn, dataset, eps=(EPS,), attack="fgsm", robust_images=8)
    assert (snn.timesteps, snn.settings) == (T, settings)
    assert [activation.timesteps for activation in snn.activations().values()] == [T, T]
    assert [node.view for node in snn.nodes().values()] == views
    assert snn.backbone[1].training
    assert not snn.training
    assert all(parameter.requires_grad for parameter in snn.parameters())


def test_text_and_json(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    # fewer images than the defaults ask for
    found = measure_latency(snn, dataset.first(20), eps=(EPS,), attack="fgsm")
    assert Latency.model_validate_json(found.to_json()) == found
    assert (found.dataset.evaluated, found.robust[0].accuracy[0].total) == (20, 20)
    text = found.summary()
    assert "fgsm PCW:1 8/255" in text
    assert all(
        str(accuracy) in text
        for accuracy in (*found.clean, *found.agreement, *found.robust[0].accuracy)
    )
    assert "upper bound" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_images": 0}, "max_images is 0"),
        ({"max_images": 1000}, "expected 1 to 160"),
        ({"max_images": 10, "robust_images": 11}, "robust_images is 11: expected 1 to 10"),
        ({"robust_images": 0}, "robust_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eps": (8.0,)}, "eps is 8.0: expected 0 to 1"),
        ({"eps": (float("nan"),)}, "eps is nan"),
        ({"eps": (EPS,), "attack": "magic"}, "unknown attack 'magic'"),
        ({"view": "magic"}, "magic"),
    ],
)
def test_wrong_settings_are_named(
    snn: SpikingClassifier, dataset: ImageDataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        measure_latency(snn, dataset, **settings)


def test_wrong_models_and_data_are_named(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    with pytest.raises(SJRobustError, match="NormalizedClassifier has no time steps"):
        measure_latency(ann, dataset)
    with pytest.raises(SJRobustError, match="no images"):
        measure_latency(snn, dataset.first(0))
    with torch.no_grad():
        layer = snn.backbone[-1]
        assert isinstance(layer, nn.Linear)
        layer.bias.fill_(float("nan"))
    with pytest.raises(SJRobustError, match="not finite"):
        measure_latency(snn, dataset)
