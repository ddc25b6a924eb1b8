"""The stages of `sj-robust run`, and what each leaves beside its output: from what it was made, and
the hashes of what it made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sj_robust.data import ImageDataset
from sj_robust.distributed import Team
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.journal import journal_files
from sj_robust.files import sha256, write_atomic
from sj_robust.recipes.steps import training_folder

JOURNAL = ".partial"  # in place of a report's .json, what its evaluation has done so far


class Ledger:
    """Which stages are there in `folder` already, unchanged, and which have to be made.

    `states` says of each that was asked for whether it was "kept" or "made". Of several processes
    the first one decides, writes and speaks (`say`, a line per stage).
    """

    def __init__(self, folder: Path, team: Team, say: Callable[[str], None]) -> None:
        self.folder, self.team, self.say = folder, team, say
        self.states: dict[str, str] = {}

    def stage(
        self,
        name: str,
        made_from: dict[str, Any],
        work: Callable[[Path], None],
        *,
        trains_on: ImageDataset | None = None,
        shared: bool = False,
        ready: Callable[[], object] = lambda: None,
    ) -> Path:
        """Let `work` make `name` in the folder, unless it is there and was made from the same; the
        path of it.

        `shared`: by all processes, of which the first one writes; else by that one alone. `ready`:
        by all of them, before what other settings made is put aside: a mistake costs nothing then.
        """
        path = self.folder / name
        record_path = path.with_name(path.name + ".stage.json")
        made_from = json.loads(
            json.dumps({**made_from, "data": trains_on.fingerprint if trains_on else None})
        )
        record = {
            "key": hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest(),
            "made_from": made_from,
        }
        state = self.team.from_first(self._state(record_path, record) if self.team.first else "")
        self.states[name] = state
        if self.team.first:
            self.say(f"{name}: {'making' if state == 'made' else state}")
        if state == "made":
            ready()
            if self.team.first:
                self._begin(path, record_path, record)
            self.team.from_first(None)  # nobody begins before the way is free
            if shared or self.team.first:
                work(path)
            if self.team.first:
                _write(record_path, {**record, "outputs": _outputs(self.folder, path)})
            self.team.from_first(None)  # nobody reads what is not there yet
        return path

    def _state(self, record_path: Path, record: dict[str, Any]) -> str:
        """Whether the stage is "kept" or has to be "made"."""
        earlier = _read(record_path)
        same = earlier.get("key") == record["key"]
        return "kept" if same and _intact(self.folder, earlier.get("outputs")) else "made"

    def _begin(self, path: Path, record_path: Path, record: dict[str, Any]) -> None:
        """Put what other settings made out of the way."""
        earlier = _read(record_path)
        if earlier.get("key") != record["key"]:
            notes = journal_files(path.with_suffix(JOURNAL))
            for aside in _set_aside([path, training_folder(path), *notes], known=bool(earlier)):
                self.say(f"what other settings made is kept: {aside}")
            _write(record_path, record)


def _outputs(folder: Path, path: Path) -> dict[str, str]:
    """Hashes of what a stage made: the file `path`, or the checkpoint there; by names relative to
    `folder`."""
    files = [path] if path.is_file() else [path / "config.json", path / "model.safetensors"]
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def _intact(folder: Path, recorded: dict[str, str] | None) -> bool:
    """Whether all recorded outputs are there as they were made."""
    return bool(recorded) and all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in (recorded or {}).items()
    )


def _read(path: Path) -> dict[str, Any]:
    """The record at `path`; an empty one where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(path: Path, record: dict[str, Any]) -> None:
    """Write it, whole or not at all."""
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def _set_aside(paths: Sequence[Path], *, known: bool) -> list[Path]:
    """Rename what an earlier run with other settings made to NAME.previous, in place of an older
    one; the new names."""
    moved = []
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
            moved.append(previous)
    return moved
