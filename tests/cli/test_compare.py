"""`sj-robust compare`: a table, Markdown, JSON and a page, from zoo models and folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import ANN, SNN, upload

from sj_robust import list_models
from sj_robust.compare import checks_word, energy
from sj_robust.compare import compare as compare_models

ZOO = [entry.name for entry in list_models()]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of stderr that names a failure."""
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.removeprefix("sj-robust: ").rstrip()


def test_the_table_says_what_the_comparison_found(cli: Cli) -> None:
    done, found = cli("compare", *ZOO), compare_models(ZOO)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    table = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│ ")
    ]
    rows = [cells for cells in table if cells[0]]  # the others hold the intervals
    assert len(rows) == len(found.rows)
    for cells, row in zip(rows, found.rows, strict=True):
        assert cells[:2] == [str(row.rank or "–"), row.name]
        assert cells[-1] == checks_word(row)
        raised = ",".join(map(str, row.marks.robust)).translate(
            str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹˒")
        )
        figures = [row.at(eps) for eps in found.columns]
        assert cells[-2] == ("–" if row.microjoules is None else energy(row))
        assert cells[-2 - len(figures) : -2] == [
            f"{100 * cell.value:.1f} %{raised}" if cell else "not measured" for cell in figures
        ]
    after = lines[next(number for number, line in enumerate(lines) if line.startswith("└")) + 1 :]
    assert after[:2] == found.about()
    assert [line.split(" ", 1)[1] for line in after[2:]] == found.footnotes


def test_markdown_and_json_are_the_same_comparison(cli: Cli) -> None:
    markdown, content = cli("compare", *ZOO, "--markdown"), cli("compare", *ZOO, "--json")
    assert (markdown.returncode, content.returncode) == (0, 0)
    found = json.loads(content.stdout)
    table = [line for line in markdown.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(found["rows"])
    assert len({line.count("|") for line in table}) == 1
    for line, row in zip(table[2:], found["rows"], strict=True):
        assert row["name"] in line
        assert f"{100 * row['clean']['value']:.1f} %" in line
    assert markdown.stdout.count("\n1. ") == bool(found["footnotes"])
    assert cli("compare", *ZOO, "--json").stdout == content.stdout


def test_the_page_is_written_beside_the_table(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "compare.html"
    done = cli("compare", *ZOO, "--html", page)
    assert (done.returncode, done.stderr) == (0, f"page: {page}\n")
    assert ZOO[0] in done.stdout
    assert page.read_text().startswith("<!doctype html>\n")
    assert [path.name for path in page.parent.iterdir()] == ["compare.html"]


def test_a_folder_without_evaluation_is_not_measured_and_its_name_is_not_obeyed(
    cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "[red]\x1b[31mmine"
    folder.mkdir()
    measured = next(entry for entry in list_models() if entry.results)
    shutil.copy(measured.folder / "config.json", folder)
    done = cli("compare", folder, measured.name)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "mine" in line)
    assert r"[red]\x1b[31mmine" in line
    # clean, every eps, checks
    assert line.count("not measured") == 2 + len(measured.results[0].robust)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("name", ["resnet21-snn", "no/such/folder"])
def test_an_unknown_model_is_named(cli: Cli, name: str) -> None:
    assert name in failure(cli("compare", ZOO[0], name))


def test_a_page_that_cannot_be_written_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path, reason in (
        (tmp_path, "is a folder, expected a file"),
        (tmp_path / "file" / "page.html", "is a file, expected a folder"),
    ):
        assert f"{path if path == tmp_path else path.parent} {reason}" in failure(
            cli("compare", ZOO[0], "--html", path)
        )


def test_the_models_of_the_hub_beside_those_named(hub: Any, cli: Cli) -> None:
    upload(hub, SNN, "alice/snn")
    upload(hub, ANN, "bob/ann")
    upload(hub, SNN, "bob/gated", gated=True)
    broken = upload(hub, SNN, "bob/other-weights")
    config = json.loads((SNN / "config.json").read_text())
    config["weights"]["state_sha256"] = "0" * 64
    broken.put({"config.json": json.dumps(config).encode()})
    hub.create("bob/stranger").put({"README.md": b"---\ntags: [resnet]\n---\n"})
    done = cli("compare", SNN, "alice/snn", "--hub", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {SNN.name, "alice/snn", "bob/ann"}
    assert rows["alice/snn"]["robust"] == rows[SNN.name]["robust"]
    gated, other = done.stderr.splitlines()
    assert gated.startswith("bob/gated is left out: ") and "ask for access" in gated
    assert other.startswith("bob/other-weights is left out: the evaluation is of another model")
    weights = [
        request.path for request in hub.requests if request.path.endswith("model.safetensors")
    ]
    assert weights  # of the one that was named
    assert all(path.startswith("/alice/snn/") for path in weights)

    hub.fault("flip", "/bob/ann/resolve/.*/evaluation.json", times=None)
    shutil.rmtree(Path(os.environ["HF_HOME"]))
    done = cli("compare", "--hub", "--dataset", "cifar10")
    assert done.returncode == 0, done.stderr
    assert "alice/snn" in done.stdout and "bob/ann" not in done.stdout
    assert any(
        line.startswith("bob/ann is left out: ") and "arrived twice" in line
        for line in done.stderr.splitlines()
    )
    done = cli("compare", "--hub", "--dataset", "svhn")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No model has a recorded evaluation." in done.stdout
    hub.fault("drop", "/api/models", times=None)
    assert "cannot be reached" in failure(cli("compare", SNN, "--hub"))


@pytest.mark.parametrize(
    "args",
    [
        (),
        (ZOO[0], "--markdown", "--json"),
        (ZOO[0], "--html"),
        ("--dataset", "cifar10"),
        (ZOO[0], "--dataset", "cifar10"),
    ],
)
def test_wrong_usage_is_2(cli: Cli, args: tuple[str, ...]) -> None:
    done = cli("compare", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr
