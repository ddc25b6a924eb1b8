"""Clean and robust accuracy under an ensemble of attacks and gradient views, as a typed report."""

from sj_robust.evaluate.protocol import DEFAULT_VIEWS, evaluate
from sj_robust.evaluate.report import Accuracy, Activity, JointResult, Report, RobustResult, ViewResult, eps_name, wilson

__all__ = ["DEFAULT_VIEWS", "Accuracy", "Activity", "JointResult", "Report", "RobustResult", "ViewResult", "eps_name", "evaluate", "wilson"]
