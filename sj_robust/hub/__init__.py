"""The Hugging Face Hub: fetching checkpoints, pushing them, listing them. Nothing here imports
torch before it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sj_robust.hub.search import HubModel as HubModel
    from sj_robust.hub.search import list_hub as list_hub
    from sj_robust.hub.upload import PushResult as PushResult
    from sj_robust.hub.upload import push as push
    from sj_robust.hub.upload import push_all as push_all

_HOME = {
    "HubModel": "search",
    "PushResult": "upload",
    "list_hub": "search",
    "push": "upload",
    "push_all": "upload",
}

__all__ = ["HubModel", "PushResult", "list_hub", "push", "push_all"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sj_robust.hub' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sj_robust.hub.{_HOME[name]}"), name)
