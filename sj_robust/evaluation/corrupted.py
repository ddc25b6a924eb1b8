"""Accuracy on images with common corruptions (Hendrycks & Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019), made here from clean images: see
`sj_robust.data.corruptions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import evaluation_mode
from sj_robust.data import ImageDataset
from sj_robust.data.corruptions import CORRUPTIONS, SEVERITIES, check_kind, corrupt
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import facts
from sj_robust.evaluation.judge import (
    Judge,
    check_fit,
    count_passes,
    device_of,
    fitted,
    image_count,
    true_forward,
)
from sj_robust.evaluation.report import Accuracy, Facts, Measurement
from sj_robust.model import expose
from sj_robust.phrases import aligned
from sj_robust.progress import bar


class CorruptionResult(Facts):
    """One corruption at one severity."""

    corruption: str
    severity: int
    accuracy: Accuracy


class CorruptionSettings(Facts):
    names: list[str]
    severities: list[int]
    batch_size: int
    seed: int
    device: str


class CorruptionReport(Measurement):
    """The result of `evaluate_corruptions`.

    Accuracies are fractions of the evaluated images; intervals are Wilson 95 %.

    Attributes:
        mean: mean corruption accuracy, the mean of `results`. It has no interval: it is not a
            proportion of independent images, because every corruption and severity takes the same
            ones.
    """

    clean: Accuracy
    results: list[CorruptionResult]
    mean: float
    settings: CorruptionSettings
    forward_images: int

    def summary(self) -> str:
        """A text table: corruptions by severity, each accuracy with its interval.

        Means over rows and columns are without.
        """
        return "\n".join(
            [
                self.heading(),
                f"clean accuracy            {self.clean}",
                f"mean corruption accuracy  {100 * self.mean:.1f} %",
                "",
                *self._table(),
                "",
                "Made here as CIFAR-10-C was; these are not its published files.",
            ]
        )

    def _table(self) -> list[str]:
        found = {(result.corruption, result.severity): result.accuracy for result in self.results}
        names, severities = self.settings.names, self.settings.severities

        def mean(keys: list[tuple[str, int]]) -> str:
            return f"{100 * _mean([found[key].value for key in keys]):.1f}"

        rows = [["accuracy in %", *(f"severity {severity}" for severity in severities), "mean"]]
        for name in names:
            row = [(name, severity) for severity in severities]
            rows.append([name, *(_cell(found[key]) for key in row), mean(row)])
        rows.append(
            [
                "mean",
                *(mean([(name, severity) for name in names]) for severity in severities),
                mean(list(found)),
            ]
        )
        lines = aligned(rows)
        rule = "-" * max(map(len, lines))
        return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def evaluate_corruptions(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    max_images: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> CorruptionReport:
    """Accuracy under each corruption at each severity, and on the images as they are.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K]; a spiking model predicts by
            its true spikes. Its training flags are restored.
        dataset: clean images of at least 8×8, in colour or grey; the severities are meant for
            32×32.
        names: of `CORRUPTIONS`, default all 14, in the order of the paper whatever the order here.
        severities: 1 (mild) to 5, in any order; the report has them ascending.
        max_images: the first so many images only.
        seed: what is random is a function of (seed, index of the image, corruption, severity)
            alone.
        device: the model is moved there; default: where it is. The images are made on the CPU and
            are the same for all.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: data and model do not fit, or unknown names and severities.
    """
    started = time.monotonic()
    model = expose(model)
    dataset = fitted(dataset, model)
    total = image_count(dataset, max_images)
    chosen, levels = _check_settings(names, severities, batch_size, seed)
    where = device_of(model, device)
    judge = Judge(model.to(where), dataset, where, batch_size)
    labels = dataset.labels[:total].cpu()
    results = []
    with (
        keep_large_blocks(),
        evaluation_mode(model),
        true_forward(model),
        count_passes(model, judge),
    ):
        num_classes = check_fit(judge, total)
        with bar(
            "corruptions",
            total * (1 + len(chosen) * len(levels)),
            unit="images",
            show=show_progress,
        ) as progress:

            def accuracy(change: Callable[[Tensor, Tensor], Tensor]) -> Accuracy:
                correct = 0
                for ids in torch.arange(total).split(batch_size):
                    predicted = judge.predict(change(dataset.floats(ids), ids).to(where))
                    correct += int((predicted.cpu() == labels[ids]).sum())
                    progress.advance(len(ids))
                return Accuracy.of(correct, total)

            clean = accuracy(lambda x, ids: x)
            for name in chosen:
                for level in levels:
                    progress.note(f"{name} {level}")

                    def change(
                        x: Tensor, ids: Tensor, name: str = name, level: int = level
                    ) -> Tensor:
                        return corrupt(x, name, level, seed=seed, ids=ids)

                    results.append(
                        CorruptionResult(corruption=name, severity=level, accuracy=accuracy(change))
                    )
    return CorruptionReport(
        model=facts.model_facts(model, num_classes),
        dataset=facts.dataset_facts(dataset, total),
        clean=clean,
        results=results,
        mean=_mean([result.accuracy.value for result in results]),
        limits=_limits(chosen, dataset, total, seed),
        settings=CorruptionSettings(
            names=chosen,
            severities=levels,
            batch_size=batch_size,
            seed=seed,
            device=facts.device_name(where),
        ),
        forward_images=judge.passes.forward,
        seconds=time.monotonic() - started,
        versions=facts.versions(),
    )


def _check_settings(
    names: Sequence[str] | None, severities: Sequence[int], batch_size: int, seed: int
) -> tuple[list[str], list[int]]:
    """The names in the order of the paper, and the severities ascending, each once."""
    wanted = CORRUPTIONS if names is None else names
    if not (wanted and severities):
        raise SJRobustError(
            f"no {'severities' if wanted else 'names'} given: name at least one, or leave it out"
            " for all"
        )
    for name in wanted:
        for severity in severities:
            check_kind(name, severity)
    for setting, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise SJRobustError(f"{setting} is {value}: expected at least {least}")
    return [name for name in CORRUPTIONS if name in wanted], sorted(
        {int(severity) for severity in severities}
    )


def _limits(names: list[str], dataset: ImageDataset, evaluated: int, seed: int) -> list[str]:
    """Honest statements on what the numbers do not show."""
    height, width = dataset.images.shape[2:]
    statements = [
        (
            "The images were made here as CIFAR-10-C was and are not its published files: an"
            " accuracy on those need not agree."
        ),
        f"{len(names)} of the 15 corruptions of the paper are in the mean"
        + (": frost needs photographs and is not made." if len(names) == len(CORRUPTIONS) else "."),
        f"One draw of the random corruptions for each image (seed {seed}).",
    ]
    if (height, width) != (32, 32):
        statements.append(
            f"The severities are CIFAR-10-C's, in pixels of 32×32 images: on {height}×{width} they"
            " mean something else."
        )
    if evaluated < len(dataset):
        statements.append(
            f"Only the first {evaluated} of {len(dataset)} images were evaluated; the intervals"
            " cover that error alone."
        )
    return statements


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
