"""Repositories as the Hub keeps them: content-addressed files, commits, branches, tags, and who may
see them."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".npz",
    ".png",
    ".jpg",
    ".pkl",
)
LFS_SIZE = 10 << 20


class Refused(Exception):
    """A request the Hub turns down: status, X-Error-Code, message, further headers."""

    def __init__(
        self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message or code)
        self.status, self.code, self.message, self.headers = (
            status,
            code,
            message or code,
            headers or {},
        )


def git_blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit. `oid` is git's: of the content, or of the pointer where the content lies
    in LFS."""

    content: bytes
    lfs: bool

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize"
            f" {self.size}\n".encode()
        )

    @property
    def oid(self) -> str:
        return git_blob_sha1(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


def wants_lfs(path: str, size: int, sample: bytes = b"") -> bool:
    return path.endswith(LFS_SUFFIXES) or size >= LFS_SIZE or b"\0" in sample


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repository:
    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def commit(
        self,
        changes: dict[str, File | None],
        title: str = "commit",
        message: str = "",
        branch: str = "main",
        author: str = "someone",
        parent: str | None = None,
    ) -> Commit:
        """Add a commit to a branch; None deletes a file, and a name ending in / a folder. `parent`,
        where given, has to be its head."""
        head = self.branches.get(branch)
        if branch != "main" and head is None:
            raise Refused(404, "RevisionNotFound", f"no branch {branch}")
        if parent is not None and parent != head:
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[head].files) if head else {}
        for path, content in changes.items():
            if content is not None:
                files[path] = content
            elif path.endswith("/"):
                files = {name: file for name, file in files.items() if not name.startswith(path)}
            elif files.pop(path, None) is None:
                raise Refused(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        tree = sorted((path, file.oid) for path, file in files.items())
        sha = hashlib.sha1(json.dumps([head, title, message, now, tree]).encode()).hexdigest()
        made = Commit(sha, head, title, message, author, now, files)
        self.commits[sha], self.branches[branch] = made, sha
        return made

    def at(self, revision: str) -> Commit:
        sha = (
            self.branches.get(revision)
            or self.tags.get(revision)
            or self.branches.get(revision.removeprefix("refs/heads/"))
            or revision
        )
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def history(self, revision: str) -> list[Commit]:
        found: list[Commit] = []
        commit: Commit | None = self.at(revision)
        while commit:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found

    def put(self, files: dict[str, bytes], **how: Any) -> Commit:
        """A commit of raw contents, past every check of the API: for what an honest client would
        not send."""
        return self.commit(
            {path: File(content, wants_lfs(path, len(content))) for path, content in files.items()},
            **how,
        )


class Store:
    """All repositories, LFS objects and accounts of a Hub."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}
        self.organisations: dict[str, set[str]] = {}
        self.lock = threading.RLock()

    def create(
        self, name: str, *, private: bool = False, gated: bool = False, by: str = "someone"
    ) -> Repository:
        if name in self.repositories:
            raise Refused(409, "", "You already created this model repo")
        repository = Repository(name, private=private, gated=gated)
        attributes = "".join(
            f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
        )
        repository.put({".gitattributes": attributes.encode()}, title="initial commit", author=by)
        self.repositories[name] = repository
        return repository

    def may_write(self, user: str | None, owner: str) -> bool:
        return user is not None and (user == owner or owner in self.organisations.get(user, set()))

    def find(self, name: str, user: str | None) -> Repository:
        """The repository, as far as `user` may know that it exists."""
        repository = self.repositories.get(name)
        if repository is None or (
            repository.private and not self.may_write(user, repository.owner)
        ):
            raise Refused(
                404 if user else 401,
                "RepoNotFound",
                "Repository not found" if user else "Invalid username or password.",
            )
        return repository

    def check_files_open(self, repository: Repository, user: str | None) -> None:
        """The files of a gated repository are for those who were let in; its description is for
        everyone."""
        if repository.gated and not (
            self.may_write(user, repository.owner) or user in repository.granted
        ):
            raise Refused(
                403 if user else 401, "GatedRepo", f"Access to model {repository.id} is restricted."
            )


def card_data(commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    parts = readme.content.decode(errors="replace").split("---\n", 2) if readme else []
    if len(parts) < 3 or parts[0]:
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def tags_of(card: dict[str, Any]) -> list[str]:
    """The tags the Hub computes from a card."""
    tags = [str(tag) for tag in card.get("tags") or []]
    tags += [str(card[key]) for key in ("library_name", "pipeline_tag") if card.get(key)]
    datasets = card.get("datasets") or []
    tags += [f"dataset:{name}" for name in ([datasets] if isinstance(datasets, str) else datasets)]
    if card.get("license"):
        tags.append(f"license:{card['license']}")
    if card.get("base_model"):
        tags += [
            f"base_model:{card['base_model']}",
            f"base_model:{card.get('base_model_relation', 'finetune')}:{card['base_model']}",
        ]
    return [*dict.fromkeys([*tags, "region:us"])]
