"""What a task of scripts/on_gpu.py found, as JSON in a file that is whole at any time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sj_robust.files import write_atomic

BEGAN = time.monotonic()  # before a task imports torch, which takes some of its time


class Tally:
    """Comparisons made, how many failed, the first failure in words, and further facts; `keep`
    writes all of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.compared, self.failed = path, 0, 0
        self.first_failure: str | None = None
        self.facts: dict[str, Any] = {}

    def check(self, equal: bool, line: str) -> None:
        self.compared += 1
        if not equal:
            self.failed += 1
            self.first_failure = self.first_failure or line

    def keep(self, **facts: Any) -> None:
        self.facts |= facts
        content: dict[str, Any] = dict(self.facts)
        if self.compared:
            content = {
                "compared": self.compared,
                "equal": self.compared - self.failed,
                "failed": self.failed,
                "first_failure": self.first_failure,
                **content,
            }
        write_atomic(self.path, json.dumps(content, indent=1))


def main(tasks: dict[str, Callable[[Tally, argparse.Namespace], None]], about: str | None) -> None:
    """Run the task that the command line names; its file is written even where it raises."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--work", type=Path, default=Path("."), help="folder for what is made")
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    tally = Tally(arguments.result)
    try:
        tasks[arguments.task](tally, arguments)
    except BaseException as error:
        tally.facts["error"] = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        tally.keep()
