"""Clean and robust accuracy under an ensemble of attacks and gradient views, as a typed report; certificates and costs."""

from sj_robust.evaluate.certificate import Certificate, certify
from sj_robust.evaluate.corrupted import CorruptionReport, evaluate_corruptions
from sj_robust.evaluate.energy import Energy, measure_energy
from sj_robust.evaluate.latency import Latency, measure_latency
from sj_robust.evaluate.protocol import DEFAULT_VIEWS, PROTOCOLS, Protocol, Stage
from sj_robust.evaluate.report import Accuracy, Activity, Check, JointResult, Report, RobustResult, ViewResult, eps_name, wilson
from sj_robust.evaluate.run import evaluate

__all__ = [
    "DEFAULT_VIEWS", "PROTOCOLS", "Accuracy", "Activity", "Certificate", "Check", "CorruptionReport", "Energy", "JointResult", "Latency",
    "Protocol", "Report", "RobustResult", "Stage", "ViewResult", "certify", "eps_name", "evaluate", "evaluate_corruptions",
    "measure_energy", "measure_latency", "wilson",
]  # fmt: skip
