"""What an evaluation has done so far, on disk, so that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sj_robust.evaluate.bench import Passes
from sj_robust.files import write_atomic

_VERSION = 1


@dataclass
class Journal:
    """Units of work (one attack through one view at one eps) and the images that fell to each.

    `key` is everything that decides the outcome: a file with another key, or a damaged one, counts for nothing. Without a
    path nothing is kept. `seconds` and `passes` are what the finished units cost, over all sessions.
    """

    path: Path | None
    key: dict[str, Any]
    units: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    passes: Passes = field(default_factory=Passes)

    @classmethod
    def open(cls, path: Path | None, key: dict[str, Any]) -> Journal:
        key = json.loads(json.dumps({"version": _VERSION, **key}))
        journal = cls(path, key)
        if path is not None and path.is_file():
            try:
                found = json.loads(path.read_text())
                if found["key"] == key:
                    units = {str(unit): [int(image) for image in fallen] for unit, fallen in found["units"].items()}
                    journal = cls(path, key, units, float(found["seconds"]), Passes(*map(int, found["passes"])))
            except (ValueError, KeyError, TypeError, AttributeError):
                pass
        return journal

    def broken(self, unit: str, given: Tensor, passes: Passes, attack: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Which of the images `given` int64 [n] fall, bool [n], by `attack` or from the file; and whether it was from the file.

        `passes` counts what goes through the model meanwhile.
        """
        if unit in self.units:
            return torch.isin(given, torch.tensor(self.units[unit], dtype=given.dtype)), True
        started, before = time.monotonic(), (passes.forward, passes.backward)
        hit = attack()
        self.units[unit] = given[hit].tolist()
        self.seconds += time.monotonic() - started
        self.passes.forward += passes.forward - before[0]
        self.passes.backward += passes.backward - before[1]
        if self.path is not None:
            state = {"key": self.key, "units": self.units, "seconds": self.seconds, "passes": [self.passes.forward, self.passes.backward]}
            write_atomic(self.path, json.dumps(state))
        return hit, False
