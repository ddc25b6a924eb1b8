"""The Hub as seen from here: names, the client, and what its many errors mean in one line. Nothing here imports torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sj_robust.errors import SJRobustError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PART = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>.+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./+\-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")

# Seconds to connect, and then without a byte (read, write), after which a request fails. The client itself sets no limit to most of
# its requests: a Hub that falls silent would be waited for without end.
ASKING: Any = (5.0, 20.0)  # the first question, before any work; its parameter in the client is typed as one number
WORKING = (5.0, 60.0, 60.0)


@dataclass(frozen=True)
class HubName:
    """owner/name on the Hub, at a branch, tag or commit (None: the main branch)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse_name(text: str, revision: str | None = None) -> HubName | None:
    """The repository that `owner/name[@revision]` names; None where the text has another form.

    Raises SJRobustError where `text` holds one revision and `revision` is another, or it is none that git allows.
    """
    match = _NAME.fullmatch(text)
    if match is None or any(mark in match["repo"] for mark in ("--", "..")):  # the Hub has no such names
        return None
    if revision and match["revision"] not in (None, revision):
        raise SJRobustError(f"{text!r} names the revision {match['revision']!r} and revision={revision!r} another: give one of them")
    chosen = revision or match["revision"]
    if chosen is not None and (".." in chosen or not _REVISION.fullmatch(chosen)):
        raise SJRobustError(f"{chosen!r} is not a revision: expected a branch, a tag or a full commit hash")
    return HubName(match["repo"], chosen)


def endpoint() -> str:
    """The Hub's address: $HF_ENDPOINT as it is now, else what huggingface_hub took when it was imported."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def client(token: str | None = None) -> HfApi:
    """huggingface_hub's client for `endpoint()`; without a token it takes $HF_TOKEN or the login stored by `hf auth login`."""
    from huggingface_hub import HfApi

    import sj_robust

    return HfApi(endpoint=endpoint(), token=token, library_name="sj-robust", library_version=sj_robust.__version__)


@contextmanager
def explained(name: HubName, doing: str = "pull", patience: Any = None) -> Iterator[None]:
    """Whatever the client raises inside becomes one SJRobustError that says what is wrong and what to do; a request that hears nothing
    for as long as `patience` says (WORKING) fails."""
    from huggingface_hub.utils import get_session

    session, limits = get_session(), dict(zip(("connect", "read", "write"), patience or WORKING, strict=False))

    def limit(request: Any) -> None:  # some of the client's requests ask for no limit at all, which a default would not change
        asked = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = asked | {what: asked.get(what) or seconds for what, seconds in limits.items()}

    before = session.event_hooks
    session.event_hooks = before | {"request": [*before.get("request", []), limit]}
    try:
        yield
    except SJRobustError:
        raise
    except Exception as error:
        raise SJRobustError(explain(error, name, doing)) from error
    finally:
        session.event_hooks = before


def unreachable(error: BaseException) -> bool:
    """Whether the Hub could not be asked at all, or was out of order: what is in the cache may then be used instead."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError) or _transport(error)


def explain(error: BaseException, name: HubName, doing: str = "pull") -> str:
    """One line on an error of huggingface_hub or of the connection. No URL of a request and no token gets into it."""
    from huggingface_hub import errors

    hub = endpoint()
    if isinstance(error, errors.GatedRepoError):
        return f"{name.repo} is gated: ask for access at {hub}/{name.repo}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (f"{name.repo} is neither a folder here nor a repository that {hub} shows you: check the spelling, "
                "or log in (`hf auth login`, HF_TOKEN) if it is private")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repo} has no revision {name.revision or 'main'!r}: expected a branch, a tag or a full commit hash"
    if isinstance(error, errors.DisabledRepoError):
        return f"{name.repo} was disabled by {hub}"
    if isinstance(error, errors.HFValidationError):
        return f"{name.repo!r} is not a name the Hub accepts: expected owner/name of letters, digits, '-', '_' and '.'"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error.response.status_code, name, doing)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so that {name} cannot be asked for at {hub}: unset it, or {doing} where there is a network"
    if unreachable(error):
        return f"{hub} cannot be reached ({type(error).__name__}): check the network and HF_ENDPOINT, then run it again"
    if error.__cause__ is not None and isinstance(error, errors.LocalEntryNotFoundError | ValueError | RuntimeError):
        return explain(error.__cause__, name, doing)
    if isinstance(error, errors.FileMetadataError | errors.LocalEntryNotFoundError | ValueError | KeyError | TypeError | AttributeError):
        return f"{hub} answered with something that is not the Hub's: a proxy's page, or a wrong HF_ENDPOINT? ({line(error)})"
    return f"{doing} of {name} failed: {line(error)}"


def _explain_status(status: int, name: HubName, doing: str) -> str:
    hub = endpoint()
    if status == 401:
        return f"{hub} refused the login: log in again with `hf auth login`, or set or unset HF_TOKEN"
    if status == 403:
        access = "write" if doing == "push" else "read"
        return f"the login may not {doing} {name.repo}: it needs {access} access to {name.repo.split('/')[0]}"
    if status in (409, 412):
        return f"{name.repo} was changed by somebody else at this moment: run it again"
    if status == 429:
        return f"{hub} asks to slow down (429): wait a few minutes and run it again"
    later = ": try again later" if status >= 500 else ""
    return f"{hub} answered {status} to a {doing} of {name}{later}"


def line(error: BaseException, longest: int = 160) -> str:
    """Type and text of an error in one line, without addresses, which may carry signatures."""
    text = re.sub(r"https?://\S+", "(address)", " ".join(str(error).split()))
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= longest else text[:longest - 3] + "..."


def _transport(error: BaseException) -> bool:
    # the client's HTTP library has changed before (requests, httpx, httpx2): told by the name of the base class
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)
