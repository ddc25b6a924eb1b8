"""The half of the API that changes repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from .routes import ID, Answer, Request, route
from .store import File, Refused, Repository, wants_lfs

if TYPE_CHECKING:
    from .hub import TestHub


@route("POST", r"/api/repos/create")
def create(hub: TestHub, request: Request, user: str | None) -> Answer:
    wish = request.json()
    owner = wish.get("organization") or user
    if not hub.store.may_write(user, owner or ""):
        raise Refused(
            403 if user else 401,
            "",
            f"You don't have the rights to create a model under the namespace {owner!r}",
        )
    name = f"{owner}/{wish['name']}"
    if name in hub.store.repositories:
        return Answer(
            {"error": "You already created this model repo", "url": f"{hub.endpoint}/{name}"},
            status=409,
        )
    # clients before 2.0 say it in the older word
    private = wish.get("visibility") == "private" or wish.get("private") is True
    hub.create(name, private=private, by=str(user))
    return Answer({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})


@route("POST", r"/api/validate-yaml")
def validate_yaml(hub: TestHub, request: Request, user: str | None) -> Answer:
    if error := _card_error(request.json()["content"]):
        return Answer({"errors": [{"message": error}], "warnings": []}, status=400)
    return Answer({"errors": [], "warnings": []})


@route("POST", rf"/api/models/{ID}/preupload/(?P<revision>[^/]+)")
def preupload(hub: TestHub, request: Request, user: str | None, id: str, revision: str) -> Answer:
    present = _writable(hub, user, id).at(revision).files
    answers = []
    for file in request.json()["files"]:
        lfs = wants_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        old = present.get(file["path"])
        answers.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
                "oid": old.etag if old else None,
            }
        )
    return Answer({"files": answers})


@route("POST", rf"/{ID}\.git/info/lfs/objects/batch")
def lfs_batch(hub: TestHub, request: Request, user: str | None, id: str) -> Answer:
    _writable(hub, user, id)
    objects = []
    for wanted in request.json()["objects"]:
        found = {"oid": wanted["oid"], "size": wanted["size"]}
        # the client takes a null for actions, so the key is left out
        if wanted["oid"] not in hub.store.lfs:
            found["actions"] = {
                "upload": {"href": f"{hub.endpoint}/lfs/upload/{wanted['oid']}"},
                "verify": {"href": f"{hub.endpoint}/lfs/verify"},
            }
        objects.append(found)
    return Answer({"transfer": "basic", "objects": objects})


@route("PUT", r"/lfs/upload/(?P<oid>[0-9a-f]{64})")
def lfs_upload(hub: TestHub, request: Request, user: str | None, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "", "the content does not have that sha256")
    hub.store.lfs[oid] = request.body
    return Answer(b"", headers={"ETag": f'"{oid}"'})


@route("POST", r"/lfs/verify")
def lfs_verify(hub: TestHub, request: Request, user: str | None) -> Answer:
    wanted = request.json()
    if len(hub.store.lfs.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refused(404, "", "no such object, or of another size")
    return Answer({})


@route("POST", rf"/api/models/{ID}/commit/(?P<revision>[^/]+)")
def commit(hub: TestHub, request: Request, user: str | None, id: str, revision: str) -> Answer:
    repository = _writable(hub, user, id)
    header: dict[str, Any] = {}
    changes: dict[str, File | None] = {}
    for line in request.body.splitlines():
        item = json.loads(line)
        kind, value = item["key"], item["value"]
        if kind == "header":
            header = value
        elif kind == "file":
            changes[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
        elif kind == "lfsFile":
            if value["oid"] not in hub.store.lfs:
                raise Refused(400, "", f"LFS object {value['oid']} was not uploaded")
            changes[value["path"]] = File(hub.store.lfs[value["oid"]], lfs=True)
        elif kind in ("deletedFile", "deletedFolder"):
            changes[value["path"] if kind == "deletedFile" else value["path"].rstrip("/") + "/"] = (
                None
            )
    if any(part in ("", ".", "..") for path in changes for part in path.rstrip("/").split("/")):
        raise Refused(400, "", "invalid path")
    card = changes.get("README.md")
    if card and (error := _card_error(card.content.decode())):
        raise Refused(400, "", error)
    made = repository.commit(
        changes,
        header.get("summary", ""),
        header.get("description", ""),
        branch=revision,
        author=str(user),
        parent=header.get("parentCommit"),
    )
    return Answer(
        {
            "success": True,
            "commitOid": made.sha,
            "commitUrl": f"{hub.endpoint}/{id}/commit/{made.sha}",
            "hookOutput": "",
        }
    )


@route("POST", rf"/api/models/{ID}/tag/(?P<revision>[^/]+)")
def tag(hub: TestHub, request: Request, user: str | None, id: str, revision: str) -> Answer:
    repository, name = _writable(hub, user, id), request.json()["tag"]
    if name in repository.tags:
        raise Refused(409, "", "Tag reference exists already")
    repository.tags[name] = repository.at(revision).sha
    return Answer({})


@route("DELETE", rf"/api/models/{ID}/tag/(?P<name>[^/]+)")
def delete_tag(hub: TestHub, request: Request, user: str | None, id: str, name: str) -> Answer:
    if _writable(hub, user, id).tags.pop(name, None) is None:
        raise Refused(404, "RevisionNotFound", "no such tag")
    return Answer({})


@route("POST", rf"/api/models/{ID}/branch/(?P<name>[^/]+)")
def branch(hub: TestHub, request: Request, user: str | None, id: str, name: str) -> Answer:
    repository = _writable(hub, user, id)
    if name in repository.branches:
        raise Refused(409, "", "Reference already exists")
    repository.branches[name] = repository.at(request.json().get("startingPoint") or "main").sha
    return Answer({})


def _writable(hub: TestHub, user: str | None, id: str) -> Repository:
    repository = hub.store.find(id, user)
    if not hub.store.may_write(user, repository.owner):
        raise Refused(403 if user else 401, "", "You are not allowed to write to this repository")
    return repository


def _card_error(text: str) -> str:
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return ""
    try:
        card = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        return f"Invalid YAML: {str(error).splitlines()[0]}"
    if not isinstance(card, dict):
        return "metadata must be an object"
    base = card.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", str(base)):
        return f'"base_model" with value {base!r} is not valid'
    return ""
