"""The examples run, each in a process of its own, and their numbers hang together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LARGEST = 400_000  # bytes of a notebook with its pictures

# A notebook shows the value of a cell's last expression, as a picture where it has one.
CELLS = """
import ast, json, sys
names = {}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, cell["id"], "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        getattr(value, "_repr_png_", lambda: None)()
"""


def run(folder: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def percentages(text: str) -> list[float]:
    """The first of each line that has one."""
    return [float(found[1]) for found in re.finditer(r"^[^%\n]*? ([\d.]+) %", text, re.MULTILINE)]


@pytest.mark.slow
def test_load_and_attack(tmp_path: Path) -> None:
    found = percentages(run(tmp_path, EXAMPLES / "load_and_attack.py", "--images", 12))
    assert len(found) == 7
    assert found[0] > found[-1]
    assert found[-1] <= min(found)


@pytest.mark.slow
def test_convert_your_own(tmp_path: Path) -> None:
    out = run(tmp_path, EXAMPLES / "convert_your_own.py", "--epochs", 0.1, "--images", 8)
    assert [line[:22].strip() for line in out.splitlines()] == [
        "the ANN",
        "spiking, as converted",
        "spiking, finetuned",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_measure_spikingjelly(tmp_path: Path) -> None:
    out = run(tmp_path, EXAMPLES / "measure_spikingjelly.py", "--epochs", 2, "--images", 16)
    found = percentages(out)
    assert len(found) == 5
    assert found == sorted(found, reverse=True)  # the same images, more and more attacks
    assert found[0] > 100 / 10  # learnt something


@pytest.mark.slow
def test_publish_and_compare(tmp_path: Path) -> None:
    out = run(
        tmp_path, EXAMPLES / "publish_and_compare.py", "--images", 8, "--out", tmp_path / "out"
    )
    assert "only the local checks were made, and passed (5 files" in out
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("snn-t4.cifar10_linf_pgd", "snn-t2.cifar10_linf_pgd"))
    assert len(list((tmp_path / "out").glob("*/README.md"))) == 3


@pytest.mark.slow
def test_the_story_runs(tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(CELLS, encoding="utf-8")
    out = run(tmp_path, tmp_path / "cells.py", EXAMPLES / "story.ipynb")
    assert "SNN: truck (margin +" in out


def test_the_story_has_its_pictures_and_is_small() -> None:
    file = EXAMPLES / "story.ipynb"
    assert file.stat().st_size < LARGEST
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)


def test_every_example_is_listed_and_says_how_it_is_run() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [file for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")]
    assert len(files) == 5
    for file in files:
        assert f"[{file.name}]({file.name})" in listed
        if file.suffix == ".py":
            text = file.read_text(encoding="utf-8")
            assert text.startswith('"""') and f"python examples/{file.name}" in text
            assert 40 <= len(text.splitlines()) <= 90
