"""The learnable-threshold LIF node, its surrogates and views, and its backends."""

from sj_robust.neuron import cpu_backend as cpu_backend
from sj_robust.neuron import cupy_backend as cupy_backend
from sj_robust.neuron import torch_backend as torch_backend
from sj_robust.neuron.backend import Multistep, available_backends, register_backend, select_backend
from sj_robust.neuron.lif import Reset, ThresholdLIF
from sj_robust.neuron.surrogate import SURROGATE_NAMES, Surrogate
from sj_robust.neuron.view import View
from sj_robust.neuron.views import (
    ENSEMBLE_VIEWS,
    AdaptiveSharpness,
    parse_view,
    register_view,
    view_name,
)

__all__ = [
    "ENSEMBLE_VIEWS",
    "SURROGATE_NAMES",
    "AdaptiveSharpness",
    "Multistep",
    "Reset",
    "Surrogate",
    "ThresholdLIF",
    "View",
    "available_backends",
    "parse_view",
    "register_backend",
    "register_view",
    "select_backend",
    "view_name",
]
