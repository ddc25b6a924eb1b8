"""What the stages of `sj-robust run` leave beside their outputs: from what each was made, and the
hashes of what it made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sj_robust.errors import SJRobustError
from sj_robust.files import sha256, write_atomic


def outputs(folder: Path, path: Path) -> dict[str, str]:
    """Hashes of what a stage made: the file `path`, or the checkpoint there; by names relative to
    `folder`."""
    files = [path] if path.is_file() else [path / "config.json", path / "model.safetensors"]
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def intact(folder: Path, recorded: dict[str, str] | None) -> bool:
    """Whether all recorded outputs are there as they were made."""
    return bool(recorded) and all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in (recorded or {}).items()
    )


def read_record(path: Path) -> dict[str, Any]:
    """The record at `path`; an empty one where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write it, whole or not at all."""
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def set_aside(paths: Sequence[Path], *, known: bool) -> None:
    """Rename what an earlier run with other settings made to NAME.previous, in place of an older
    one."""
    for path in paths:
        if path.exists():
            if not known:
                raise SJRobustError(
                    f"{path} exists and was not made by `sj-robust run`: use another folder, or"
                    " move it away"
                )
            previous = path.with_name(path.name + ".previous")
            if previous.is_dir():
                shutil.rmtree(previous)
            os.replace(path, previous)
