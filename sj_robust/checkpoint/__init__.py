"""A checkpoint folder: its config, weights and recorded evaluations, and the zoo's index of such
folders. Nothing here imports torch before it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sj_robust.checkpoint.config import read_config as read_config
    from sj_robust.checkpoint.folder import load_folder as load_folder
    from sj_robust.checkpoint.folder import record as record
    from sj_robust.checkpoint.folder import save as save
    from sj_robust.checkpoint.zoo import list_models as list_models

_HOME = {
    "list_models": "zoo",
    "load_folder": "folder",
    "read_config": "config",
    "record": "folder",
    "save": "folder",
}

__all__ = ["list_models", "load_folder", "read_config", "record", "save"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sj_robust.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sj_robust.checkpoint.{_HOME[name]}"), name)
