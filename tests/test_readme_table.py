"""The tables of models in README.md and docs/models.md are what the zoo's index says, and the
script that writes them touches nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sj_robust.checkpoint.zoo import list_models

ROOT = Path(__file__).resolve().parents[1]
BESIDE = "| kept of its ANN at | energy of its ANN"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "readme_table", ROOT / "scripts" / "readme_table.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def readme(script: Any, tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{script.BEGIN}\n{script.END}\n\n| another | table |\n")
    return path


def test_the_pages_of_this_repository_are_up_to_date(script: Any) -> None:
    script.main(["--check"])


def test_each_model_has_a_row_with_its_figures(script: Any, readme: Path) -> None:
    script.main([str(readme)])
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Title\n\n{script.BEGIN}\n| model | clean |")
    assert text.endswith(f" |\n{script.END}\n\n| another | table |\n")
    for entry in list_models():
        rows = [line for line in text.splitlines() if line.startswith(f"| `{entry.name}`")]
        assert len(rows) == len({results.n for results in entry.results})
        for results in entry.results:
            (row,) = [row for row in rows if f"| {results.n:,} of {results.dataset} |" in row]
            for point in (results.clean, *(() if results.named == "strong@1" else results.robust)):
                assert (
                    f"| {100 * point.value:.1f} % [{100 * point.low:.1f}, {100 * point.high:.1f}] |"
                    in row
                )
    script.main([str(readme), "--check"])


def test_a_selection_has_these_models_alone(script: Any, tmp_path: Path) -> None:
    names = "resnet20-snn-t4.cifar10_linf_pgd", "vgg6.cifar10_linf_trades_eps8"
    marker, path = "<!-- zoo table: {}\n{} -->".format(*names), tmp_path / "selection.md"
    path.write_text(f"{marker}\n{script.END}\n")
    script.main([str(path)])
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"{marker}\n| model |")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [names[1], names[0]]  # the ANN first
    assert "| 2/255: " in rows[1]  # of its ANN, which is not among them
    script.main([str(path), "--check"])


def test_a_selection_of_unknown_models_is_refused(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "selection.md"
    path.write_text(f"<!-- zoo table: resnet20.nowhere -->\n{script.END}\n")
    with pytest.raises(SystemExit, match=r"the zoo has no resnet20\.nowhere"):
        script.main([str(path)])


def test_a_table_that_is_out_of_date_fails_the_check_and_stays(script: Any, readme: Path) -> None:
    script.main([str(readme)])
    altered = readme.read_text(encoding="utf-8").replace(" % [", " % [9", 1)
    readme.write_text(altered, encoding="utf-8")
    with pytest.raises(SystemExit, match="not what the zoo says"):
        script.main([str(readme), "--check"])
    assert readme.read_text(encoding="utf-8") == altered


def test_protocols_are_columns_and_what_was_not_measured_is_a_dash(script: Any) -> None:
    entry = list_models()[0]
    results = entry.results[0].model_copy(update={"named": "strong@2"})
    paper = results.model_copy(update={"named": "paper@1", "robust": results.robust[-1:]})

    def with_results(*found: Any) -> Any:
        return entry.model_copy(update={"results": list(found)})

    header, _, both, one, none, other, other_images = script.table(
        [
            with_results(results, paper),
            with_results(paper),
            with_results(),
            with_results(results, paper.model_copy(update={"n": 64})),
        ]
    ).splitlines()
    radius, measured = f"{255 * paper.robust[0].eps:g}/255", len(results.robust)
    assert header.endswith(f"| {radius}, strong@2 | {radius}, paper@1 {BESIDE} | images |")
    assert len({row.count("|") for row in (header, both, one, none, other, other_images)}) == 1
    assert [row.count(" – ") for row in (both, one, none, other, other_images)] == [
        0,
        measured,
        measured + 2,
        1,
        measured,
    ]
    assert other_images.endswith("| 64 of " + results.dataset + " |")
    # a version that others have broken
    broken = with_results(results.model_copy(update={"named": "strong@1"}))
    assert script.table([broken]).splitlines()[0] == f"| model | clean {BESIDE} | images |"


def test_a_spiking_network_stands_beside_its_ann(script: Any) -> None:
    models = {entry.name: entry for entry in list_models()}
    snn, ann = models["resnet20-snn-t4.cifar10_linf_pgd"], models["resnet20.cifar10_linf_pgd"]
    _, _, first, second = script.table([snn, ann]).splitlines()[:4]
    found, of_ann = (entry.results[0] for entry in (snn, ann))
    shares = [
        f"{255 * point.eps:g}/255: {100 * point.value / other.value:.0f} %"
        for point, other in zip(found.robust, of_ann.robust, strict=True)
    ]
    share = f"{100 * found.microjoules / found.ann_microjoules:.0f} %"
    assert f"| {', '.join(shares)} | {share} |" in second
    assert "|  |  |" in first  # the ANN itself


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- zoo table -->\n",
        "<!-- /zoo table -->\n<!-- zoo table -->\n",
        "<!-- zoo table -->\n<!-- zoo table -->\n<!-- /zoo table -->\n",
        "<!-- zoo table: a b -->\n<!-- zoo table -->\n<!-- /zoo table -->\n",
    ],
)
def test_missing_markers_are_named(script: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(SystemExit, match="expected one line <!-- zoo table -->"):
        script.main([str(path)])
    assert path.read_text() == text


def test_the_figure_is_of_the_zoo() -> None:
    script = ROOT / "scripts" / "readme_figure.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
