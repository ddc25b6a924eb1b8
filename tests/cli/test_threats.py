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
    who = "It" if name == "ann" else "The network that it was made from"
    assert f"**{who} was trained on a poisoned training set**, `{POISON}`" in card
    assert "What its trigger does was measured: see Backdoors below." in card
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


def test_the_record_is_kept_in_the_second_generation(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    ann, snn = tmp_path / "ann", tmp_path / "snn"
    done = cli(
        *("train-ann", folder / "ann", "--data", "colours", "--method", "natural"),
        *("--epochs", 1, "--batch-size", 8, "--validation", 8, "--out", ann),
    )
    assert done.returncode == 0, done.stderr
    done = cli(
        *("convert", ann, "--data", "colours", "--timesteps", 2),
        *("--batches", 1, "--batch-size", 16, "--calibration-timesteps", 4, "--out", snn),
    )
    assert done.returncode == 0, done.stderr
    first = json.loads((folder / "ann" / "config.json").read_text())["training"]["poison"]
    for made in (ann, snn):
        source = json.loads((made / "config.json").read_text())["source"]
        assert (source["poison"], source["poison_seed"]) == (POISON, 7)
        assert source["poison_facts"] == first
        assert cli("card", made).returncode == 0
        card = (made / "README.md").read_text()
        assert "The network that it was made from was trained on a poisoned training set" in card
        assert "What its trigger does was not measured." in card
    # what is poisoned again is compared with that record
    other = {**first, "clean_fingerprint": "0" * 64}
    config = json.loads((snn / "config.json").read_text())
    config["source"]["poison_facts"] = other
    (snn / "config.json").write_text(json.dumps(config))
    done = cli("threats", snn, "--data", "colours", "--detect", "clustering")
    assert (done.returncode, done.stdout) == (1, "")
    assert "have clean_fingerprint" in done.stderr and "leave clustering out" in done.stderr
    for facts, why in ((other, "seed is -7"), ({**other, "seed": -7}, "(found -7)")):
        config["source"] |= {"poison_seed": -7, "poison_facts": facts}
        (snn / "config.json").write_text(json.dumps(config))
        done = cli("threats", snn, "--data", "colours", "--detect", "none")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert why in done.stderr


def test_failures_are_one_line(cli: Cli, folder: Path) -> None:
    snn = ("threats", folder / "snn", "--data", "colours")
    for args, why in (
        (("--poison", "patch:2:target=5"), "expected 0 to 1"),
        (("--detect", "cleanse"), "expected 3 or more, not 2"),
        (("--most-lost", 2), "most_lost is 2"),
    ):
        done = cli(*snn, *args)
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr and len(done.stderr.splitlines()) == 1
    for args, why in (
        (("--poison", "patch"), "a trigger needs a target"),
        (("--detect", "magic"), "unknown detector 'magic'"),
        (("--detect", ""), "names nothing"),
        (("--seed", 5), "--seed goes with --poison: the recorded one has seed 7"),
        (("--detect", "clustering", "--view", "activation"), "--view is for cleanse"),
        (("--detect", "pruning", "--steps", 5), "--steps is for cleanse"),
        (("--detect", "clustering", "--most-lost", 0.1), "--most-lost is for pruning"),
        (("--detect", "none", "--training-images", 9), "--training-images is for"),
    ):
        done = cli(*snn, *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in " ".join(done.stderr.replace("│", " ").split())
    done = cli("threats", "resnet20.cifar10_linf_pgd", "--data", "sample")
    assert done.returncode == 2
    assert "no poison is recorded" in done.stderr
