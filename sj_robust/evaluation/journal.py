"""What an evaluation has done so far, on disk, so that a killed one goes on where it stopped and
shards can be put together."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sj_robust.errors import SJRobustError
from sj_robust.evaluation.identity import differing
from sj_robust.evaluation.judge import Passes
from sj_robust.evaluation.starts import Starts
from sj_robust.files import write_atomic
from sj_robust.signals import deferred_signals

_VERSION = 4
_SAVE_SECONDS, _SAVE_SHARE = 2.0, 0.05  # between two saves; of the time, where saving is slow


class UnitKey(NamedTuple):
    """Which attack through which view at which eps (as `eps_name` writes it)."""

    eps: str
    attack: str
    view: str


@dataclass
class Unit:
    """One attack through one view at one eps: the images it was given, those that fell, and what
    that cost."""

    seen: list[int] = field(default_factory=list)
    fallen: list[int] = field(default_factory=list)
    seconds: float = 0.0
    forward: int = 0
    backward: int = 0

    def add(self, other: Unit) -> None:
        """Put in what another process or session did; what both did counts once."""
        new = set(other.seen) - set(self.seen)
        if new or not other.seen:
            self.seen += sorted(new)
            self.fallen += [image for image in other.fallen if image in new]
            self.seconds, self.forward, self.backward = (
                self.seconds + other.seconds,
                self.forward + other.forward,
                self.backward + other.backward,
            )


Units = dict[UnitKey, Unit]


@dataclass
class Journal:
    """Units by their keys. `key` is everything that decides the outcome: a file with another key is
    refused and kept; one whose content is not what was written counts for nothing.

    Without a path nothing is kept. Each process of several writes `path`.rankN beside it, and into
    it what it did itself in this session or an earlier one, so that no cost is in two files.
    `units` is all that is known, `done` what this process did since it opened. `starts`, where
    later units start from what earlier ones found, is kept in the same file, so that the two cannot
    be at odds.
    """

    path: Path | None
    key: dict[str, Any]
    units: Units = field(default_factory=dict)
    done: Units = field(default_factory=dict)
    starts: Starts | None = None
    _before: Units = field(default_factory=dict)
    _next: float = 0.0  # of time.monotonic(), when to save again

    @classmethod
    def open(
        cls,
        path: Path | None,
        key: dict[str, Any],
        rank: int | None = None,
        starts: Starts | None = None,
    ) -> Journal:
        key = json.loads(json.dumps({"version": _VERSION, **key}))
        own = path if path is None or rank is None else Path(f"{path}.rank{rank}")
        journal = cls(own, key, starts=starts)
        if path is not None:
            for file in journal_files(path):
                if (found := _read(file)) is None:
                    continue
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    # one without a digest was begun before there was any
                    whole = found.get("digest") in (None, _digest(found["units"], found["starts"]))
                    # the classes seen, once noted as well, decide which images are attacked, and
                    # nothing of how: another processor may round one of them to another class
                    theirs = {part: it for part, it in found["key"].items() if part != "predicted"}
                    if whole and theirs != key and found["units"]:
                        raise SJRobustError(
                            f"{file} keeps what another evaluation has done"
                            f" (not the same: {', '.join(differing(theirs, key))}): name another"
                            " file, or remove it"
                        )
                    if whole and theirs == key:
                        units = {UnitKey(*name): Unit(**unit) for name, unit in found["units"]}
                        kept = starts and Starts.from_json(starts.norm, found["starts"])
                        journal.merge(units)
                        if starts and kept:
                            starts.merge(kept)
                        if file == journal.path:
                            journal._before = units
        return journal

    def merge(self, units: Units) -> None:
        """Put in what another process or session did."""
        _merge(self.units, units)

    def unit(self, key: UnitKey) -> Unit:
        return self.units.setdefault(key, Unit())

    def missing(self, key: UnitKey, given: Tensor) -> Tensor:
        """Those of the images `given` int64 [n] that the unit has not seen."""
        return given[~torch.isin(given, torch.tensor(self.unit(key).seen, dtype=given.dtype))]

    def work(
        self,
        key: UnitKey,
        batches: Iterable[tuple[Tensor, Tensor, Tensor]],
        passes: Passes,
        attack: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Callable[[], None]]],
    ) -> None:
        """Run `attack(indices, x, y)` → which fell, bool [n], and how to note its images in
        `starts`, batch by batch, and note each. `passes` counts what it costs."""
        for chosen, x, y in batches:
            started, before = time.monotonic(), (passes.forward, passes.backward)
            hit, note = attack(chosen, x, y)
            piece = Unit(
                chosen.tolist(),
                chosen[hit].tolist(),
                time.monotonic() - started,
                passes.forward - before[0],
                passes.backward - before[1],
            )
            # all or nothing: a unit that was noted by half would start from its own result
            with deferred_signals():
                for units in (self.units, self.done):
                    _merge(units, {key: piece})
                note()
            if time.monotonic() > self._next:
                self.save()

    def save(self) -> None:
        started = time.monotonic()
        if self.path is not None:
            own: Units = {}
            for part in (self._before, self.done):
                _merge(own, part)
            units = [[key, vars(unit)] for key, unit in own.items() if unit.seen]
            starts = self.starts.to_json() if self.starts else {}
            content = {
                "key": self.key,
                "units": units,
                "starts": starts,
                "digest": _digest(units, starts),
            }
            write_atomic(self.path, json.dumps(content))
        self._next = time.monotonic() + max(
            _SAVE_SECONDS, (time.monotonic() - started) / _SAVE_SHARE
        )


def _digest(units: Any, starts: Any) -> str:
    """Of what was done: a digit that a bad disk or a hand has changed would go on as an outcome."""
    return hashlib.sha256(json.dumps([units, starts]).encode()).hexdigest()


def _merge(units: Units, others: Units) -> None:
    for name, unit in others.items():
        units.setdefault(name, Unit()).add(unit)


def _read(file: Path) -> dict[str, Any] | None:
    """What a file of notes holds, None where there is none. Raises SJRobustError for a file that
    is something else, which would be replaced."""
    if not file.exists():
        return None
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"key", "units"} <= found.keys():
            return found
    raise SJRobustError(
        f"{file} cannot be read as what an evaluation has done (damaged, or another file?): remove"
        " it to start anew, or name another file"
    )


def journal_files(path: Path) -> list[Path]:
    """Where the notes of an evaluation lie: in `path`, and those of its processes beside it."""
    return [path, *sorted(path.parent.glob(f"{path.name}.rank*"))]


def remove_journal(path: Path) -> None:
    """Remove the notes of an evaluation whose report is safe."""
    for file in journal_files(path):
        file.unlink(missing_ok=True)
