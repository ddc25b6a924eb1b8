"""sj-robust: adversarially robust spiking networks, converted from robust ANNs.

Everything public is imported on first use, so that `import sj_robust` costs no torch import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.errors import SJRobustError
from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.attack import GradientView as GradientView
    from sj_robust.catalog import load as load
    from sj_robust.catalog import pull as pull
    from sj_robust.checkpoint import list_models as list_models
    from sj_robust.checkpoint import save as save
    from sj_robust.conversion import convert as convert
    from sj_robust.data import load_dataset as load_dataset
    from sj_robust.evaluation import evaluate as evaluate
    from sj_robust.export import export_nir as export_nir
    from sj_robust.export import export_onnx as export_onnx
    from sj_robust.export import export_torch as export_torch
    from sj_robust.hub import push as push
    from sj_robust.model import SpikingClassifier as SpikingClassifier
    from sj_robust.model import from_spikingjelly as from_spikingjelly
    from sj_robust.neuron import Surrogate as Surrogate
    from sj_robust.training import finetune as finetune
    from sj_robust.training import train_ann as train_ann

__version__ = "0.1.0"

__all__ = [
    "GradientView",
    "SJRobustError",
    "SpikingClassifier",
    "Surrogate",
    "__version__",
    "convert",
    "evaluate",
    "export_nir",
    "export_onnx",
    "export_torch",
    "finetune",
    "from_spikingjelly",
    "list_models",
    "load",
    "load_dataset",
    "pull",
    "push",
    "save",
    "train_ann",
]

_HOME = {
    "attack": ("GradientView",),
    "catalog": ("load", "pull"),
    "checkpoint": ("list_models", "save"),
    "conversion": ("convert",),
    "data": ("load_dataset",),
    "evaluation": ("evaluate",),
    "export": ("export_nir", "export_onnx", "export_torch"),
    "hub": ("push",),
    "model": ("SpikingClassifier", "from_spikingjelly"),
    "neuron": ("Surrogate",),
    "training": ("finetune", "train_ann"),
}

__getattr__ = imported_on_use(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
