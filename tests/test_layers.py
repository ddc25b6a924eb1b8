"""Imports go one way: no file and no part of the package leads back to itself, not even by an
import inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sj_robust

ROOT = Path(sj_robust.__file__).parent
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in ROOT.rglob("*.py")
    if file.parent != ROOT or file.name != "__init__.py"  # the public names, imported on use
}


def imported(source: str) -> Iterator[str]:
    """Modules of the package that a file imports when it runs."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []  # walked from here on without it
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sj_robust"):
            inner = [f"{node.module}.{name.name}" for name in node.names]
            names = [
                name if name.partition(".")[2] in MODULES else str(node.module) for name in inner
            ]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names if name.name.startswith("sj_robust")]
        short = [name.partition(".")[2] for name in names]
        yield from (name for name in short if name in MODULES)


def test_there_is_no_circle() -> None:
    modules = {
        name: set(imported(file.read_text(encoding="utf-8"))) - {name}
        for name, file in MODULES.items()
    }
    list(TopologicalSorter(modules).static_order())  # CycleError shows the circle
    parts: dict[str, set[str]] = {}
    for name, found in modules.items():
        part = name.partition(".")[0]
        parts.setdefault(part, set()).update({other.partition(".")[0] for other in found} - {part})
    order = list(TopologicalSorter(parts).static_order())
    assert order.index("neuron") < order.index("model") < order.index("conversion")
    assert order.index("evaluation") < order.index("threats") < order.index("training")
    assert order.index("checkpoint") < order.index("hub") < order.index("catalog")
    assert order.index("catalog") < order.index("cli")
