"""Robust ANN in, spiking classifier out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.conversion.balance import balance_thresholds as balance_thresholds
    from sj_robust.conversion.conversion import ThresholdBalancing as ThresholdBalancing
    from sj_robust.conversion.conversion import convert as convert
    from sj_robust.conversion.conversion import rebuild as rebuild
    from sj_robust.conversion.inspection import inspect_conversion as inspect_conversion
    from sj_robust.conversion.norms import reestimate_statistics as reestimate_statistics
    from sj_robust.conversion.report import ConversionReport as ConversionReport
    from sj_robust.conversion.settings import ConversionSettings as ConversionSettings
    from sj_robust.conversion.settings import Norm as Norm
    from sj_robust.conversion.settings import Pooling as Pooling
    from sj_robust.conversion.settings import Replace as Replace
    from sj_robust.conversion.settings import Scale as Scale

_HOME = {
    "balance": ("balance_thresholds",),
    "conversion": ("ThresholdBalancing", "convert", "rebuild"),
    "inspection": ("inspect_conversion",),
    "norms": ("reestimate_statistics",),
    "report": ("ConversionReport",),
    "settings": ("ConversionSettings", "Norm", "Pooling", "Replace", "Scale"),
}

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

__getattr__ = imported_on_use(__name__, _HOME)
