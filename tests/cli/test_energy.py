"""energy and latency as commands: a zoo model on the sample images, and failures in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import sj_robust
from sj_robust.evaluation import Report
from sj_robust.evaluation.energy import Energy
from sj_robust.evaluation.latency import Latency

SNN, ANN = "resnet20-snn-t4.cifar10_linf_pgd", "resnet20.cifar10_linf_pgd"
FEW = ("--data", "sample", "--max-images", 3, "--device", "cpu")
HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["spikingjelly"] = None  # importing them is now an error
from sj_robust.cli import main
sys.argv = ["sj-robust", sys.argv[1], "--help"]
main()
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_energy(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "energy.json"
    done = cli("energy", SNN, *FEW, "--batch-size", 2, "--split", "train", "--out", file, "--json")
    assert done.returncode == 0, done.stderr
    found = Energy.model_validate_json(done.stdout)
    assert (found.dataset.name, found.dataset.split, found.dataset.evaluated, found.batch_size) == (
        "sample",
        "train",
        3,
        2,
    )
    assert Energy.model_validate_json(file.read_text()) == found
    assert f"result: {file}" in done.stderr


def test_energy_joins_the_recorded_evaluation_of_the_same_images(cli: Cli, tmp_path: Path) -> None:
    snn, sample, folder = (
        sj_robust.load(SNN),
        sj_robust.load_dataset("sample", "test"),
        tmp_path / "snn",
    )
    report = sj_robust.evaluate(snn, sample, attacks=[], max_images=2, check_images=0).model_copy(
        update={"energy": None}
    )
    sj_robust.save(snn, folder, report=report)
    done = cli("energy", folder, *FEW, "--split", "train", "--record")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds one on sample test, expected one on sample train" in done.stderr
    done = cli("energy", folder, *FEW, "--record", "--json")
    assert done.returncode == 0, done.stderr
    recorded = Report.from_json((folder / "evaluation.json").read_text())
    assert recorded.energy == Energy.model_validate_json(done.stdout).estimate()
    assert recorded.model_copy(update={"energy": None}) == report


def test_energy_joins_an_evaluation_whose_labels_were_mapped(cli: Cli, tmp_path: Path) -> None:
    snn, sample = sj_robust.load(SNN), sj_robust.load_dataset("sample", "test")
    for number in range(2):
        place = tmp_path / "data" / sample.classes[int(sample.labels[number])]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.images[number].permute(1, 2, 0).numpy()).save(
            place / f"{number}.png"
        )  # type: ignore[index]
    (tmp_path / "data" / "classes.txt").write_text("\n".join(reversed(sample.classes)))
    data = sj_robust.load_dataset(tmp_path / "data", "test")
    with pytest.warns(UserWarning, match="mapped by name"):
        report = sj_robust.evaluate(snn, data, attacks=[], check_images=0)
    sj_robust.save(snn, tmp_path / "snn", report=report)
    done = cli("energy", tmp_path / "snn", "--data", tmp_path / "data", "--record")
    assert done.returncode == 0, done.stderr


def test_energy_of_an_ann_in_words(cli: Cli) -> None:
    done = cli("energy", ANN, *FEW)
    assert done.returncode == 0, done.stderr
    assert "(ANN) on sample test" in done.stdout
    assert "40.551 M" in done.stdout
    assert "Horowitz" in done.stdout


def test_latency(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    attack = (
        "--eps",
        "4/255",
        "--attack",
        "fgsm",
        "--view",
        "rate",
        "--robust-images",
        2,
        "--seed",
        3,
    )
    done = cli("latency", SNN, *FEW, *attack, "--out", file, "--json")
    assert done.returncode == 0, done.stderr
    found = Latency.model_validate_json(done.stdout)
    assert (found.dataset.evaluated, len(found.clean), found.seed) == (3, 4, 3)
    (robust,) = found.robust
    assert (robust.eps, robust.attack, robust.view, robust.accuracy[0].total) == (
        pytest.approx(4 / 255),
        "fgsm",
        "rate",
        2,
    )
    assert Latency.model_validate_json(file.read_text()) == found


def test_latency_in_words(cli: Cli) -> None:
    done = cli("latency", SNN, *FEW)
    assert done.returncode == 0, done.stderr
    assert "(SNN, T=4) on sample test, first 3 of" in done.stdout
    assert "steps until" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("latency", ANN), "has no time steps"),
        (("latency", SNN, "--robust-images", 9), "robust_images is 9: expected 1 to 3"),
        (("energy", SNN, "--max-images", 100_000), "max_images is 100000"),
        (("energy", SNN, "--data", "no/such/folder"), "no dataset 'no/such/folder'"),
        (("energy", "no-such-model"), "no-such-model"),
    ],
)
def test_a_failure_is_one_line(cli: Cli, wrong: tuple[object, ...], message: str) -> None:
    command, checkpoint, *options = wrong
    done = cli(command, checkpoint, *FEW, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sj-robust: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [("latency", "--eps", "8"), ("energy", "--max-images", 0), ("latency", "--robust-images", 0)],
)
def test_wrong_usage_is_2(cli: Cli, wrong: tuple[object, ...]) -> None:
    command, *options = wrong
    done = cli(command, SNN, *FEW, *options)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("command", ["energy", "latency"])
def test_help_has_an_example_and_needs_no_torch(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH, command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"Example: sj-robust {command}" in done.stdout
