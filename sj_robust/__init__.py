"""sj-robust: adversarially robust spiking networks, converted from robust ANNs.

Everything public is imported on first use, so that `import sj_robust` costs no torch import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sj_robust.errors import SJRobustError

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

__version__ = "0.1.0.dev0"

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
    "GradientView": "attack",
    "SpikingClassifier": "model",
    "Surrogate": "neuron",
    "convert": "conversion",
    "evaluate": "evaluation",
    "export_nir": "export",
    "export_onnx": "export",
    "export_torch": "export",
    "finetune": "training",
    "from_spikingjelly": "model",
    "list_models": "checkpoint",
    "load": "catalog",
    "load_dataset": "data",
    "pull": "catalog",
    "push": "hub",
    "save": "checkpoint",
    "train_ann": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'sj_robust' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(importlib.import_module(f"sj_robust.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
