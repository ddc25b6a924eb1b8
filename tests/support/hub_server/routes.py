"""The API: which request is answered with what. This half reads, `writing` writes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from .store import Commit, File, Refused, Repository, card_data, tags_of

if TYPE_CHECKING:
    from .hub import TestHub

ID = r"(?P<id>[\w.\-]+/[\w.\-]+)"


@dataclass
class Request:
    method: str
    path: str
    raw_path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        found = next(
            (value for key, value in self.headers.items() if key.lower() == "authorization"), None
        )
        return found.removeprefix("Bearer ") if found else None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    content: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # announced, where that is not the content's


Route = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def answer(hub: TestHub, request: Request) -> Answer:
    """Raises Refused for what the Hub turns down."""
    user = hub.store.tokens.get(request.token or "")
    if request.token and user is None:
        raise Refused(401, "", "Invalid credentials in Authorization header")
    method = "GET" if request.method == "HEAD" else request.method
    for wanted, pattern, function in ROUTES:
        # matched before unquoting, so that a branch such as feature%2Fx stays one part
        if wanted == method and (match := pattern.fullmatch(request.raw_path)):
            return function(
                hub,
                request,
                user,
                **{
                    key: unquote(value)
                    for key, value in match.groupdict().items()
                    if value is not None
                },
            )
    raise Refused(404, "", f"no route {request.method} {request.path}")


@route("GET", r"/api/whoami-v2")
def whoami(hub: TestHub, request: Request, user: str | None) -> Answer:
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    organisations = [
        {"name": name, "type": "org", "roleInOrg": "write"}
        for name in sorted(hub.store.organisations.get(user, ()))
    ]
    return Answer(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "orgs": organisations,
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "test", "role": "write"},
            },
        }
    )


@route("GET", r"/api/models")
def list_models(hub: TestHub, request: Request, user: str | None) -> Answer:
    query, found = request.query, []
    for repository in sorted(hub.store.repositories.values(), key=lambda repository: repository.id):
        if repository.private and not hub.store.may_write(user, repository.owner):
            continue
        facts = description(repository, repository.at("main"), query)
        if not set(query.get("filter", [])) | set(query.get("pipeline_tag", [])) <= set(
            tags_of(card_data(repository.at("main")))
        ):
            continue
        if query.get("author", [repository.owner]) != [repository.owner]:
            continue
        if query.get("search", [""])[0].lower() not in repository.id.lower():
            continue
        found.append(facts)
    limit = min(int(query.get("limit", ["1000"])[0]), hub.page_size)
    return page(hub, request, found, limit)


@route("GET", rf"/api/models/{ID}(?:/revision/(?P<revision>[^/]+))?")
def model_info(
    hub: TestHub, request: Request, user: str | None, id: str, revision: str = "main"
) -> Answer:
    repository = hub.store.find(id, user)
    return Answer(description(repository, repository.at(revision), request.query, complete=True))


@route("GET", rf"/api/models/{ID}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(
    hub: TestHub, request: Request, user: str | None, id: str, revision: str, folder: str = ""
) -> Answer:
    repository = hub.store.find(id, user)
    hub.store.check_files_open(repository, user)
    prefix, entries, folders = f"{folder}/" if folder else "", [], {}
    for path, file in sorted(repository.at(revision).files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            name = prefix + "/".join(parts[:depth])
            folders[name] = {
                "type": "directory",
                "oid": hashlib.sha1(name.encode()).hexdigest(),
                "size": 0,
                "path": name,
            }
        if len(parts) == 1 or request.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            entries.append(entry(path, file))
    top = [value for name, value in folders.items() if "/" not in name.removeprefix(prefix)]
    everything = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    return page(hub, request, [*(folders.values() if everything else top), *entries], hub.page_size)


@route("POST", rf"/api/models/{ID}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: TestHub, request: Request, user: str | None, id: str, revision: str) -> Answer:
    files = hub.store.find(id, user).at(revision).files
    return Answer(
        [entry(path, files[path]) for path in request.json().get("paths", []) if path in files]
    )


@route("GET", rf"/api/models/{ID}/refs")
def refs(hub: TestHub, request: Request, user: str | None, id: str) -> Answer:
    repository = hub.store.find(id, user)
    return Answer(
        {
            "branches": _refs("heads", repository.branches),
            "tags": _refs("tags", repository.tags),
            "converts": [],
        }
    )


@route("GET", rf"/api/models/{ID}/commits/(?P<revision>[^/]+)")
def commits(hub: TestHub, request: Request, user: str | None, id: str, revision: str) -> Answer:
    return Answer(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in hub.store.find(id, user).history(revision)
        ]
    )


@route("GET", rf"/{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(
    hub: TestHub, request: Request, user: str | None, id: str, revision: str, path: str
) -> Answer:
    repository = hub.store.find(id, user)
    hub.store.check_files_open(repository, user)
    found = repository.at(revision)
    headers = {"X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
    if path not in found.files:
        raise Refused(404, "EntryNotFound", "Entry not found", headers)
    file = found.files[path]
    if not file.lfs:
        return content(request, file.content, {**headers, "ETag": f'"{file.oid}"'})
    hub.store.lfs.setdefault(file.sha256, file.content)
    location = f"{hub.content_host}/lfs/objects/{file.sha256}?name={quote(path)}"
    return Answer(
        b"Found",
        status=302,
        headers={
            **headers,
            "Location": location,
            "X-Linked-Size": str(file.size),
            "X-Linked-Etag": f'"{file.sha256}"',
            "ETag": f'"{file.oid}"',
        },
    )


@route("GET", r"/lfs/objects/(?P<oid>[0-9a-f]{64})")
def lfs_object(hub: TestHub, request: Request, user: str | None, oid: str) -> Answer:
    if oid not in hub.store.lfs:
        raise Refused(404, "", "no such object")
    return content(request, hub.store.lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def content(request: Request, whole: bytes, headers: dict[str, str]) -> Answer:
    """All of a file, or the range that is asked for."""
    wanted = next((value for key, value in request.headers.items() if key.lower() == "range"), "")
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if not match:
        return Answer(whole, headers=headers)
    first, last = int(match[1]), min(int(match[2] or len(whole) - 1), len(whole) - 1)
    if first > last:
        raise Refused(416, "", "no such range", {"Content-Range": f"bytes */{len(whole)}"})
    return Answer(
        whole[first : last + 1],
        status=206,
        headers={**headers, "Content-Range": f"bytes {first}-{last}/{len(whole)}"},
    )


def entry(path: str, file: File) -> dict[str, Any]:
    lfs = (
        {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}}
        if file.lfs
        else {}
    )
    return {"type": "file", "oid": file.oid, "size": file.size, "path": path, **lfs}


def description(
    repository: Repository, commit: Commit, query: dict[str, list[str]], complete: bool = False
) -> dict[str, Any]:
    """What the Hub tells about a model; `expand` picks, and its evaluation results come as
    model-index, not in cardData."""
    card = card_data(commit)
    siblings = []
    for path, file in sorted(commit.files.items()):
        lfs = (
            {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}}
            if file.lfs
            else {}
        )
        siblings.append(
            {
                "rfilename": path,
                **({"size": file.size, "blobId": file.oid, **lfs} if "blobs" in query else {}),
            }
        )
    facts = {
        "author": repository.owner,
        "sha": commit.sha,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "tags": tags_of(card),
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "createdAt": commit.date,
        "cardData": {key: value for key, value in card.items() if key != "model-index"},
        "model-index": card.get("model-index"),
    }
    if "expand" in query:
        facts = {key: value for key, value in facts.items() if key in query["expand"]}
    elif not complete:
        facts = {
            key: value
            for key, value in facts.items()
            if key not in ("cardData", "model-index", "siblings", "sha", "author")
        }
    return {"id": repository.id, "modelId": repository.id, "_id": repository.id, **facts}


def page(hub: TestHub, request: Request, items: list[Any], size: int) -> Answer:
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if start + size < len(items):
        query = urlencode(
            [
                *(
                    (key, value)
                    for key, values in request.query.items()
                    if key != "cursor"
                    for value in values
                ),
                ("cursor", str(start + size)),
            ]
        )
        headers["Link"] = f'<{hub.endpoint}{request.raw_path}?{query}>; rel="next"'
    return Answer(items[start : start + size], headers=headers)


def _refs(kind: str, found: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
        for name, sha in sorted(found.items())
    ]
