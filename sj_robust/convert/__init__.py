"""Robust ANN in, spiking classifier out."""

from sj_robust.convert.balance import balance_thresholds
from sj_robust.convert.norms import Norm, reestimate_statistics
from sj_robust.convert.recipe import ConversionSettings, ThresholdBalancing, convert, rebuild

__all__ = ["ConversionSettings", "Norm", "ThresholdBalancing", "balance_thresholds", "convert", "rebuild", "reestimate_statistics"]
