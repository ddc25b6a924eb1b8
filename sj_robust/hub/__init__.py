"""Checkpoint folders, the index of models, and model cards. Nothing here imports torch before it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sj_robust.hub.card import write_card as write_card
    from sj_robust.hub.checkpoint import load as load
    from sj_robust.hub.checkpoint import record as record
    from sj_robust.hub.checkpoint import save as save
    from sj_robust.hub.zoo import list_models as list_models

__all__ = ["list_models", "load", "record", "save", "write_card"]

_HOME = {"list_models": "zoo", "load": "checkpoint", "record": "checkpoint", "save": "checkpoint", "write_card": "card"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sj_robust.hub' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sj_robust.hub.{_HOME[name]}"), name)
