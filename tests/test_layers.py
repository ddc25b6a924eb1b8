"""Imports go one way: no part of the package leads back to itself, not even by an import inside a
function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sj_robust

ROOT = Path(sj_robust.__file__).parent


def imported(source: str) -> Iterator[str]:
    """What a file imports of the package when it runs: a.b for `from sj_robust.a.b import c`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []  # walked from here on without it
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sj_robust"):
            base = str(node.module).partition(".")[2]
            yield from (f"{base}.{name.name}".strip(".") for name in node.names)
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[2] for name in node.names if "sj_" in name.name)


def test_there_is_no_circle_of_packages() -> None:
    parts: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        part = file.relative_to(ROOT).with_suffix("").parts[0]
        if part == "__init__":
            continue  # the public names, each imported when it is asked for
        found = {name.split(".")[0] for name in imported(file.read_text(encoding="utf-8"))}
        parts.setdefault(part, set()).update(found - {part})
    known = {
        part: {name for name in found if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()}
        for part, found in parts.items()
    }
    order = list(TopologicalSorter(known).static_order())  # CycleError shows the circle
    assert order.index("neuron") < order.index("model") < order.index("conversion")
    assert order.index("checkpoint") < order.index("hub") < order.index("catalog")
    assert order[-1] == "__main__" or "cli" in order[-2:]
