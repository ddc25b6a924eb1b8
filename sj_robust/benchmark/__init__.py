"""`sj-robust bench`: what a spiking network costs, as ratios to T times its ANN, against other ways
of writing the node."""

from sj_robust.benchmark.report import BenchReport, BenchSettings, Measurement
from sj_robust.benchmark.run import bench
from sj_robust.benchmark.sides import SIDES
from sj_robust.benchmark.tasks import TASKS

__all__ = ["SIDES", "TASKS", "BenchReport", "BenchSettings", "Measurement", "bench"]
