"""The Hugging Face Hub: fetching checkpoints, pushing them, listing them. Nothing here imports
torch before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.hub.search import HubModel as HubModel
    from sj_robust.hub.search import list_hub as list_hub
    from sj_robust.hub.upload import PushResult as PushResult
    from sj_robust.hub.upload import push as push
    from sj_robust.hub.upload import push_all as push_all

_HOME = {
    "search": ("HubModel", "list_hub"),
    "upload": ("PushResult", "push", "push_all"),
}

__all__ = ["HubModel", "PushResult", "list_hub", "push", "push_all"]

__getattr__ = imported_on_use(__name__, _HOME)
