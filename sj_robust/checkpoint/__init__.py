"""A checkpoint folder: its config, weights and recorded evaluations, and the zoo's index of such
folders. Nothing here imports torch before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.checkpoint.config import read_config as read_config
    from sj_robust.checkpoint.folder import load_folder as load_folder
    from sj_robust.checkpoint.folder import record as record
    from sj_robust.checkpoint.folder import save as save
    from sj_robust.checkpoint.zoo import list_models as list_models

_HOME = {
    "config": ("read_config",),
    "folder": ("load_folder", "record", "save"),
    "zoo": ("list_models",),
}

__all__ = ["list_models", "load_folder", "read_config", "record", "save"]

__getattr__ = imported_on_use(__name__, _HOME)
