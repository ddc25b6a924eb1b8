"""certify as a command: a zoo model on the sample images, and failures in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sj_robust.catalog import locate
from sj_robust.evaluation.certificate import Certificate
from sj_robust.evaluation.certified import Certificates
from sj_robust.evaluation.interval_certificate import IntervalCertificate

MODEL = "resnet20.cifar10_linf_pgd"
DATA = ("--data", "sample", "--max-images", 2, "--device", "cpu")
FEW = (*DATA, "--n0", 5, "--n", 20)
HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["scipy"] = None  # importing them is now an error
from sj_robust.cli import main
sys.argv = ["sj-robust", "certify", "--help"]
main()
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_zoo_model_is_certified(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    done = cli(
        "certify",
        MODEL,
        *FEW,
        "--sigma",
        "10/200",
        "--alpha",
        0.01,
        "--seed",
        3,
        "--out",
        file,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = Certificate.model_validate_json(done.stdout)
    settings = found.settings
    assert (settings.sigma, settings.n0, settings.n, settings.alpha, settings.seed) == (
        0.05,
        5,
        20,
        0.01,
        3,
    )
    assert (found.dataset.name, found.dataset.split, found.dataset.evaluated) == (
        "sample",
        "test",
        2,
    )
    assert Certificate.model_validate_json(file.read_text()) == found
    assert f"result: {file}" in done.stderr


def test_a_spiking_one_in_words(cli: Cli) -> None:
    fewer = ("--n0", 2, "--n", 10, "--batch-size", 8, "--split", "train")
    done = cli("certify", "resnet20-snn-t4.cifar10_linf_pgd", *FEW, *fewer, "--sigma", 0.05)
    assert done.returncode == 0, done.stderr
    assert "(SNN, T=4) on sample train, first 2 of" in done.stdout
    assert "mean certified radius" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--sigma", 0.25, "--alpha", 1.5), "alpha is 1.5"),
        (("--sigma", 0.25, "--n", 4), "expected at least 10"),
        (("--sigma", 0.25, "--max-images", 100_000), "max_images is 100000"),
        (("--sigma", 0.25, "--data", "no/such/folder"), "no dataset 'no/such/folder'"),
    ],
)
def test_a_failure_is_one_line(cli: Cli, wrong: tuple[object, ...], message: str) -> None:
    done = cli("certify", MODEL, *FEW, *wrong)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sj-robust: ")
    assert message in done.stderr


def test_interval_bounds_are_recorded_and_in_the_card(cli: Cli, tmp_path: Path) -> None:
    folder, file = tmp_path / "ann", tmp_path / "certificate.json"
    shutil.copytree(locate(MODEL).folder, folder, ignore=shutil.ignore_patterns("evaluation*"))
    data = ("--data", "sample", "--device", "cpu", "--max-images")
    bounds = ("--method", "ibp", "--eps", "0.00001", "--attempts", 2, "--out", file, "--record")
    done = cli("certify", folder, *data, 4, *bounds)
    assert done.returncode == 0, done.stderr
    assert "ANN) on sample test, first 4 of" in done.stdout and "interval bounds" in done.stdout
    found = IntervalCertificate.model_validate_json(file.read_text())
    done = cli("certify", folder, *FEW, "--sigma", 0.05, "--record")
    assert done.returncode == 0, done.stderr
    measured = ("--attacks", "fgsm", "--check-images", 0, "--eps", "1/255", "--record")
    done = cli("evaluate", folder, *data, 8, *measured)
    assert done.returncode == 0, done.stderr
    recorded = Certificates.from_json((folder / "certificates.json").read_text()).found
    assert [one.method for one in recorded] == ["interval bounds", "randomised smoothing"]
    assert recorded[0] == found.certified()
    told = cli("info", folder).stdout
    assert "certified, interval bounds" in told and "certified, randomised smoothing" in told
    assert "certified" not in (folder / "evaluation.json").read_text()
    assert cli("card", folder).returncode == cli("compare", folder).returncode == 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "### Certified accuracy" in card
    row = f"| interval bounds | 4 of sample test | l∞ 1e-05 | {found.results[0].certified} |"
    assert row in card
    assert "| randomised smoothing, sigma 0.05 | 2 of sample test | l2 0 |" in card


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("--sigma", "little"),
        ("--sigma", 0),
        ("--sigma", 0.25, "--n", 0),
        ("--sigma", 0.25, "--n0", 0),
        ("--sigma", 0.25, "--eps", "2/255"),
        ("--method", "ibp"),
        ("--method", "ibp", "--sigma", 0.25),
        ("--method", "ibp", "--eps", 2),
        ("--method", "hope", "--sigma", 0.25),
    ],
)
def test_wrong_usage_is_2(cli: Cli, wrong: tuple[object, ...]) -> None:
    done = cli("certify", MODEL, *DATA, *wrong)
    assert (done.returncode, done.stdout) == (2, "")


def test_help_has_an_example_and_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Example: sj-robust certify" in done.stdout
