"""The result of a benchmark: every time measured, and the ratios."""

from __future__ import annotations

from statistics import median
from typing import Literal

from pydantic import Field

from sj_robust.benchmark.sides import UNIT
from sj_robust.settings import Strict


class BenchSettings(Strict):
    """What is measured.

    Attributes:
        threads: 0 is torch's own choice.
        image_size: what the sample's images are brought to; None leaves their 32 pixels.
        precision: of the training passes (train, rfgsm, finetune), as in TrainConfig.
    """

    architecture: str = "cifar_resnet20"
    timesteps: int = Field(8, ge=1, le=1024)
    batch_size: int = Field(64, ge=1)
    sides: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("train", "rfgsm", "finetune", "pgd10", "balance")
    repeats: int = Field(5, ge=1, le=1000)
    threads: int = Field(0, ge=0)
    channels_last: bool = True
    calibration_batches: int = Field(4, ge=1)
    calibration_batch_size: int = Field(16, ge=1)
    calibration_timesteps: int = Field(32, ge=1)
    device: str = "cpu"
    image_size: int | None = Field(None, ge=1)
    precision: Literal["float32", "bf16", "fp16"] = "float32"


class Measurement(Strict):
    """One side on one task.

    Attributes:
        peak_bytes: the most memory during the task above what the idle process held, worst of the
            repeats.
    """

    side: str
    task: str
    seconds: tuple[float, ...]
    unit_seconds: float | None = Field(
        description="T times the median of the ANN; for balance the ANN's time for as many images"
    )
    images: int
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Median of `seconds`."""
        return median(self.seconds)

    @property
    def ratio(self) -> float | None:
        """Time in units of T times the ANN."""
        return None if self.unit_seconds is None else self.median / self.unit_seconds


class BenchReport(Strict):
    """All measurements of one run, on one machine, the sides interleaved."""

    settings: BenchSettings
    measurements: tuple[Measurement, ...]
    threshold_difference: float | None = Field(
        description="largest relative difference between the thresholds that sides balanced to"
    )
    machine: dict[str, str | int]
    versions: dict[str, str]

    def to_json(self) -> str:
        """All of it, as JSON."""
        return self.model_dump_json(indent=2) + "\n"

    def get(self, side: str, task: str) -> Measurement | None:
        """That measurement, None where it was not made."""
        return next((m for m in self.measurements if (m.side, m.task) == (side, task)), None)

    def rows(self) -> list[list[str]]:
        """Table cells, a row for each measurement.

        Task, side, median, spread, images/s, × (T × ANN), × faster than the loop, peak memory.
        """
        table = []
        for m in self.measurements:
            loop = self.get("loop", m.task)
            table.append(
                [
                    m.task,
                    m.side,
                    f"{m.median:.3g} s",
                    f"{min(m.seconds):.3g}–{max(m.seconds):.3g}",
                    f"{m.images / m.median:.1f}",
                    "" if m.ratio is None else f"{m.ratio:.2f}",
                    (
                        ""
                        if loop is None or m.side in (UNIT, "loop")
                        else f"{loop.median / m.median:.1f}×"
                    ),
                    "" if m.peak_bytes is None else f"{m.peak_bytes / 2**30:.2f} GiB",
                ]
            )
        return table
