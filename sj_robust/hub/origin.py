"""Which commit on the Hub a checkpoint folder comes from, and which files a checkpoint may consist
of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from sj_robust.checkpoint.config import (
    ORIGIN,
    parse_json,
)
from sj_robust.errors import SJRobustError
from sj_robust.files import cache_folder, write_atomic, zoo_root
from sj_robust.hub.remote import HubName
from sj_robust.settings import Strict, first_error


class Origin(Strict):
    """`.sj_robust.json`: the repository and commit that a folder was last pulled from or pushed as.
    `push` compares it with the Hub."""

    format_version: Literal[1] = 1
    endpoint: Annotated[str, Field(max_length=300)]
    repo: Annotated[str, Field(max_length=193)]
    revision: Annotated[str, Field(max_length=200)]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


def read_origin(path: Path) -> Origin | None:
    """The record at `path`, None where there is none. Raises SJRobustError where it is damaged."""
    if not path.exists():
        return None
    try:
        return Origin.model_validate(parse_json(path, 1 << 16))
    except ValidationError as error:
        raise SJRobustError(
            f"{path} is not a valid record of where this comes from ({first_error(error)}):"
            " delete it"
        ) from None


def write_origin(path: Path, origin: Origin) -> None:
    """Write the record, whole or not at all."""
    write_atomic(path, origin.model_dump_json(indent=2) + "\n")


def origin_path(folder: Path, name: HubName) -> Path:
    """Where the record of a folder lies: in it, but for the zoo's folders, which belong to the
    package, in the cache folder."""
    if zoo_root().resolve() in folder.resolve().parents:
        return cache_folder() / "pushed" / f"{name.repo.replace('/', '--')}.json"
    return folder / ORIGIN


def git_blob_sha1(path: Path) -> str:
    """The hash by which git names a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
