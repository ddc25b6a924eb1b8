"""Which files a checkpoint may consist of, copying them and nothing else, and whether a folder may
be replaced."""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from sj_robust.checkpoint.config import (
    CARD,
    CONFIG,
    FIGURES,
    FILES,
    MAX_CONFIG_BYTES,
    MAX_TEXT_BYTES,
    ORIGIN,
    RECIPE,
    WEIGHTS,
    Config,
    read_config,
)
from sj_robust.errors import SJRobustError
from sj_robust.files import sha256
from sj_robust.phrases import few

MAX_FILES = 32  # of a checkpoint: a dozen, and its figures
MAX_FIGURE_BYTES = 8 << 20
_FIGURE = re.compile(rf"{FIGURES}/[A-Za-z0-9][A-Za-z0-9_\-]{{0,95}}\.(png|svg)")


def is_own(path: str) -> bool:
    """Whether `path`, with / between its parts, is a file that a checkpoint consists of. All others
    are neither fetched nor sent."""
    return path in FILES - {FIGURES, ORIGIN} or _FIGURE.fullmatch(path) is not None


def most_bytes(path: str) -> int:
    """How large a checkpoint's file called `path` may be at most."""
    if path.startswith(f"{FIGURES}/"):
        return MAX_FIGURE_BYTES
    return {
        WEIGHTS: 1 << 38,
        CONFIG: MAX_CONFIG_BYTES,
        CARD: MAX_CONFIG_BYTES,
        RECIPE: MAX_CONFIG_BYTES,
    }.get(path, MAX_TEXT_BYTES)


def own_files(folder: Path) -> list[str]:
    """The checkpoint's own files in a folder, sorted, with / between their parts."""
    return [path for path in _own_names(folder) if (folder / path).is_file()]


def _own_names(folder: Path) -> list[str]:
    """What lies in a folder under the names of a checkpoint's files, whatever it is."""
    found = (
        path.relative_to(folder).as_posix()
        for pattern in ("*", f"{FIGURES}/*")
        for path in folder.glob(pattern)
    )
    return sorted(path for path in found if is_own(path))


def copy_own_files(source: Path, target: Path, *, leave: bool) -> None:
    """Copy the checkpoint's own files, as files even where they are links; with `leave` to wherever
    these point.

    Without it a link may lead to another file of the folder, hidden ones aside, and in a snapshot
    of the Hub's cache to the blobs of that cache, but nowhere else. Raises SJRobustError for one
    that does, and for what is no file, too large or cannot be read.
    """
    for path in _own_names(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        most = most_bytes(path)
        try:
            with _open(source, path, leave=leave) as file, open(target / path, "wb") as copy:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise SJRobustError(
                        f"{source / path} is a folder, a pipe or a device: expected a file,"
                        " remove it"
                    )
                size = 0
                while chunk := file.read(1 << 20):
                    size += len(chunk)
                    if size > most:
                        raise SJRobustError(
                            f"{source / path} is larger than {most} bytes, no such file is written"
                            " by sj-robust: remove it"
                        )
                    copy.write(chunk)
        except OSError as error:
            advice = "expected a readable file, and room for a copy of it"
            raise SJRobustError(
                f"{source / path} cannot be copied ({error.strerror}): {advice}"
            ) from None


def _open(folder: Path, path: str, *, leave: bool) -> BinaryIO:
    """A file of the folder, opened. Its path is freed of links and judged, and that very path is
    opened without following any link: one that is put there in between is refused too."""
    wanted = folder / path
    try:
        found = wanted.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, until Python 3.13
        raise SJRobustError(
            f"{wanted} is a link to nothing that is there: put a file in its place, or remove it"
        ) from None
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    home = next(
        (home for home in (root, blobs) if home is not None and home in found.parents), None
    )
    if home is None and not leave:
        raise SJRobustError(
            f"{wanted} is reached by a link to {found}, outside of the folder: put a copy in its"
            " place, or remove it"
        )
    if (
        home == root
        and not leave
        and any(part.startswith(".") for part in found.relative_to(root).parts)
    ):
        raise SJRobustError(
            f"{wanted} is a link to the hidden {found}: put a copy in its place, or remove it"
        )
    # a pipe is not waited for
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if leave or home is None or os.open not in os.supports_dir_fd:
        return os.fdopen(os.open(found, flags), "rb")
    *folders, name = found.relative_to(home).parts
    unlinked, passing = (
        getattr(os, "O_NOFOLLOW", 0),
        getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0),
    )
    with ExitStack() as opened:
        at = os.open(home, passing | unlinked)
        opened.callback(os.close, at)
        for part in folders:
            at = os.open(part, passing | unlinked, dir_fd=at)
            opened.callback(os.close, at)
        return os.fdopen(os.open(name, flags | unlinked, dir_fd=at), "rb")


def check_replaceable(folder: Path) -> None:
    """Only a checkpoint of ours may be replaced: a folder with anything else in it is somebody's
    data. Raises SJRobustError."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SJRobustError(
            f"{folder} is a file, expected a folder to put the checkpoint in: choose another path"
        )
    entries = sorted(entry.name for entry in folder.iterdir())
    if foreign := [entry for entry in entries if entry not in FILES]:
        raise SJRobustError(
            f"{folder} holds files that are not a checkpoint's ({few(foreign, 3, '; ')})"
            " and is kept: choose another folder"
        )
    if entries:
        try:
            read_config(folder)
        except SJRobustError as error:
            raise SJRobustError(
                f"{folder} is not a checkpoint of sj-robust and is kept ({error}): choose another"
                " folder"
            ) from None


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
