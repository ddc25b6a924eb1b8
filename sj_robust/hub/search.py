"""The models of sj-robust on the Hub, as their cards describe them. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sj_robust.checkpoint.results import Fraction, Microjoules, protocol_name
from sj_robust.errors import SJRobustError
from sj_robust.hub.remote import ASKING, HubName, address, client, endpoint, explained, parse_name
from sj_robust.known import KNOWN
from sj_robust.traffic import MAX_PAGE

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

Kind = Literal["ann", "snn"]

TAG, SPIKING_TAG = "sj-robust", "spiking-neural-network"
_PROPERTIES: Any = [
    "cardData",
    "model-index",
    "tags",
    "private",
    "gated",
    "lastModified",
    "downloads",
]
_DATASET = re.compile(r"[A-Za-z0-9_.\-]{1,96}(/[A-Za-z0-9_.\-]{1,96})?")
_WORD = r"[A-Za-z0-9_.@:\-]{1,40}"
_MOST = 1000  # of the accuracies and tags of one card: a stranger writes it


class _Claimed(BaseModel):
    """What a card claims. A stranger wrote it: what has another form is left out."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Accuracy(_Claimed):
    """Accuracy at one eps (0: clean) of the ball in `norm`, as a card claims it."""

    eps: Fraction
    value: Fraction
    norm: Literal["linf", "l2"] = "linf"


class _Facts(_Claimed):
    timesteps: Annotated[int, Field(ge=1, le=1024)] | None = None
    parameters: Annotated[int, Field(ge=0, le=10**12)] | None = None
    threat: Annotated[str, Field(pattern=rf"^{_WORD}$")] | None = None


class _Protocol(_Claimed):
    protocol: Annotated[str, Field(pattern=rf"^{_WORD}$")] | None = None
    attacks: Annotated[
        list[Annotated[str, Field(pattern=rf"^{_WORD}$")]], Field(min_length=1, max_length=20)
    ]
    views: Annotated[int, Field(ge=0, le=1000)]


class _Energy(_Claimed):
    value: Microjoules


Form = TypeVar("Form", bound=_Claimed)


class HubModel(BaseModel):
    """A model on the Hub.

    The figures are what its card says; only the evaluation in the repository can be checked.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    dataset: str | None
    threat: str | None = None
    timesteps: int | None = None
    parameters: int | None = None
    accuracies: list[Accuracy]
    protocol: str | None = None
    microjoules: float | None = None
    private: bool
    gated: bool
    downloads: int | None
    last_modified: str | None


def list_hub(
    dataset: str | None = None,
    kind: Kind | None = None,
    author: str | None = None,
    token: str | None = None,
) -> list[HubModel]:
    """Every model on the Hub that is tagged sj-robust, by name.

    Args:
        dataset: a name of `load_dataset`, or a repository of the Hub.
        kind: "ann" or "snn".
        author: an account or organisation.

    Raises:
        SJRobustError: the Hub cannot be asked.
    """
    with explained(HubName("the list of models"), "listing", ASKING, MAX_PAGE):
        tags = [TAG, SPIKING_TAG] if kind == "snn" else [TAG]
        _ask(10.0)  # the client itself tries an address that does not answer for half a minute
        infos = client(token).list_models(filter=tags, author=author, expand=_PROPERTIES)
        found = [_described(info) for info in infos]
    return sorted(
        (
            model
            for model in found
            if model is not None and kind in (None, model.kind) and _is_about(model, dataset)
        ),
        key=lambda model: model.name,
    )


def identity(token: str | None = None, timeout: float = 3.0) -> dict[str, str]:
    """How the Hub answers from here, and as whom: {"endpoint", "state", "login"}; never raises,
    never holds a token."""
    from huggingface_hub import get_token, is_offline_mode

    try:
        api = client(token)
        login = "no token" if api.token is None and get_token() is None else "a token, not tried"
    except SJRobustError as error:
        api, login = None, str(error)
    if is_offline_mode():
        return {"endpoint": address(), "state": "not asked: HF_HUB_OFFLINE is set", "login": login}
    name = HubName("the Hub")
    try:
        with explained(name, "question", ASKING):
            _ask(timeout)
    except SJRobustError as error:
        return {"endpoint": address(), "state": str(error), "login": login}
    if api is not None and login != "no token":
        try:
            with explained(name, "question", ASKING):
                login = f"logged in as {api.whoami()['name']}"
        except SJRobustError as error:
            login = str(error)
    return {"endpoint": address(), "state": "reachable", "login": login}


def _ask(timeout: float) -> None:
    """One small request, given up after `timeout` seconds. Raises what the client raises."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    hf_raise_for_status(
        get_session().get(f"{endpoint()}/api/models", params={"limit": 1}, timeout=timeout)
    )


def _described(info: ModelInfo) -> HubModel | None:
    """None for a model whose name is none, which only a Hub that is not one sends."""
    if parse_name(info.id) is None:
        return None
    tags = [tag for tag in (info.tags or [])[:_MOST] if isinstance(tag, str)]
    entries = list(_entries(info))
    dataset = next(
        (tag.removeprefix("dataset:") for tag in tags if tag.startswith("dataset:")), None
    )
    dataset = dataset or next((name for name, _ in entries if name), None)
    facts = (
        _claimed(_Facts, info.card_data.to_dict().get("sj_robust") if info.card_data else None)
        or _Facts()
    )
    protocol = next(
        filter(
            None,
            (_claimed(_Protocol, metric.get("args")) for _, metric in _metrics(info, "accuracy")),
        ),
        None,
    )
    energy = next(
        filter(None, (_claimed(_Energy, metric) for _, metric in _metrics(info, "energy"))), None
    )
    return HubModel(
        name=info.id,
        kind="snn" if SPIKING_TAG in tags else "ann",
        accuracies=[accuracy for _, accuracy in entries],
        dataset=dataset if dataset and _DATASET.fullmatch(dataset) else None,
        **facts.model_dump(),
        protocol=protocol and protocol_name(protocol.protocol, protocol.attacks, protocol.views),
        microjoules=energy and energy.value,
        private=bool(info.private),
        gated=bool(info.gated),
        downloads=info.downloads,
        last_modified=info.last_modified and info.last_modified.isoformat(),
    )


def _entries(info: ModelInfo) -> list[tuple[str | None, Accuracy]]:
    """(data set, accuracy) of the model-index of a card, one per eps and norm; whatever does not
    have our form is passed over."""
    found: dict[tuple[str, float], tuple[str | None, Accuracy]] = {}
    try:
        for dataset, metric in _metrics(info, "accuracy"):
            norm = "l2" if str(dataset.get("config")).startswith("l2-") else "linf"
            accuracy = Accuracy(
                eps=(metric.get("args") or {}).get("eps", 0.0), value=metric["value"], norm=norm
            )
            found.setdefault((norm, accuracy.eps), (dataset.get("type"), accuracy))
    except (TypeError, KeyError, AttributeError, ValueError):
        pass
    return [found[key] for key in sorted(found, key=lambda key: key[::-1])]


def _metrics(info: ModelInfo, kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(data set, metric) of every metric of that kind, until something does not have our form."""
    index: Any = info.model_index or (
        info.card_data.to_dict().get("model-index") if info.card_data else None
    )
    with suppress(TypeError, KeyError, IndexError, AttributeError):
        for result in index[0]["results"][:_MOST]:
            for metric in result["metrics"][:_MOST]:
                if metric.get("type") == kind:
                    yield result["dataset"], metric


def _claimed(form: type[Form], claim: object) -> Form | None:
    try:
        return form.model_validate(claim)
    except ValidationError:
        return None


def _is_about(model: HubModel, dataset: str | None) -> bool:
    if dataset is None:
        return True
    if model.dataset is None:
        return False
    name = model.dataset.split("/")[-1]
    if dataset in KNOWN:  # by whichever account
        return name == KNOWN[dataset].hub.split("/")[-1]
    return dataset in (model.dataset, name)
