"""Get a checkpoint from the Hub, every file compared with the hash that the repository lists: the
client itself compares only sizes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_folder, check_folder, sha256, write_atomic
from sj_robust.hub import zoo
from sj_robust.hub.config import CONFIG, EVALUATIONS, ORIGIN, WEIGHTS, Config, read_config
from sj_robust.hub.near import suggestion
from sj_robust.hub.origin import (
    MAX_FILES,
    Origin,
    check_replaceable,
    copy_own_files,
    git_blob_sha1,
    is_own,
    most_bytes,
    own_files,
    write_origin,
)
from sj_robust.hub.remote import (
    ASKING,
    COMMIT,
    HubName,
    address,
    client,
    explain,
    explained,
    line,
    parse_name,
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


def pull(
    name: str | Path,
    to: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The verified checkpoint folder that `name` means, fetched from the Hub if need be.

    name: `owner/name[@revision]` on the Hub, the name of a zoo model (which needs no network), or a
    folder; a folder comes first.
    to: a folder, or a link to one, to write the checkpoint to, whole or not at all; an older
    checkpoint there is replaced. revision: a branch, tag or full commit hash, the main branch by
    default. token: for a private or gated repository, by default $HF_TOKEN or the stored login.

    Returns `to`, or the folder the files lie in. What comes from the Hub is pinned to a commit: its
    hash is the name of the returned folder of the Hub's cache, and stands in `.sj_robust.json` of
    `to`. Only a checkpoint's own files are fetched, and the content of each, also of one found in
    the cache, is compared with the hash that the repository lists; the weights with config.json,
    too. A file that differs is fetched once more. With HF_HUB_OFFLINE=1, and with a warning where
    the Hub cannot be reached, what is in the cache is used. Raises SJRobustError, in one line, for
    whatever keeps a correct checkpoint from being returned.
    """
    target = None if to is None else Path(to)
    if target is not None:
        check_folder(target)
        check_replaceable(target)
    hub_name = (
        parse_name(name, revision) if isinstance(name, str) and not os.path.isdir(name) else None
    )
    if hub_name is None:
        if revision is not None:
            raise SJRobustError(
                f"{name} is not on the Hub and has no revision {revision!r}: only owner/name has"
                " revisions"
            )
        folder, origin = zoo.resolve(name), None
        check_record(folder, str(folder))
    else:
        folder, origin = _pull(hub_name, token)
    if target is None:
        return folder
    if target.resolve() == folder.resolve():
        return target
    try:
        with atomic_folder(target) as temporary:
            copy_own_files(folder, temporary, leave=True)
            if origin is not None:
                write_origin(temporary / ORIGIN, origin)
    except OSError as error:
        raise SJRobustError(
            f"{target} cannot be written ({error.strerror}): choose another folder"
        ) from None
    return target


def pull_evaluation(name: str, token: str | None = None) -> Path:
    """The folder in the Hub's cache with config.json and the evaluations that
    `owner/name[@revision]` has.

    As `pull`, for who only reads what was measured: these files are verified, the weights are not
    fetched. Raises as `pull` does, and for a name of another form.
    """
    hub_name = parse_name(name)
    if hub_name is None:
        raise SJRobustError(
            f"{name!r} is not a repository on the Hub: expected owner/name[@revision]"
        )
    return _pull(hub_name, token, weights=False)[0]


def check_record(folder: Path, called: str) -> Config:
    """The config of a folder whose weights are those it records. Raises SJRobustError, `called`
    standing for the folder."""
    try:
        config = read_config(folder)
    except SJRobustError as error:
        raise SJRobustError(str(error).replace(str(folder), called)) from None
    path = folder / WEIGHTS
    if not path.is_file():
        raise SJRobustError(f"{called} has no {WEIGHTS}: expected a checkpoint")
    if path.stat().st_size != config.weights.bytes or sha256(path) != config.weights.sha256:
        raise SJRobustError(
            f"{called}/{WEIGHTS} is not the file that its {CONFIG} records: it was altered, get it"
            " again"
        )
    return config


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


def _pull(name: HubName, token: str | None, weights: bool = True) -> tuple[Path, Origin]:
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
                stacklevel=4,
            )
            return found
        _clear_litter(name)
        folder = _fetch_all(api, traffic, name, listing, weights)
        if name.revision != listing.commit:
            # what huggingface_hub itself notes for a branch, so that the branch is found offline
            with suppress(OSError):
                write_atomic(folder.parents[1] / "refs" / (name.revision or "main"), listing.commit)
    return folder, _origin(name, listing.commit)


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
    """One file in the cache, its content verified; fetched once more where it differs or did not
    arrive."""
    listed, bad = listing.files[path], None
    for last in (False, True):
        try:
            with traffic.file(path, listed.size):
                found = Path(
                    api.hf_hub_download(
                        name.repo, path, revision=listing.commit, force_download=bad is not None
                    )
                )
        except Exception as error:
            if last or not _passing(error):
                raise
            continue
        if listed.matches(found):
            return found
        # a link keeps the blob behind it when it is fetched again, but a copy in the link's place
        # would stay
        bad = found
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
            f"{name} is not in the cache: {why}"
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


def _clear_litter(name: HubName) -> None:
    """Remove what killed downloads left in the cache; nobody takes it up again. A download at work
    has touched its file just now."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}" / "blobs"
    for path in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LITTER_SECONDS:
                path.unlink()


def _passing(error: Exception) -> bool:
    """Whether a second try may help: an answer of the wrong length, or a server out of order. A
    lost connection the client itself takes up again, several times."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, LimitError):
        return not isinstance(error, SlowError)
    return "Consistency check failed" in str(error) or (
        isinstance(error, HfHubHTTPError) and unreachable(error)
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
