"""The benchmark on a tiny setting: every side does every task, and the ratios follow from the times
it lists."""

from __future__ import annotations

from statistics import median

import pytest
import torch

from sj_robust.benchmark import SIDES, TASKS, BenchReport, BenchSettings, bench, worker
from sj_robust.benchmark.sides import make
from sj_robust.data import load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.neuron.compiler import cpu_kernel_status

TINY = dict(
    timesteps=2,
    batch_size=2,
    repeats=1,
    threads=1,
    calibration_batches=2,
    calibration_batch_size=2,
    calibration_timesteps=3,
)


@pytest.fixture(scope="module")
def report() -> BenchReport:
    return bench(**TINY)


def test_every_side_is_timed_on_every_task_it_has(report: BenchReport) -> None:
    expected = {(side, task) for side in SIDES for task in TASKS} - {("spikingjelly", "balance")}
    if cpu_kernel_status() != "fused":
        expected = {(side, task) for side, task in expected if side != "cpu"}
    assert {(m.side, m.task) for m in report.measurements} == {
        pair for pair in expected if pair[0] != "cupy"
    }
    assert all(len(m.seconds) == 1 and min(m.seconds) > 0 for m in report.measurements)


def test_ratios_are_to_t_times_the_ann_of_the_same_run() -> None:
    report = bench(**TINY | dict(repeats=3, sides=("ann", "torch"), tasks=("train", "balance")))  # type: ignore[arg-type]
    assert [(m.task, m.side, len(m.seconds)) for m in report.measurements] == [
        (task, side, 3) for task in ("train", "balance") for side in ("ann", "torch")
    ]
    for m in report.measurements:
        unit = report.get("ann", m.task)
        assert unit is not None
        assert m.ratio == pytest.approx(
            median(m.seconds) / (median(unit.seconds) * (1 if m.task == "balance" else 2))
        )
    assert len(report.rows()) == len(report.measurements)
    assert BenchReport.model_validate_json(report.to_json()) == report


def test_all_sides_balance_to_the_same_thresholds(report: BenchReport) -> None:
    assert report.threshold_difference is not None
    assert report.threshold_difference < 1e-4


def test_the_sides_are_the_same_network() -> None:
    x = load_dataset("sample", "train").floats(torch.arange(8))
    torch.manual_seed(0)
    logits = {
        side: make(side, "cifar_resnet20", 3, x).eval()(x)
        for side in ("loop", "torch", "spikingjelly")
    }
    assert logits["loop"].std() > 0
    torch.testing.assert_close(logits["torch"], logits["loop"])
    torch.testing.assert_close(logits["spikingjelly"], logits["loop"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(sides=("magic",)), "unknown side 'magic'"),
        (dict(tasks=("magic",)), "unknown task 'magic'"),
        (dict(timesteps=0), "timesteps"),
        (dict(**TINY, architecture="no_such_net", sides=("ann",)), "no_such_net"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        bench(**settings)


def test_the_defaults_are_those_of_the_readme() -> None:
    assert (
        BenchSettings().architecture,
        BenchSettings().timesteps,
        BenchSettings().batch_size,
    ) == ("cifar_resnet20", 8, 64)


def test_images_and_training_passes_are_of_the_size_and_precision_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = BenchSettings(**TINY | dict(image_size=40, precision="bf16"))  # type: ignore[arg-type]
    work, seen = worker._work("torch", settings), []
    assert work.x.shape == (2, 3, 40, 40)

    def forward(task: str) -> None:
        with torch.no_grad():
            seen.append((task, work.model.backbone.conv1(work.x).dtype))  # type: ignore[union-attr, operator]

    for task in ("train", "pgd10"):
        monkeypatch.setitem(worker.TASKS, task, lambda work, task=task: forward(task))
        worker._in_precision(settings, task, work)
    assert seen == [("train", torch.bfloat16), ("pgd10", torch.float32)]
