"""The single stages as commands, one after the other, on a user's own network and on a timm one."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sj_robust
from sj_robust.checkpoint.config import read_config
from sj_robust.evaluation import Report
from sj_robust.files import sha256

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

TRAINING = ("--data", "colours", "--batch-size", 8, "--eps", "4/255", "--validation", 8)
NORMALISED = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
CALIBRATION = (
    "--data",
    "colours",
    "--timesteps",
    2,
    "--calibration-timesteps",
    3,
    "--batches",
    1,
    "--batch-size",
    4,
)


@pytest.fixture(scope="module")
def ann(cli: Cli, workplace: Path) -> Path:
    done = cli(
        "train-ann",
        "cifar_resnet20",
        *NORMALISED,
        *TRAINING,
        "--epochs",
        0.5,
        "--out",
        "steps/ann",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["kind"], result["checkpoint"], result["config"]["eps"]) == (
        "ann",
        "steps/ann",
        pytest.approx(4 / 255),
    )
    return workplace / "steps/ann"


@pytest.fixture(scope="module")
def snn(cli: Cli, ann: Path, workplace: Path) -> Path:
    done = cli("convert", "steps/ann", *CALIBRATION, "--out", "steps/snn")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "steps/snn\n"
    return workplace / "steps/snn"


def test_converting_twice_gives_the_same_network(cli: Cli, snn: Path, workplace: Path) -> None:
    assert cli("convert", "steps/ann", *CALIBRATION, "--out", "steps/again").returncode == 0
    first, second = sj_robust.load(snn), sj_robust.load(workplace / "steps/again")
    assert isinstance(first, sj_robust.SpikingClassifier)
    assert first.timesteps == 2
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(first(x), second(x))


def test_evaluate_by_protocol_with_transfer_checks_and_figures(
    cli: Cli, snn: Path, workplace: Path
) -> None:
    settings = (
        "--data",
        "colours",
        "--protocol",
        "strong",
        "--transfer",
        "steps/ann",
        "--eps",
        "8/255",
        "--max-images",
        4,
    )
    done = cli(
        "evaluate", "steps/snn", *settings, "--check-images", 2, "--plot", "steps/figures", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = Report.from_json(done.stdout)
    assert report.settings.protocol == "strong@2"
    assert "transfer:steps/ann" in report.settings.views
    assert report.verdict is not None
    assert {path.name for path in (workplace / "steps/figures").iterdir()} >= {
        "accuracy.png",
        "accuracy.pdf",
        "views.png",
    }
    for wrong, code, message in (
        (("--attacks", "fgsm"), 2, "leave --attacks out"),
        (("--protocol", "fast"), 2, "unknown protocol 'fast'"),
        (("--transfer", "nobody"), 1, "'nobody' is neither a checkpoint folder"),
    ):
        done = cli("evaluate", "steps/snn", *settings, *wrong)
        assert done.returncode == code
        assert message in done.stderr


def test_finetune_evaluate_card_and_info(cli: Cli, snn: Path, workplace: Path) -> None:
    augmented = ("--augmentation", "resized-crop-flip", "--crop-scale", 0.5)
    done = cli(
        "finetune",
        "steps/snn",
        *TRAINING,
        *augmented,
        "--epochs",
        0.5,
        "--out",
        "steps/tuned",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)["config"]
    assert (config["augmentation"], config["crop_scale"]) == ("resized-crop-flip", 0.5)
    tuned = workplace / "steps/tuned"
    assert sj_robust.load(tuned).thresholds().keys() == sj_robust.load(snn).thresholds().keys()

    attack = ("--eps", "2/255", "--eps", 0.05, "--attacks", "fgsm", "--views", "PCW:1,rate")
    done = cli(
        "evaluate",
        "steps/tuned",
        "--data",
        "colours",
        *attack,
        "--out",
        "steps/report.json",
        "--record",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    report = Report.from_json(done.stdout)
    assert report.settings.eps == [pytest.approx(2 / 255), 0.05]
    assert report.settings.views == ["PCW:1", "rate"]
    assert report.dataset.evaluated == 16
    for file in (tuned / "evaluation.json", workplace / "steps/report.json"):
        assert Report.from_json(file.read_text()) == report

    done = cli("card", "steps/tuned")
    assert done.stdout == "steps/tuned/README.md\n"
    card = (tuned / "README.md").read_text()
    assert f"{100 * report.clean.value:.1f} %" in card
    made = [card.index(f"sj-robust {step}") for step in ("train-ann", "convert", "finetune")]
    assert made == sorted(made)  # how it was made, in that order

    told = json.loads(cli("info", "steps/tuned", "--json").stdout)
    assert told["config"]["training"]["dataset"] == "colours"
    assert [results["n"] for results in told["results"]] == [16]
    lines = cli("info", "steps/tuned").stdout
    assert re.search(r"^made from +.*trained_on colours.*method pgd", lines, re.MULTILINE)
    assert re.search(r"^training +method pgd, eps 4/255, .*dataset colours", lines, re.MULTILINE)

    # what took long is not replaced without a word
    before = {path: path.read_bytes() for path in tuned.iterdir() if path.is_file()}
    for again in (
        ("convert", "steps/ann", *CALIBRATION),
        ("finetune", "steps/snn", *TRAINING, "--epochs", 0.5, "--resume"),
    ):
        done = cli(*again, "--out", "steps/tuned")
        assert done.returncode == 1
        assert (
            "steps/tuned holds a checkpoint that was measured (evaluation.json) and is kept"
        ) in done.stderr
    for file in ("evaluation.json", "README.md"):
        (tuned / file).unlink()
    done = cli("convert", "steps/ann", *CALIBRATION, "--out", "steps/tuned")
    assert "steps/tuned holds a checkpoint that was trained and is kept" in done.stderr
    (workplace / "steps/tuned.training").rename(workplace / "steps/elsewhere")
    resumed = ("finetune", "steps/snn", *TRAINING, "--epochs", 0.5, "--resume")
    done = cli(*resumed, "--out", "steps/tuned")  # nothing to resume from: it would begin anew
    assert (done.returncode, "no state to resume from" in done.stderr) == (1, True)
    (workplace / "steps/elsewhere").rename(workplace / "steps/tuned.training")
    for path, content in before.items():
        path.write_bytes(content)


def test_an_interrupted_training_goes_on_only_with_resume(cli: Cli, ann: Path) -> None:
    again = (
        "train-ann",
        "cifar_resnet20",
        *NORMALISED,
        *TRAINING,
        "--epochs",
        0.5,
        "--out",
        "steps/ann",
    )
    refused = cli(*again)
    assert refused.returncode == 1
    assert "resume" in refused.stderr
    # it had finished, so there is nothing left to do
    assert cli(*again, "--resume").returncode == 0


def test_a_network_finetuned_twice_records_both(cli: Cli, snn: Path, workplace: Path) -> None:
    for before, method, name in (("snn", "pgd", "first"), ("first", "trades", "second")):
        out = ("--method", method, "--epochs", 0.5, "--out", f"steps/{name}")
        assert cli("finetune", f"steps/{before}", *TRAINING, *out).returncode == 0
    first, second = (read_config(workplace / "steps" / name) for name in ("first", "second"))
    assert first.training and "before" not in first.training
    assert second.training
    assert second.training["config"]["method"] == "trades"
    earlier = second.training["before"]
    assert len(earlier) == 1
    assert (earlier[0]["weights_sha256"], earlier[0]["method"]) == (first.weights.sha256, "pgd")
    assert cli("card", "steps/second").returncode == 0
    card = (workplace / "steps/second/README.md").read_text()
    assert "| earlier finetuning | method | pgd |" in card
    typed = [f"--out steps/{name}" for name in ("snn", "first", "second")]
    assert sorted(typed, key=card.index) == typed


@pytest.mark.parametrize("begins", ["checkpoint", "weights"])
def test_a_training_that_goes_on_from_another_says_so(
    cli: Cli, ann: Path, workplace: Path, begins: str
) -> None:
    weights, folder = ann / "model.safetensors", f"steps/on-{begins}"
    source = ("steps/ann",) if begins == "checkpoint" else ("cifar_resnet20", "--init", weights)
    given = () if begins == "checkpoint" else NORMALISED
    done = cli("train-ann", *source, *given, *TRAINING, "--epochs", 0.5, "--out", folder)
    assert done.returncode == 0, done.stderr
    config = json.loads((workplace / folder / "config.json").read_text())
    assert config["source"]["initial_weights_sha256"] == sha256(weights)
    assert "train-ann" in config["training"]["command"]


def test_a_users_own_class_goes_all_the_way(cli: Cli, workplace: Path) -> None:
    own = ("--model", "my_networks:make")
    wide = (*own, "--arg", "width=6")
    done = cli("train-ann", *wide, *NORMALISED, *TRAINING, "--epochs", 0.5, "--out", "own/ann")
    assert done.returncode == 0, done.stderr
    # from here on the arguments are known
    done = cli("convert", "own/ann", *own, *CALIBRATION, "--out", "own/snn")
    assert done.returncode == 0, done.stderr
    done = cli("finetune", "own/snn", *own, *TRAINING, "--epochs", 0.5, "--out", "own/finetuned")
    assert done.returncode == 0, done.stderr
    for name in ("snn", "finetuned"):
        config = json.loads((workplace / f"own/{name}/config.json").read_text())
        assert (config["architecture"], config["model"]) == (None, "my_networks:make")
        assert config["model_args"] == {"width": 6}
    done = cli("card", "own/finetuned")
    assert "called with the recorded" in (workplace / "own/finetuned/README.md").read_text()
    attack = ("--eps", "1/255", "--attacks", "fgsm", "--views", "rate", "--max-images", 4)
    done = cli("evaluate", "own/snn", *own, "--data", "colours", *attack)
    assert done.returncode == 0, done.stderr
    assert "clean accuracy" in done.stdout
    lost = cli("evaluate", "own/snn", "--data", "colours")
    assert lost.returncode == 1
    assert "my_networks:make" in lost.stderr
