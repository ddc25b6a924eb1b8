"""Robust ANN in, spiking classifier out."""

from sj_robust.convert.agreement import Scale
from sj_robust.convert.balance import balance_thresholds
from sj_robust.convert.inspection import inspect_conversion
from sj_robust.convert.norms import Norm, reestimate_statistics
from sj_robust.convert.pooling import Pooling
from sj_robust.convert.recipe import ConversionSettings, ThresholdBalancing, convert, rebuild
from sj_robust.convert.report import ConversionReport
from sj_robust.convert.scan import Replace

__all__ = [
    "ConversionReport",
    "ConversionSettings",
    "Norm",
    "Pooling",
    "Replace",
    "Scale",
    "ThresholdBalancing",
    "balance_thresholds",
    "convert",
    "inspect_conversion",
    "rebuild",
    "reestimate_statistics",
]
