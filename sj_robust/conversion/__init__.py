"""Robust ANN in, spiking classifier out."""

from sj_robust.conversion.agreement import Scale
from sj_robust.conversion.balance import balance_thresholds
from sj_robust.conversion.conversion import ConversionSettings, ThresholdBalancing, convert, rebuild
from sj_robust.conversion.inspection import inspect_conversion
from sj_robust.conversion.norms import Norm, reestimate_statistics
from sj_robust.conversion.pooling import Pooling
from sj_robust.conversion.report import ConversionReport
from sj_robust.conversion.scan import Replace

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
