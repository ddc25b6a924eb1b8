"""Checkpoint folders, the index of models, and model cards. Nothing here imports torch before it is
used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sj_robust.hub.card import write_card as write_card
    from sj_robust.hub.checkpoint import load as load
    from sj_robust.hub.checkpoint import record as record
    from sj_robust.hub.checkpoint import save as save
    from sj_robust.hub.download import pull as pull
    from sj_robust.hub.search import HubModel as HubModel
    from sj_robust.hub.search import list_hub as list_hub
    from sj_robust.hub.upload import PushResult as PushResult
    from sj_robust.hub.upload import push as push
    from sj_robust.hub.upload import push_all as push_all
    from sj_robust.hub.zoo import list_models as list_models

__all__ = [
    "HubModel",
    "PushResult",
    "list_hub",
    "list_models",
    "load",
    "pull",
    "push",
    "push_all",
    "record",
    "save",
    "write_card",
]

_HOME = {
    "HubModel": "search",
    "PushResult": "upload",
    "list_hub": "search",
    "list_models": "zoo",
    "load": "checkpoint",
    "pull": "download",
    "push": "upload",
    "push_all": "upload",
    "record": "checkpoint",
    "save": "checkpoint",
    "write_card": "card",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sj_robust.hub' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sj_robust.hub.{_HOME[name]}"), name)
