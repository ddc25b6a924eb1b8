"""Clean and robust accuracy under an ensemble of attacks and gradient views, as a typed report;
certificates and costs.

Imported when used: a report can be read (`evaluation.report`) without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.evaluation.certificate import Certificate as Certificate
    from sj_robust.evaluation.certificate import certify as certify
    from sj_robust.evaluation.certified import Certificates as Certificates
    from sj_robust.evaluation.certified import Certified as Certified
    from sj_robust.evaluation.corrupted import CorruptionReport as CorruptionReport
    from sj_robust.evaluation.corrupted import evaluate_corruptions as evaluate_corruptions
    from sj_robust.evaluation.energy import Energy as Energy
    from sj_robust.evaluation.energy import measure_energy as measure_energy
    from sj_robust.evaluation.interval_certificate import (
        IntervalCertificate as IntervalCertificate,
    )
    from sj_robust.evaluation.interval_certificate import certify_intervals as certify_intervals
    from sj_robust.evaluation.latency import Latency as Latency
    from sj_robust.evaluation.latency import measure_latency as measure_latency
    from sj_robust.evaluation.plan import DEFAULT_VIEWS as DEFAULT_VIEWS
    from sj_robust.evaluation.protocol import PROTOCOLS as PROTOCOLS
    from sj_robust.evaluation.protocol import Protocol as Protocol
    from sj_robust.evaluation.protocol import Stage as Stage
    from sj_robust.evaluation.report import Accuracy as Accuracy
    from sj_robust.evaluation.report import Activity as Activity
    from sj_robust.evaluation.report import Check as Check
    from sj_robust.evaluation.report import EnergyEstimate as EnergyEstimate
    from sj_robust.evaluation.report import JointResult as JointResult
    from sj_robust.evaluation.report import Report as Report
    from sj_robust.evaluation.report import RobustResult as RobustResult
    from sj_robust.evaluation.report import ViewResult as ViewResult
    from sj_robust.evaluation.report import eps_name as eps_name
    from sj_robust.evaluation.report import wilson as wilson
    from sj_robust.evaluation.run import evaluate as evaluate
    from sj_robust.evaluation.shown import Shown as Shown
    from sj_robust.evaluation.shown import show as show

_HOME = {
    "certificate": ("Certificate", "certify"),
    "certified": ("Certificates", "Certified"),
    "corrupted": ("CorruptionReport", "evaluate_corruptions"),
    "energy": ("Energy", "measure_energy"),
    "interval_certificate": ("IntervalCertificate", "certify_intervals"),
    "latency": ("Latency", "measure_latency"),
    "plan": ("DEFAULT_VIEWS",),
    "protocol": ("PROTOCOLS", "Protocol", "Stage"),
    "report": (
        "Accuracy",
        "Activity",
        "Check",
        "EnergyEstimate",
        "JointResult",
        "Report",
        "RobustResult",
        "ViewResult",
        "eps_name",
        "wilson",
    ),
    "run": ("evaluate",),
    "shown": ("Shown", "show"),
}

__all__ = [
    "DEFAULT_VIEWS",
    "PROTOCOLS",
    "Accuracy",
    "Activity",
    "Certificate",
    "Certificates",
    "Certified",
    "Check",
    "CorruptionReport",
    "Energy",
    "EnergyEstimate",
    "IntervalCertificate",
    "JointResult",
    "Latency",
    "Protocol",
    "Report",
    "RobustResult",
    "Shown",
    "Stage",
    "ViewResult",
    "certify",
    "certify_intervals",
    "eps_name",
    "evaluate",
    "evaluate_corruptions",
    "measure_energy",
    "measure_latency",
    "show",
    "wilson",
]

__getattr__ = imported_on_use(__name__, _HOME)
