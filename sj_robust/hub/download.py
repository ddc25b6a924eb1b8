"""Get a checkpoint from the Hub, every file compared with the hash that the repository lists: the
client itself compares only sizes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sj_robust.checkpoint.config import CONFIG, EVALUATIONS, WEIGHTS, read_config
from sj_robust.checkpoint.files import MAX_FILES, check_record, is_own, most_bytes, own_files
from sj_robust.checkpoint.near import suggestion
from sj_robust.errors import SJRobustError
from sj_robust.files import sha256, write_atomic
from sj_robust.hub.origin import Origin, git_blob_sha1
from sj_robust.hub.remote import (
    ASKING,
    COMMIT,
    HubName,
    address,
    client,
    explain,
    explained,
    line,
    unreachable,
)
from sj_robust.traffic import LimitError, SlowError, Traffic

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LITTER_SECONDS = 3600


@dataclass(frozen=True)
class Listed:
    """What a repository says of a file: its size, and sha256 where it lies in LFS, else git's hash
    of it."""

    size: int
    sha256: str | None
    blob: str | None

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is this one, by its content."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return sha256(path) == self.sha256 if self.sha256 else git_blob_sha1(path) == self.blob


@dataclass(frozen=True)
class Listing:
    """The checkpoint's own files in one commit of a repository."""

    commit: str
    files: Mapping[str, Listed]


def fetch(name: HubName, token: str | None = None, *, weights: bool = True) -> tuple[Path, Origin]:
    """The verified checkpoint in the Hub's cache, and which commit it is; see
    `sj_robust.catalog.pull`.

    Without `weights` only config.json and the evaluations, for who only reads what was measured.
    Raises SJRobustError, in one line, for whatever keeps a correct checkpoint from being returned.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return _cached(name, "HF_HUB_OFFLINE is set")
    api = client(token)
    with explained(name) as traffic:
        try:
            listing: Listing | None = list_files(api, name)
        except SJRobustError:
            raise
        except Exception as error:
            if not unreachable(error):
                raise
            listing, told = None, traffic.told(error)
        # outside of the handler, so that no traceback shows what the client said
        if listing is None:
            found = _cached(name, explain(told, name))
            warnings.warn(
                f"{address()} cannot be asked ({line(told)}): {name} is taken from the cache",
                stacklevel=5,
            )
            return found
        _clear_litter(name)
        folder = _fetch_all(api, traffic, name, listing, weights)
        if name.revision != listing.commit:
            # what huggingface_hub itself notes for a branch, so that the branch is found offline
            with suppress(OSError):
                write_atomic(folder.parents[1] / "refs" / (name.revision or "main"), listing.commit)
    return folder, _origin(name, listing.commit)


def list_files(api: HfApi, name: HubName) -> Listing:
    """The checkpoint's own files in a repository. Raises SJRobustError for a listing no honest
    checkpoint has, else the client's errors."""
    info = api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=ASKING)
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise ValueError("no commit hash")
    files = {}
    for item in info.siblings or []:
        path = item.rfilename
        if path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/"):
            raise SJRobustError(
                f"{name} lists a file called {path!r}, which reaches outside of its folder: do not"
                " use this repository"
            )
        if is_own(path):
            files[path] = Listed(
                int(item.size or 0), item.lfs.sha256 if item.lfs else None, item.blob_id
            )
    if not {CONFIG, WEIGHTS} <= files.keys():
        raise SJRobustError(_not_ours(name, [item.rfilename for item in info.siblings or []]))
    if len(files) > MAX_FILES:
        raise SJRobustError(
            f"{name} lists {len(files)} files of a checkpoint, which has {MAX_FILES} at most: do"
            " not use this repository"
        )
    for path, listed in files.items():
        if listed.size > (limit := most_bytes(path)):
            raise SJRobustError(
                f"{name} lists {path} with {listed.size} bytes, no such file is written by"
                f" sj-robust (at most {limit})"
            )
    return Listing(info.sha, files)


def _fetch_all(
    api: HfApi, traffic: Traffic, name: HubName, listing: Listing, with_weights: bool
) -> Path:
    """All listed files, verified: the config first, for it tells what the weights have to be, and
    the weights last, so that a folder with weights is complete; or config and evaluation alone.
    Returns the snapshot's folder in the Hub's cache.
    """
    called = f"{name.repo}@{listing.commit[:8]}"
    folder = _fetch(api, traffic, name, listing, CONFIG).parent
    try:
        expected = read_config(folder).weights
    except SJRobustError as error:
        raise SJRobustError(str(error).replace(str(folder), called)) from None
    weights = listing.files[WEIGHTS]
    if weights.size != expected.bytes or (weights.sha256 or expected.sha256) != expected.sha256:
        raise SJRobustError(
            f"{called} holds another {WEIGHTS} than its {CONFIG} records: it was put together"
            " wrongly, do not use it"
        )
    for path in sorted(
        listing.files.keys() - {CONFIG, WEIGHTS}
        if with_weights
        else listing.files.keys() & set(EVALUATIONS)
    ):
        _fetch(api, traffic, name, listing, path)
    if not with_weights:
        return folder
    _fetch(api, traffic, name, listing, WEIGHTS)
    check_record(folder, called)
    return folder


def _fetch(api: HfApi, traffic: Traffic, name: HubName, listing: Listing, path: str) -> Path:
    """One file in the cache, its content verified; fetched once more, from its first byte, where it
    differs or did not arrive."""
    listed = listing.files[path]
    for last in (False, True):
        try:
            with traffic.file(path, listed.size):
                found = Path(
                    api.hf_hub_download(
                        name.repo, path, revision=listing.commit, force_download=last
                    )
                )
        except Exception as error:
            if last or not _passing(error):
                # huggingface_hub 1 would take it up again, whatever it holds
                begun = f"{listed.sha256 or listed.blob}.incomplete"
                (_blobs(name) / begun).unlink(missing_ok=True)
                raise
            continue
        if listed.matches(found):
            return found
        # a link keeps the blob behind it when it is fetched again, but a copy in the link's place
        # would stay
        _discard(found)
    raise SJRobustError(
        f"{path} of {name.repo}@{listing.commit[:8]} arrived twice with another content than"
        f" {address()} lists: something on the way alters it (a proxy, a cache?); it was not kept"
    )


def _cached(name: HubName, why: str) -> tuple[Path, Origin]:
    """The checkpoint as it lies in the Hub's cache, verified by the cache's own names: a blob is
    called by its content's hash."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name.repo, CONFIG, revision=name.revision)
    if not isinstance(config, str):
        raise SJRobustError(
            f"{name} is not in the cache, and no folder in {Path.cwd()}: {why}"
            + ("" if "did you mean" in why else suggestion(name.repo))
        )
    folder = Path(config).parent
    if not (folder / WEIGHTS).is_file():
        raise SJRobustError(f"{WEIGHTS} of {name} is not in the cache, only a part of it is: {why}")
    for path in own_files(folder):
        blob = (folder / path).resolve()
        found = (
            {64: sha256, 40: git_blob_sha1}.get(len(blob.name))
            if blob.parent.name == "blobs"
            else None
        )
        if found and found(blob) != blob.name:
            raise SJRobustError(
                f"{path} of {name} is damaged in the cache, and cannot be fetched again: {why}"
            )
    check_record(folder, str(name))
    return folder, _origin(name, folder.name)


def _origin(name: HubName, commit: str) -> Origin:
    return Origin(
        endpoint=address(), repo=name.repo, revision=name.revision or "main", commit=commit
    )


def _discard(path: Path) -> None:
    """Remove a wrong file from the cache, so that nobody else is served it either."""
    blob = path.parent / path.readlink() if path.is_symlink() else None
    path.unlink(missing_ok=True)
    if blob is not None and blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)


def _blobs(name: HubName) -> Path:
    """Where the Hub's cache holds the contents of a repository's files."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}" / "blobs"


def _clear_litter(name: HubName) -> None:
    """Remove what killed downloads left in the cache; nobody takes it up again. A download at work
    has touched its file just now."""
    for path in _blobs(name).glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LITTER_SECONDS:
                path.unlink()


def _passing(error: Exception) -> bool:
    """Whether a second try may help: an answer of the wrong length, or cut short, or a server out
    of order. A connection that times out the client itself takes up again, several times."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, LimitError):
        return not isinstance(error, SlowError)
    return (
        "Consistency check failed" in str(error)
        or type(error).__name__ == "RemoteProtocolError"  # of httpx or httpx2
        or (isinstance(error, HfHubHTTPError) and unreachable(error))
    )


def _not_ours(name: HubName, names: list[str]) -> str:
    pickles = [path for path in names if path.endswith(_PICKLES)]
    if pickles and not any(path.endswith(".safetensors") for path in names):
        return (
            f"{name} holds its weights as a pickle only ({pickles[0]!r}), which sj-robust never"
            f" opens: expected {CONFIG} and {WEIGHTS}"
        )
    return (
        f"{name} is not a checkpoint of sj-robust: it has no"
        f" {WEIGHTS if CONFIG in names else CONFIG}"
    )
