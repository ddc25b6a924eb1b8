"""Put checkpoint folders on the Hub: checked first, one commit each, never over what somebody else
put there unless told."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.config import Config, read_config
from sj_robust.checkpoint.contents import check_contents
from sj_robust.checkpoint.files import MAX_FILES, check_record, copy_own_files, is_own, own_files
from sj_robust.errors import SJRobustError
from sj_robust.hub.download import Listed
from sj_robust.hub.origin import Origin, origin_path, read_origin, write_origin
from sj_robust.hub.prepare import prepare_card, set_base_model
from sj_robust.hub.remote import (
    ASKING,
    COMMIT,
    HubName,
    address,
    client,
    explain,
    explained,
    parse_name,
    unreachable,
)
from sj_robust.masking import harmless, without_login

if TYPE_CHECKING:
    from huggingface_hub import HfApi

State = Literal["new", "changed", "same", "deleted"]


@dataclass(frozen=True)
class Change:
    """What a push does to one file of the repository."""

    path: str
    state: State
    bytes: int


@dataclass(frozen=True)
class PushResult:
    """What a push did, or with dry_run would do.

    Attributes:
        commit: the one that holds the checkpoint, None where none was made.
        tag: "weights-" and the first 12 hex digits of the sha256 of model.safetensors, on the first
            commit that held these weights: `pull("owner/name@TAG")` gives them whatever is pushed
            later.
    """

    repo: str
    url: str
    revision: str
    commit: str | None
    tag: str
    created: bool
    dry_run: bool
    changes: tuple[Change, ...]

    @property
    def changed(self) -> bool:
        """Whether anything goes up."""
        return any(change.state != "same" for change in self.changes)


@dataclass(frozen=True)
class _Remote:
    """The repository as it is: None for the head of one that is not there yet."""

    head: str | None
    private: bool
    files: dict[str, Listed]


def push(
    folder: str | Path,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    token: str | None = None,
    *,
    base_model: str | None = None,
) -> PushResult:
    """Put a checkpoint folder, or a zoo model, on the Hub in one commit, and tag the version.

    The model is loaded before, and its card and evaluation have to be of these weights; a missing
    card is written. Only a checkpoint's own files go up. An interrupted push is taken up by the
    same call again: what arrived is not sent twice. An ANN's repository is one of timm's as well:
    `timm.create_model("hf-hub:owner/name", pretrained=True)`.

    Args:
        repo: "owner/name".
        private: for a repository made by this call.
        revision: the branch, main by default, made from main if missing.
        dry_run: only tell what would go up; without the Hub it fails after the local checks, and
            says that they passed.
        force: also where the branch has moved since this folder was pulled from or pushed to it, as
            its `.sj_robust.json` tells; else that is refused.
        base_model: "owner/name" of the ANN, recorded in config.json and card as sent.

    Raises:
        SJRobustError: whatever is wrong.
    """
    name = parse_name(repo)
    if name is None or name.revision:
        raise SJRobustError(
            f"{repo!r} is not a repository's name: expected owner/name of letters, digits, '-', '_'"
            " and '.'"
        )
    name = parse_name(repo, revision) or name
    if name.revision and COMMIT.fullmatch(name.revision):
        raise SJRobustError(
            f"{name.revision} is a commit, which stays as it is: expected a branch to push to"
        )
    source = zoo.resolve(folder)
    with _staged(source, name, base_model) as staged:
        config, api = read_config(staged), client(token)
        with explained(name, "push"):
            try:
                remote = _look(api, name)
            except Exception as error:
                if not (dry_run and unreachable(error)):
                    raise
                _check_loads(staged, config, str(source))
                raise SJRobustError(
                    f"{explain(error, name, 'push')}; {_checked_here(staged)}"
                ) from harmless(error)
            if private and remote.head and not remote.private:
                where = f"{address()}/{name.repo}/settings"
                raise SJRobustError(
                    f"{name.repo} is public already: make it private at {where}, or leave private"
                    " (--private) out"
                )
            changes = _changes(staged, remote)
            _check_not_newer(source, name, remote, changes, force)
        # last, for it imports torch: whatever else is wrong is told at once
        _check_loads(staged, config, str(source))
        if dry_run:
            return _result(name, config, None, changes, created=remote.head is None, dry_run=True)
        with explained(name, "push"):
            commit = _send(api, name, staged, config, remote, changes, private)
    origin = Origin(
        endpoint=address(), repo=name.repo, revision=name.revision or "main", commit=commit
    )
    # a folder that cannot be written to: the next push then compares contents only
    with suppress(OSError):
        write_origin(origin_path(source, name), origin)
    return _result(name, config, commit, changes, created=remote.head is None, dry_run=False)


def push_all(
    namespace: str,
    private: bool = False,
    dry_run: bool = False,
    force: bool = False,
    token: str | None = None,
) -> Iterator[PushResult]:
    """Put every zoo model on the Hub as namespace/NAME, one by one, the ANNs first.

    Each spiking network names the ANN it came from as base_model.

    Raises:
        SJRobustError: as `push`; those pushed before stay, and the same call goes on from there.
    """
    entries = sorted(zoo.list_models(), key=lambda entry: (entry.kind != "ann", entry.name))
    anns = {
        read_config(entry.folder).weights.sha256: entry.name
        for entry in entries
        if entry.kind == "ann"
    }
    for entry in entries:
        ann = (
            anns.get(str(read_config(entry.folder).source.get("weights_sha256")))
            if entry.kind == "snn"
            else None
        )
        yield push(
            entry.name,
            f"{namespace}/{entry.name}",
            private,
            None,
            dry_run,
            force,
            token,
            base_model=f"{namespace}/{ann}" if ann else None,
        )


@contextmanager
def _staged(source: Path, name: HubName, base_model: str | None) -> Iterator[Path]:
    """A copy of the checkpoint as it goes up, checked: card and evaluation are of these weights."""
    from sj_robust.checkpoint.results import read_reports

    with tempfile.TemporaryDirectory(prefix="sj_robust_push_") as temporary:
        staged = Path(temporary) / name.repo.split("/")[1]
        staged.mkdir()
        # the zoo's files belong to the package, and are verified
        copy_own_files(source, staged, leave=zoo.holds(source))
        if (count := len(own_files(staged))) > MAX_FILES:
            raise SJRobustError(
                f"{source} holds {count} files of a checkpoint, which has {MAX_FILES} at most:"
                " remove some figures"
            )
        config = check_record(staged, str(source))  # of the copy, from here on: it is what goes up
        if base_model is not None:
            set_base_model(staged, base_model)
        with _named(staged, str(source)):
            check_contents(staged)
            zoo.check_evaluations(read_reports(staged), config, str(source))
        prepare_card(staged, name)
        yield staged


def _check_loads(folder: Path, config: Config, called: str) -> None:
    from sj_robust.checkpoint.folder import check_weights, load_folder  # imports torch

    if config.architecture is None:
        with _named(folder, called):
            check_weights(folder, config)
        warnings.warn(
            f"{called} holds your own network: whoever pulls it needs its code, for load(...,"
            " model=...)",
            stacklevel=3,
        )
        return
    with _named(folder, called):
        load_folder(folder)


@contextmanager
def _named(folder: Path, called: str) -> Iterator[None]:
    """Errors inside speak of `called`, not of the temporary folder."""
    try:
        yield
    except SJRobustError as error:
        raise SJRobustError(str(error).replace(str(folder), called)) from None


def _checked_here(staged: Path) -> str:
    """What a dry run knows without the Hub."""
    files = own_files(staged)
    size = sum((staged / path).stat().st_size for path in files)
    return (
        f"only the local checks were made, and passed ({len(files)} files, {size:,} bytes, for"
        f" {_tag(read_config(staged))}: {', '.join(files)})"
    )


def _look(api: HfApi, name: HubName) -> _Remote:
    """What is on the Hub now; a branch that is not there yet starts from main."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        try:
            info = api.model_info(
                name.repo, revision=name.revision, files_metadata=True, timeout=ASKING
            )
        except RevisionNotFoundError:
            info = api.model_info(name.repo, files_metadata=True, timeout=ASKING)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return _Remote(None, False, {})
    files = {
        item.rfilename: Listed(
            int(item.size or 0), item.lfs.sha256 if item.lfs else None, item.blob_id
        )
        for item in info.siblings or []
        if is_own(item.rfilename)
    }
    return _Remote(str(info.sha), bool(info.private), files)


def _changes(staged: Path, remote: _Remote) -> tuple[Change, ...]:
    changes = []
    for path in own_files(staged):
        listed = remote.files.get(path)
        state: State = (
            "new" if listed is None else "same" if listed.matches(staged / path) else "changed"
        )
        changes.append(Change(path, state, (staged / path).stat().st_size))
    gone = sorted(remote.files.keys() - {change.path for change in changes})
    return (*changes, *(Change(path, "deleted", remote.files[path].size) for path in gone))


def _check_not_newer(
    source: Path, name: HubName, remote: _Remote, changes: tuple[Change, ...], force: bool
) -> None:
    """Refuse to replace what this folder does not come from. What is equal, or only added, takes
    nothing away."""
    if force or all(change.state in ("new", "same") for change in changes):
        return
    origin = read_origin(origin_path(source, name))
    if origin is not None and (without_login(origin.endpoint), origin.repo, origin.commit) == (
        address(),
        name.repo,
        remote.head,
    ):
        return
    same = origin is not None and origin.repo == name.repo
    known = (
        f"this folder is of {origin.commit[:8]}"
        if origin is not None and same
        else "this folder was not pulled from there"
    )
    head = str(remote.head)[:8]
    raise SJRobustError(
        f"{name} is at commit {head} and {known}: pull it and look, or replace it with force=True"
        " (--force)"
    )


def _send(
    api: HfApi,
    name: HubName,
    staged: Path,
    config: Config,
    remote: _Remote,
    changes: tuple[Change, ...],
    private: bool,
) -> str:
    """Make what is missing of repository, branch, commit and tag; returns the commit that holds the
    checkpoint."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    if api.token is None and get_token() is None:
        raise SJRobustError(
            "pushing needs a login: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    head = remote.head
    if head is None:
        api.create_repo(name.repo, private=private, exist_ok=True)
        head = api.model_info(name.repo, timeout=ASKING).sha
    if name.revision and name.revision != "main":
        api.create_branch(name.repo, branch=name.revision, exist_ok=True)
    commit = str(head)
    if any(change.state != "same" for change in changes):
        operations = [
            (
                CommitOperationDelete(path)
                if state == "deleted"
                else CommitOperationAdd(path, staged / path)
            )
            for path, state in ((change.path, change.state) for change in changes)
            if state != "same"
        ]
        message = f"{config.name or staged.name}, weights {config.weights.sha256[:12]}"
        info = api.create_commit(
            name.repo,
            operations,
            commit_message=message,
            revision=name.revision,
            parent_commit=head,
        )
        commit = str(info.oid)
    api.create_tag(name.repo, tag=_tag(config), revision=commit, exist_ok=True)
    return commit


def _tag(config: Config) -> str:
    return f"weights-{config.weights.sha256[:12]}"


def _result(
    name: HubName,
    config: Config,
    commit: str | None,
    changes: tuple[Change, ...],
    *,
    created: bool,
    dry_run: bool,
) -> PushResult:
    return PushResult(
        repo=name.repo,
        url=f"{address()}/{name.repo}",
        revision=name.revision or "main",
        commit=commit,
        tag=_tag(config),
        created=created,
        dry_run=dry_run,
        changes=changes,
    )
