"""The models of sj-robust on the Hub, as their cards describe them. Nothing here imports torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sj_robust.errors import SJRobustError
from sj_robust.hub.remote import HubName, client, endpoint, explained, parse_name

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

Kind = Literal["ann", "snn"]
Fraction = Annotated[float, Field(ge=0, le=1)]

TAG, SPIKING_TAG = "sj-robust", "spiking-neural-network"
_PROPERTIES: Any = ["cardData", "model-index", "tags", "private", "gated", "lastModified", "downloads"]
# names of sj_robust.data whose repository on the Hub is not called the same
_DATASETS = {"imagenet": "imagenet-1k", "sample": "cifar10"}
_DATASET = re.compile(r"[A-Za-z0-9_.\-]{1,96}(/[A-Za-z0-9_.\-]{1,96})?")
_MOST = 1000  # of the accuracies and tags of one card: a stranger writes it


class Accuracy(BaseModel):
    """Accuracy at one eps (0: clean), as a card claims it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    eps: Fraction
    value: Fraction


class HubModel(BaseModel):
    """A model on the Hub. The accuracies are what its card says; only the evaluation in the repository can be checked."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    dataset: str | None
    accuracies: list[Accuracy]
    private: bool
    gated: bool
    downloads: int | None
    last_modified: str | None


def list_hub(dataset: str | None = None, kind: Kind | None = None, author: str | None = None, token: str | None = None) -> list[HubModel]:
    """Every model on the Hub that is tagged sj-robust, by name.

    dataset: a name of `load_dataset`, or a repository of the Hub; kind: "ann" or "snn"; author: an account or organisation.
    Raises SJRobustError where the Hub cannot be asked.
    """
    with explained(HubName("the list of models"), "listing"):
        tags = [TAG, SPIKING_TAG] if kind == "snn" else [TAG]
        _ask(10.0)  # the client itself tries an address that does not answer for half a minute
        infos = client(token).list_models(filter=tags, author=author, expand=_PROPERTIES)
        found = [_described(info) for info in infos]
    return sorted((model for model in found if model is not None and kind in (None, model.kind) and _is_about(model, dataset)),
                  key=lambda model: model.name)


def identity(token: str | None = None, timeout: float = 3.0) -> dict[str, str]:
    """How the Hub answers from here, and as whom: {"endpoint", "state", "login"}; never raises, never holds a token."""
    from huggingface_hub import get_token, is_offline_mode

    login = "no token" if token is None and get_token() is None else "a token, not tried"
    if is_offline_mode():
        return {"endpoint": endpoint(), "state": "not asked: HF_HUB_OFFLINE is set", "login": login}
    name = HubName("the Hub")
    try:
        with explained(name, "question"):
            _ask(timeout)
    except SJRobustError as error:
        return {"endpoint": endpoint(), "state": str(error), "login": login}
    if login != "no token":
        try:
            with explained(name, "question"):
                login = f"logged in as {client(token).whoami()['name']}"
        except SJRobustError as error:
            login = str(error)
    return {"endpoint": endpoint(), "state": "reachable", "login": login}


def _ask(timeout: float) -> None:
    """One small request, given up after `timeout` seconds. Raises what the client raises."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    hf_raise_for_status(get_session().get(f"{endpoint()}/api/models", params={"limit": 1}, timeout=timeout))


def _described(info: ModelInfo) -> HubModel | None:
    """None for a model whose name is none, which only a Hub that is not one sends."""
    if parse_name(info.id) is None:
        return None
    tags = [tag for tag in (info.tags or [])[:_MOST] if isinstance(tag, str)]
    entries = list(_entries(info))
    dataset = next((tag.removeprefix("dataset:") for tag in tags if tag.startswith("dataset:")), None)
    dataset = dataset or next((name for name, _ in entries if name), None)
    return HubModel(name=info.id, kind="snn" if SPIKING_TAG in tags else "ann", accuracies=[accuracy for _, accuracy in entries],
                    dataset=dataset if dataset and _DATASET.fullmatch(dataset) else None, private=bool(info.private),
                    gated=bool(info.gated), downloads=info.downloads, last_modified=info.last_modified and info.last_modified.isoformat())


def _entries(info: ModelInfo) -> list[tuple[str | None, Accuracy]]:
    """(data set, accuracy) of the model-index of a card, one per eps; whatever does not have our form is passed over."""
    index: Any = info.model_index or (info.card_data.to_dict().get("model-index") if info.card_data else None)
    found: dict[float, tuple[str | None, Accuracy]] = {}
    try:
        for result in index[0]["results"][:_MOST]:
            for metric in result["metrics"][:_MOST]:
                if metric.get("type") == "accuracy":
                    eps = (metric.get("args") or {}).get("eps", 0.0)
                    found.setdefault(eps, (result["dataset"].get("type"), Accuracy(eps=eps, value=metric["value"])))
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        pass
    return [found[eps] for eps in sorted(found)]


def _is_about(model: HubModel, dataset: str | None) -> bool:
    if dataset is None:
        return True
    wanted = _DATASETS.get(dataset, dataset)
    return model.dataset is not None and wanted in (model.dataset, model.dataset.split("/")[-1])
