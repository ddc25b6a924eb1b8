"""Which commit on the Hub a checkpoint folder comes from, and which files a checkpoint may consist of."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sj_robust.errors import SJRobustError
from sj_robust.files import cache_folder, write_atomic, zoo_root
from sj_robust.hub.config import FIGURES, FILES, ORIGIN, first_error, parse_json, read_config
from sj_robust.hub.remote import HubName

_FIGURE = re.compile(rf"{FIGURES}/[A-Za-z0-9][A-Za-z0-9_\-]{{0,95}}\.(png|svg)")


class Origin(BaseModel):
    """`.sj_robust.json`: the repository and commit that a folder was last pulled from or pushed as. `push` compares it with the Hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        raise SJRobustError(f"{path} is not a valid record of where this comes from ({first_error(error)}): delete it") from None


def write_origin(path: Path, origin: Origin) -> None:
    """Write the record, whole or not at all."""
    write_atomic(path, origin.model_dump_json(indent=2) + "\n")


def origin_path(folder: Path, name: HubName) -> Path:
    """Where the record of a folder lies: in it, but for the zoo's folders, which belong to the package, in the cache folder."""
    if zoo_root().resolve() in folder.resolve().parents:
        return cache_folder() / "pushed" / f"{name.repo.replace('/', '--')}.json"
    return folder / ORIGIN


def is_own(path: str) -> bool:
    """Whether `path`, with / between its parts, is a file that a checkpoint consists of. All others are neither fetched nor sent."""
    return path in FILES - {FIGURES, ORIGIN} or _FIGURE.fullmatch(path) is not None


def own_files(folder: Path) -> list[str]:
    """The checkpoint's own files in a folder, sorted, with / between their parts."""
    found = (path.relative_to(folder).as_posix() for pattern in ("*", f"{FIGURES}/*") for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if is_own(path))


def copy_own_files(source: Path, target: Path) -> None:
    """Copy the checkpoint's own files, as files even where they are links."""
    for path in own_files(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)


def check_replaceable(folder: Path) -> None:
    """Only a checkpoint of ours may be replaced: a folder with anything else in it is somebody's data. Raises SJRobustError."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SJRobustError(f"{folder} is a file, expected a folder to put the checkpoint in: choose another path")
    entries = sorted(entry.name for entry in folder.iterdir())
    if foreign := [entry for entry in entries if entry not in FILES]:
        some = "; ".join(foreign[:3]) + (f"; and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise SJRobustError(f"{folder} holds files that are not a checkpoint's ({some}) and is kept: choose another folder")
    if entries:
        try:
            read_config(folder)
        except SJRobustError as error:
            raise SJRobustError(f"{folder} is not a checkpoint of sj-robust and is kept ({error}): choose another folder") from None


def git_blob_sha1(path: Path) -> str:
    """The hash by which git names a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
