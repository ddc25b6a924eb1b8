"""The Hub as seen from here: names, the client, and what its many errors mean in one line. Nothing
here imports torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sj_robust.checkpoint.near import suggestion
from sj_robust.errors import SJRobustError
from sj_robust.masking import harmless, masked, remember, without_login
from sj_robust.traffic import MAX_ANSWER, WORKING, LimitError, SlowError, Traffic, asked_to_wait

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PART = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>.+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./+\-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")

# as WORKING, for the first question, before any work; its parameter in the client is typed as one
# number
ASKING: Any = (5.0, 20.0)


@dataclass(frozen=True)
class HubName:
    """owner/name on the Hub, at a branch, tag or commit (None: the main branch)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse_name(text: str, revision: str | None = None) -> HubName | None:
    """The repository that `owner/name[@revision]` names; None where the text has another form.

    Raises SJRobustError where `text` holds one revision and `revision` is another, or it is none
    that git allows.
    """
    match = _NAME.fullmatch(text)
    # the Hub has no such names
    if match is None or any(mark in match["repo"] for mark in ("--", "..")):
        return None
    if revision and match["revision"] not in (None, revision):
        raise SJRobustError(
            f"{text!r} names the revision {match['revision']!r} and revision={revision!r} another:"
            " give one of them"
        )
    chosen = revision or match["revision"]
    if chosen is not None and (".." in chosen or not _REVISION.fullmatch(chosen)):
        raise SJRobustError(
            f"{chosen!r} is not a revision: expected a branch, a tag or a full commit hash"
        )
    return HubName(match["repo"], chosen)


def endpoint() -> str:
    """The Hub's address: $HF_ENDPOINT as it is now, else what huggingface_hub took when it was
    imported."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT", "").strip() or constants.ENDPOINT).rstrip("/")


def address() -> str:
    """`endpoint()` as it is shown and recorded: without the user and password that it may hold."""
    return without_login(endpoint())


def client(token: str | None = None) -> HfApi:
    """huggingface_hub's client for `endpoint()`; without a token it takes $HF_TOKEN or the login
    stored by `hf auth login`.

    Raises SJRobustError, which does not show it, for a token that cannot be one.
    """
    from huggingface_hub import HfApi

    import sj_robust

    return HfApi(
        endpoint=endpoint(),
        token=_clean(token),
        library_name="sj-robust",
        library_version=sj_robust.__version__,
    )


def _clean(token: str | None) -> str | None:
    """A token without the white space around it, such as the newline at the end of a file; None for
    a blank one."""
    from huggingface_hub import get_token

    try:
        found = (get_token() if token is None else token) or ""
    except (OSError, UnicodeDecodeError) as error:
        raise SJRobustError(
            f"the stored login cannot be read ({line(error)}): log in again with `hf auth login`"
        ) from None
    found = found.strip()
    remember(found)
    if not re.fullmatch(r"[!-~]*", found):
        raise SJRobustError(
            "the token (not shown) holds a space, a line break or a character that none has: copy"
            " it again"
        )
    return found if token is not None and found else None


@contextmanager
def explained(
    name: HubName, doing: str = "pull", patience: Any = None, answer: int = MAX_ANSWER
) -> Iterator[Traffic]:
    """Whatever the client raises inside becomes one SJRobustError that says what is wrong and what
    to do; and the Hub is held to limits.

    patience: seconds without a byte after which a request fails (WORKING). answer: the most bytes
    of an answer that is no file.
    """
    timeouts = dict(zip(("connect", "read", "write"), patience or WORKING, strict=False))
    traffic = Traffic(timeouts, f"{urlsplit(endpoint()).path}/api/", answer)
    try:
        # inside: the client is made here, and a proxy's address may be none
        with traffic.held():
            yield traffic
    except SJRobustError:
        raise
    except Exception as error:
        raise SJRobustError(explain(traffic.told(error), name, doing)) from harmless(error)


def unreachable(error: BaseException) -> bool:
    """Whether the Hub could not be asked at all, or was out of order: what is in the cache may then
    be used instead."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError) or _transport(
        error
    )


def explain(error: BaseException, name: HubName, doing: str = "pull") -> str:
    """One line on an error of huggingface_hub or of the connection. No URL of a request and no
    token gets into it."""
    from huggingface_hub import errors

    hub = address()
    if isinstance(error, LimitError):
        advice = (
            "check the network, then run it again"
            if isinstance(error, SlowError)
            else "a wrong HF_ENDPOINT, or a proxy?"
        )
        return f"{hub} {error}: {advice}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name.repo} is gated: ask for access at {hub}/{name.repo}, then log in with `hf auth"
            " login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name.repo} is neither a folder in {Path.cwd()} nor a repository that {hub} shows"
            " you: check the spelling, or log in (`hf auth login`, HF_TOKEN) if it is"
            f" private{suggestion(name.repo)}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{name.repo} has no revision {name.revision or 'main'!r}: expected a branch, a tag or"
            " a full commit hash"
        )
    if isinstance(error, errors.DisabledRepoError):
        return f"{name.repo} was disabled by {hub}"
    if isinstance(error, errors.HFValidationError):
        return (
            f"{name.repo!r} is not a name the Hub accepts: expected owner/name of letters, digits,"
            " '-', '_' and '.'"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(
            error.response.status_code, name, doing, asked_to_wait(error.response)
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set, so that {name} cannot be asked for at {hub}: unset it, or"
            f" {doing} where there is a network"
        )
    if type(error).__name__ == "TooManyRedirects":
        return f"{hub} redirects without end: a wrong HF_ENDPOINT, or a proxy?"
    if type(error).__name__ in ("InvalidURL", "UnsupportedProtocol"):
        advice = (
            "set HF_ENDPOINT to one such as https://huggingface.co, or unset it, and see to"
            " HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
        )
        return f"{hub}, or a proxy on the way, is not an address to ask ({line(error)}): {advice}"
    if unreachable(error):
        # what looks like owner/name may be a misspelt folder
        meant = suggestion(name.repo) if doing == "pull" else ""
        advice = f"check the network and HF_ENDPOINT, then run it again{meant}"
        return f"{hub} cannot be reached ({type(error).__name__}): {advice}"
    if error.__cause__ is not None and isinstance(
        error, errors.LocalEntryNotFoundError | ValueError | RuntimeError
    ):
        return explain(error.__cause__, name, doing)
    if isinstance(
        error,
        errors.FileMetadataError
        | errors.LocalEntryNotFoundError
        | ValueError
        | KeyError
        | TypeError
        | AttributeError,
    ):
        return (
            f"{hub} answered with something that is not the Hub's: a proxy's page, or a wrong"
            f" HF_ENDPOINT? ({line(error)})"
        )
    return f"{doing} of {name} failed: {line(error)}"


def _explain_status(status: int, name: HubName, doing: str, wait: float | None) -> str:
    hub = address()
    if status == 401:
        return (
            f"{hub} refused the login: log in again with `hf auth login`, or set or unset HF_TOKEN"
        )
    if status == 403:
        access = "write" if doing == "push" else "read"
        return (
            f"the login may not {doing} {name.repo}: it needs {access} access to"
            f" {name.repo.split('/')[0]}"
        )
    if status in (409, 412):
        return f"{name.repo} was changed by somebody else at this moment: run it again"
    if status == 429:
        return (
            f"{hub} asks to slow down (429): wait {_spoken(wait) if wait else 'a few minutes'} and"
            " run it again"
        )
    later = f": try again {f'in {_spoken(wait)}' if wait else 'later'}" if status >= 500 else ""
    return f"{hub} answered {status} to a {doing} of {name}{later}"


def _spoken(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return (
                f"{seconds / size:.0f} {unit}"
                if seconds < 1000 * size
                else f"more than 1000 {unit}"
            )
    return f"{seconds:.0f} seconds"


def line(error: BaseException, longest: int = 160) -> str:
    """Type and text of an error in one line, without addresses, which may carry signatures."""
    text = masked(re.sub(r"https?://\S+", "(address)", " ".join(str(error).split())))
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _transport(error: BaseException) -> bool:
    # the client's HTTP library has changed before (requests, httpx, httpx2): told by the name of
    # the base class
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)
