"""Accuracy on corrupted images: a trained network of the zoo, counted by hand, and what a report
says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import sj_robust
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.data.corruptions import CORRUPTIONS, corrupt
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.corrupted import CorruptionReport, evaluate_corruptions
from sj_robust.evaluation.report import wilson
from sj_robust.model import NormalizedClassifier, SpikingClassifier

NAMES = ["fog", "contrast", "impulse_noise"]


@pytest.fixture(scope="module")
def sample() -> ImageDataset:
    return load_dataset("sample", "test")


@pytest.fixture(scope="module")
def zoo_model() -> nn.Module:
    return sj_robust.load("resnet20.cifar10_linf_pgd")


@pytest.fixture(scope="module")
def report(zoo_model: nn.Module, sample: ImageDataset) -> CorruptionReport:
    return evaluate_corruptions(
        zoo_model, sample, names=NAMES, severities=(5, 1, 3), max_images=200, batch_size=64
    )


def test_a_trained_network_loses_accuracy_with_severity(report: CorruptionReport) -> None:
    assert report.clean.value > 0.7
    for name in NAMES:
        mild, middle, hard = [
            result.accuracy.value for result in report.results if result.corruption == name
        ]
        assert report.clean.value + 0.02 > mild > middle > hard
        assert hard < report.clean.value - 0.15


def test_the_counts_are_those_of_a_plain_loop(
    report: CorruptionReport, zoo_model: nn.Module, sample: ImageDataset
) -> None:
    x, y = sample.first(200).floats(), sample.labels[:200]
    # the paper's order
    wanted = [
        (name, severity) for name in ("impulse_noise", "fog", "contrast") for severity in (1, 3, 5)
    ]
    assert [(result.corruption, result.severity) for result in report.results] == wanted
    with torch.no_grad():
        assert report.clean.correct == int((zoo_model.eval()(x).argmax(1) == y).sum())
        for result in report.results[::4]:
            correct = int(
                (zoo_model(corrupt(x, result.corruption, result.severity)).argmax(1) == y).sum()
            )
            assert result.accuracy.correct == correct
            assert (result.accuracy.low, result.accuracy.high) == wilson(correct, 200)
    assert report.mean == pytest.approx(
        sum(result.accuracy.correct for result in report.results) / (9 * 200)
    )
    assert report.forward_images == 10 * 200 + 1  # one to see that the model fits


def test_a_report_says_what_it_is(report: CorruptionReport) -> None:
    assert CorruptionReport.model_validate_json(report.to_json()) == report
    assert report.to_json().count("\n") == 13
    text = report.summary()
    assert "first 200 of 1000 images" in text
    assert f"clean accuracy            {report.clean}" in text
    assert f"mean corruption accuracy  {100 * report.mean:.1f} %" in text
    accuracy = report.results[0].accuracy
    assert (
        f"{100 * accuracy.value:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]" in text
    )
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(tuple(CORRUPTIONS))] == [
        "impulse_noise",
        "fog",
        "contrast",
    ]
    assert lines[-1] == "Made here as CIFAR-10-C was; these are not its published files."
    assert any("not its published files" in limit for limit in report.limits)
    assert any("3 of the 15 corruptions" in limit for limit in report.limits)
    assert any("first 200 of 1000" in limit for limit in report.limits)
    assert not any("32×32" in limit for limit in report.limits)


def test_a_spiking_network_on_all_corruptions(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    snn.train()
    flags = [module.training for module in snn.modules()]
    settings = dict(severities=[2], max_images=30, seed=4)
    found = evaluate_corruptions(snn, dataset, batch_size=30, **settings)
    assert [module.training for module in snn.modules()] == flags
    snn.eval()
    again = evaluate_corruptions(snn, dataset, batch_size=7, **settings)
    assert again.results == found.results
    assert (again.clean, again.mean, again.model) == (found.clean, found.mean, found.model)
    assert found.settings.names == list(CORRUPTIONS)
    assert found.model.kind == "snn"
    assert any("frost" in limit for limit in found.limits)
    assert any("on 8×8 they mean something else" in limit for limit in found.limits)
    other = evaluate_corruptions(snn, dataset, batch_size=30, severities=[2], max_images=30, seed=5)
    assert other.results != found.results


def test_spikes_decide_whatever_view_the_caller_left(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    plain = evaluate_corruptions(snn, dataset, names=["contrast"], max_images=60)
    with snn.gradient("activation"):
        assert (
            evaluate_corruptions(snn, dataset, names=["contrast"], max_images=60).results
            == plain.results
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["haze"]}, "unknown corruption 'haze'"),
        ({"names": ["fog", "frost"]}, "frost is not offered"),
        ({"names": []}, "no names given"),
        ({"severities": []}, "no severities given"),
        ({"severities": [1, 6]}, "severity is 6"),
        ({"severities": [2.5]}, "severity is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_images": 0}, "max_images is 0"),
    ],
)
def test_wrong_settings_are_named(
    ann: NormalizedClassifier, dataset: ImageDataset, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message) as raised:
        evaluate_corruptions(ann, dataset, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_data_that_do_not_fit_are_named(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    with pytest.raises(SJRobustError, match="has the label 7"):
        evaluate_corruptions(
            ann, replace(dataset, labels=torch.full_like(dataset.labels, 7)), names=["fog"]
        )
