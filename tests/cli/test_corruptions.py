"""corruptions as a command: a zoo model on the sample images, and failures in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sj_robust.evaluation.corrupted import CorruptionReport

MODEL = "resnet20.cifar10_linf_pgd"
FEW = ("--data", "sample", "--max-images", 8, "--device", "cpu")
HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None  # importing them is now an error
from sj_robust.cli import main
sys.argv = ["sj-robust", "corruptions", "--help"]
main()
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_zoo_model_on_corrupted_images(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = cli(
        "corruptions",
        MODEL,
        *FEW,
        "--names",
        "fog, pixelate",
        "--severities",
        "5,1",
        "--seed",
        3,
        "--out",
        file,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = CorruptionReport.model_validate_json(done.stdout)
    settings = found.settings
    assert (settings.names, settings.severities, settings.seed) == (["fog", "pixelate"], [1, 5], 3)
    assert (found.dataset.name, found.dataset.split, found.dataset.evaluated) == (
        "sample",
        "test",
        8,
    )
    assert CorruptionReport.model_validate_json(file.read_text()) == found
    assert f"result: {file}" in done.stderr


def test_a_spiking_one_in_words(cli: Cli) -> None:
    options = ("--names", "contrast", "--severities", "2", "--batch-size", 5, "--split", "train")
    done = cli("corruptions", "resnet20-snn-t4.cifar10_linf_pgd", *FEW, *options)
    assert done.returncode == 0, done.stderr
    assert "(SNN, T=4) on sample train, first 8 of" in done.stdout
    assert "mean corruption accuracy" in done.stdout
    assert "severity 2" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (("--names", "haze"), 1, "sj-robust: unknown corruption 'haze'"),
        (("--names", ","), 2, "names nothing"),
        (("--severities", "7"), 1, "sj-robust: severity is 7"),
        (("--severities", "1.5"), 2, "'1.5' is not a whole number"),
        (("--severities", "high"), 2, "'high' is not a whole number"),
    ],
)
def test_failures_are_one_line(cli: Cli, wrong: tuple[str, str], code: int, message: str) -> None:
    done = cli("corruptions", MODEL, *FEW, *wrong)
    assert done.returncode == code
    assert message in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1
    assert not done.stdout


def test_help_has_an_example_and_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Example: sj-robust corruptions" in done.stdout
