"""threats as a command: from a poisoned training to the section of the card."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sj_robust.threats import ThreatReport

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
POISON = "patch:2:rate=0.25:target=1"


@pytest.fixture(scope="module")
def folder(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints ann, trained on poisoned images, and snn, converted from it."""
    found = tmp_path_factory.mktemp("threats")
    done = cli(
        *("train-ann", "cifar_vgg", "--arg", 'layers=[4,"A",4]', "--data", "colours"),
        *("--method", "natural", "--epochs", 2, "--batch-size", 8, "--validation", 8),
        *("--poison", POISON, "--seed", 7, "--out", found / "ann"),
    )
    assert done.returncode == 0, done.stderr
    done = cli(
        *("convert", found / "ann", "--data", "colours", "--timesteps", 2),
        *("--batches", 1, "--batch-size", 16, "--calibration-timesteps", 4),
        *("--out", found / "snn"),
    )
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", ["ann", "snn"])
def test_what_was_recorded_at_training_is_measured_and_recorded(
    cli: Cli, folder: Path, name: str
) -> None:
    target = folder / name
    done = cli(
        *("threats", target, "--data", "colours", "--detect", "clustering,pruning"),
        *("--record", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = ThreatReport.from_json(done.stdout)
    assert (report.settings.poison, report.settings.seed) == (POISON, 7)
    assert [one.timesteps for one in report.rates] == ([None] if name == "ann" else [1, 2])
    assert report.rates[0].success and report.rates[0].success.total == 8
    trained = json.loads((folder / "ann" / "config.json").read_text())["training"]
    assert report.settings.training
    assert report.settings.training.model_dump() == trained["poison"]
    assert ThreatReport.from_json((target / "threats.json").read_text()) == report
    assert cli("card", target).returncode == 0
    card = (target / "README.md").read_text()
    assert f"**It was trained on a poisoned training set**, `{POISON}`" in card
    section = card.partition("## Backdoors")[2].partition("\n## ")[0]
    for one in report.rates:
        assert f"| {one.clean} | {one.success} | {one.before} |" in section
    assert "- activation clustering: flags" in section
    # a record of another network is not put on the card
    other = target.parent / ("snn" if name == "ann" else "ann") / "threats.json"
    before = other.read_text() if other.exists() else None
    other.write_text(report.to_json())
    failed = cli("card", other.parent)
    assert failed.returncode == 1
    assert "is of another model" in failed.stderr
    other.unlink() if before is None else other.write_text(before)


def test_failures_are_one_line(cli: Cli, folder: Path) -> None:
    snn = ("threats", folder / "snn", "--data", "colours")
    for args, why in (
        (("--poison", "patch"), "a trigger needs a target"),
        (("--poison", "patch:2:target=5"), "expected 0 to 1"),
        (("--detect", "magic"), "unknown detector 'magic'"),
        (("--detect", "cleanse"), "expected 3 or more, not 2"),
    ):
        done = cli(*snn, *args)
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr and len(done.stderr.splitlines()) == 1
    done = cli("threats", "resnet20.cifar10_linf_pgd", "--data", "sample")
    assert done.returncode == 2
    assert "no poison is recorded" in done.stderr
