"""evaluate for networks that are no checkpoint: what a function of the user's returns."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sj_robust
from sj_robust.evaluation import Report

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

BUILDER = """
import torch
from torch import nn
from spikingjelly.activation_based import functional, layer, neuron
import sj_robust

def build(timesteps=3):
    torch.manual_seed(0)
    head = layer.Flatten(), layer.Linear(8 * 15 * 15, 10)
    net = nn.Sequential(layer.Conv2d(3, 8, 3, stride=2), neuron.LIFNode(), *head)
    functional.set_step_mode(net, "m")
    scaling = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return sj_robust.from_spikingjelly(net, timesteps=timesteps, **scaling)
"""


def test_a_network_of_ones_own_is_evaluated_and_compared(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "my_spiking_network.py").write_text(BUILDER)
    done = cli(
        "evaluate",
        "--model",
        "my_spiking_network:build",
        "--arg",
        "timesteps=2",
        "--data",
        "sample",
        "--protocol",
        "quick",
        "--eps",
        "2/255",
        "--max-images",
        "16",
        "--check-images",
        "0",
        "--out",
        "mine.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Sequential (SNN, T=2) on sample test, first 16" in done.stdout
    assert json.loads((tmp_path / "mine.json").read_text())["model"]["timesteps"] == 2
    beside = cli("compare", "mine.json", "resnet20-snn-t4.cifar10_linf_pgd", "--json", cwd=tmp_path)
    assert beside.returncode == 0, beside.stderr
    row = next(row for row in json.loads(beside.stdout)["rows"] if row["name"] == "mine")
    assert (row["kind"], row["architecture"], row["timesteps"]) == ("snn", "Sequential", 2)
    for wrong, code, message in [
        (
            ("evaluate", "--data", "sample"),
            2,
            "give either a network by name or --model MODULE:FUNCTION",
        ),
        (
            ("evaluate", "--model", "my_spiking_network:build", "--data", "sample", "--record"),
            2,
            "--record writes into a CHECKPOINT",
        ),
        (
            ("energy", "--model", "my_spiking_network:build", "--data", "sample", "--record"),
            2,
            "--record writes into a CHECKPOINT",
        ),
        (("compare", "nothing.json"), 1, "no file nothing.json: expected a report"),
    ]:
        done = cli(*wrong, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, "")
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_its_checkpoint_goes_through_the_commands(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    name, data, source = (
        "my_network_of_colours:build",
        workplace / "colours",
        BUILDER.replace("8 * 15 * 15, 10", "8 * 3 * 3, 2"),
    )
    module: dict[str, Any] = {}
    (tmp_path / "my_network_of_colours.py").write_text(source)
    exec(source, module)
    sj_robust.save(module["build"](), tmp_path / "mine", builder=name)
    run = partial(cli, cwd=tmp_path)
    for command in (
        (
            "finetune",
            "mine",
            "--epochs",
            "0.5",
            "--batch-size",
            "8",
            "--validation",
            "8",
            "--out",
            "tuned",
        ),
        (
            "evaluate",
            "tuned",
            "--attacks",
            "fgsm",
            "--views",
            "own,PCW:1",
            "--eps",
            "4/255",
            "--check-images",
            "0",
            "--record",
        ),
        (
            "evaluate",
            "tuned",
            "--attacks",
            "fgsm",
            "--views",
            "own",
            "--eps",
            "4/255",
            "--check-images",
            "0",
            "--grid",
            "8bit",
            "--roughness-images",
            "3",
            "--record",
        ),
        ("latency", "tuned", "--eps", "4/255", "--attack", "fgsm"),
    ):
        done = run(*command, "--data", data, "--model", name)
        assert done.returncode == 0, done.stderr
    done = run("card", "tuned")
    assert done.returncode == 0, done.stderr
    assert "fgsm" in (tmp_path / "tuned/README.md").read_text()
    gridded = Report.from_json((tmp_path / "tuned/evaluation_8bit.json").read_text())
    assert (
        gridded.settings.grid == "8bit"
        and gridded.roughness is not None
        and gridded.roughness.model[0].images == 3
    )
    done = run("info", "tuned")
    assert "nodes" in done.stdout and "1: LIFNode(v_threshold=1.0" in done.stdout
    for wrong, message in [
        (
            ("evaluate", "tuned", "--data", data),
            f"holds your own network (it was made by '{name}')",
        ),
        (
            (
                "convert",
                "tuned",
                "--model",
                name,
                "--data",
                data,
                "--timesteps",
                "2",
                "--out",
                "again",
            ),
            "is a spiking network already",
        ),
        (
            ("export", "tuned", "--model", name, "--format", "nir", "--out", "tuned.nir"),
            "is exported by SpikingJelly",
        ),
    ]:
        done = run(*wrong)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr


def test_what_has_no_effect_is_wrong_usage_and_l2_radii_may_be_large(cli: Cli) -> None:
    snn = "resnet20-snn-t4.cifar10_linf_pgd"
    few = ("--data", "sample", "--max-images", "2", "--check-images", "0")
    done = cli(
        "evaluate", snn, *few, "--norm", "l2", "--eps", "2", "--attacks", "pgd1", "--views", "PCW:1"
    )
    assert done.returncode == 0, done.stderr
    for wrong, code, message in [
        (("--eps", "2", "--attacks", "pgd1"), 2, "write 8/255, not 8"),
        (("--norm", "l2", "--eps", "0"), 2, "is not above 0"),
        (("--protocol", "quick", "--attacks", "fgsm,pgd10"), 2, "leave --attacks out"),
        (("--attacks", "fgsm", "--restarts", "2"), 1, "restarts is 2"),
        (("--attacks", "fgsm", "--grid", "4bit"), 2, "'4bit' is not"),
        (("--attacks", "square5", "--views", "PCW:1"), 1, "leave views out"),
        (("--arg", "width=3"), 2, "--arg is for the function of --model"),
    ]:
        done = cli("evaluate", snn, *few, *wrong)
        assert (done.returncode, done.stdout) == (code, "")
        assert message in " ".join(done.stderr.replace("│", " ").split())
    done = cli("latency", snn, "--data", "sample", "--max-images", "2", "--attack", "fgsm")
    assert (done.returncode, done.stdout) == (1, "")
    assert "attack has no effect without eps" in done.stderr


def test_classes_are_compared_by_name_in_every_command(
    cli: Cli, workplace: Path, tmp_path: Path
) -> None:
    colours, net = tmp_path / "colours", ("--model", "my_networks:make")
    shutil.copytree(workplace / "colours", colours)
    shutil.copy(workplace / "my_networks.py", tmp_path)
    run = partial(cli, cwd=tmp_path)

    def command(*words: str) -> tuple[str, ...]:
        return {
            "evaluate": (
                "evaluate",
                "ann",
                *net,
                "--attacks",
                "fgsm",
                "--eps",
                "1/255",
                "--check-images",
                "0",
            ),
            "corruptions": ("corruptions", "ann", *net, "--names", "fog", "--severities", "1"),
            "certify": ("certify", "ann", *net, "--sigma", "0.1", "--n", "20", "--max-images", "2"),
            "convert": (
                "convert",
                "ann",
                *net,
                "--batches",
                "1",
                "--batch-size",
                "8",
                "--calibration-timesteps",
                "2",
                "--out",
                "snn",
            ),
            "latency": ("latency", "snn", *net),
            "finetune": (
                "finetune",
                "snn",
                *net,
                "--epochs",
                "0.5",
                "--batch-size",
                "8",
                "--validation",
                "8",
                "--out",
                "tuned",
            ),
        }[words[0]] + ("--data", "colours", *words[1:])

    trained = run(
        "train-ann",
        *net,
        "--data",
        "colours",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--validation",
        "8",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25,0.25,0.25",
        "--out",
        "ann",
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "ann" / "config.json").read_text())["classes"] == ["blue", "red"]

    def found(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        return run(*command(name, *more))

    before = found("evaluate").stdout.splitlines()[:4]
    for split in ("train", "test"):
        (colours / split / "blue").rename(colours / split / "azure")
    for name in ("evaluate", "corruptions", "certify", "convert", "latency", "finetune"):
        refused, said = found(name), found(name, "--same-classes")
        assert (refused.returncode, refused.stdout) == (1, ""), name
        assert "does not know: 'azure' where the network has 'blue'" in refused.stderr
        assert said.returncode == 0, said.stderr
        assert name != "evaluate" or said.stdout.splitlines()[:4] == before
    for checkpoint in ("snn", "tuned"):
        assert json.loads((tmp_path / checkpoint / "config.json").read_text())["classes"] == [
            "blue",
            "red",
        ]


def test_a_finished_report_is_not_measured_again_nor_replaced(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    measure = partial(
        *(cli, "evaluate", "resnet20-snn-t4.cifar10_linf_pgd", "--data", "sample"),
        *("--attacks", "fgsm", "--views", "PCW:1", "--check-images", 0, "--out", out),
    )
    first = measure("--eps", "2/255", "--max-images", 4)
    assert first.returncode == 0, first.stderr
    written = out.read_bytes()
    again = measure("--eps", "2/255", "--max-images", 4)
    assert (again.returncode, again.stdout) == (0, first.stdout)  # the cost too: of the first one
    assert out.read_bytes() == written
    for other, message in (
        (("--eps", "4/255", "--max-images", 4), "(not the same: eps 2/255, now 4/255)"),
        (("--eps", "2/255", "--max-images", 2), "has 4 images, this evaluation 2"),
        (
            ("--eps", "2/255", "--max-images", 6, "--every-view"),
            "gives every view all images, or this evaluation does",
        ),
    ):
        done = measure(*other)
        assert done.returncode == 1
        assert message in done.stderr
        assert out.read_bytes() == written
    quick = ("--protocol", "quick", "--eps", "2/255")
    named = cli("evaluate", "resnet20.cifar10_linf_pgd", "--data", "sample", *quick, "--out", out)
    assert "under the protocol none, this evaluation under quick@1" in named.stderr
    assert out.read_bytes() == written
    grown = measure("--eps", "2/255", "--max-images", 6)
    assert grown.returncode == 0, grown.stderr
    assert "first 4 images is taken from an earlier report" in out.read_text()
    (tmp_path / "link.json").symlink_to(out)
    linked = measure("--eps", "2/255", "--max-images", 7, "--out", tmp_path / "link.json")
    assert linked.returncode == 0, linked.stderr
    assert json.loads(out.read_text())["dataset"]["evaluated"] == 7
    assert (tmp_path / "link.json").is_symlink()
    out.write_text("my notes")
    refused = measure("--eps", "2/255", "--max-images", 6)
    assert (refused.returncode, "this file is kept" in refused.stderr) == (1, True)
    assert out.read_text() == "my notes"


def test_checks_are_made_anew_where_others_are_asked_for_and_never_dropped(
    cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    measure = partial(
        *(cli, "evaluate", "resnet20.cifar10_linf_pgd", "--data", "sample", "--eps", "2/255"),
        *("--attacks", "fgsm", "--max-images", 4, "--out", out),
    )
    assert measure("--check-images", 2).returncode == 0
    checks = json.loads(out.read_text())["checks"]
    assert checks
    dropped = measure("--check-images", 0)
    assert (dropped.returncode, "would lose what check_images found" in dropped.stderr) == (1, True)
    assert json.loads(out.read_text())["checks"] == checks
    assert measure("--check-images", 4).returncode == 0
    assert json.loads(out.read_text())["settings"]["check_images"] == 4


def test_a_stopped_report_is_not_replaced_by_another_evaluation(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    measure = partial(
        *(cli, "evaluate", "resnet20.cifar10_linf_pgd", "--data", "sample", "--eps", "2/255"),
        *("--check-images", 0, "--out", out),
    )
    stopped = measure("--attacks", "fgsm,pgd3", "--max-images", 8, "--time-limit", 0.0001)
    assert stopped.returncode == 0, stopped.stderr
    written = out.read_bytes()
    assert json.loads(written)["stopped"]
    for other in (("--attacks", "fgsm", "--max-images", 8), ("--attacks", "fgsm,pgd3")):
        few = () if "--max-images" in other else ("--max-images", 4)
        assert measure(*other, *few).returncode == 1
        assert out.read_bytes() == written


def test_a_stopped_evaluation_goes_on_without_its_limit(cli: Cli, tmp_path: Path) -> None:
    measure = partial(
        *(cli, "evaluate", "resnet20.cifar10_linf_pgd", "--data", "sample", "--eps", "2/255"),
        *("--attacks", "fgsm,pgd3", "--max-images", 8, "--check-images", 0),
    )
    whole, out = tmp_path / "whole.json", tmp_path / "report.json"
    assert measure("--out", whole).returncode == 0
    stopped = measure("--out", out, "--time-limit", 0.0001)  # before any attack
    assert "not run" in stopped.stdout and "joint, at most" in stopped.stdout
    assert "goes on there, with another --time-limit or none" in stopped.stderr
    done = measure("--out", out)
    assert done.returncode == 0, done.stderr
    found, expected = (json.loads(path.read_text()) for path in (out, whole))
    assert (found["joint"], found["stopped"]) == (expected["joint"], None)


def test_recording_fewer_images_is_refused(cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert cli("pull", "resnet20.cifar10_linf_pgd", "--to", copy).returncode == 0
    before = (copy / "evaluation.json").read_bytes()
    done = cli(
        *("evaluate", copy, "--data", "sample", "--protocol", "strong", "--eps", "2/255"),
        *("--max-images", 2, "--record"),
    )
    assert done.returncode == 1
    assert "records this for 1000 images, which 2 would take the place of" in done.stderr
    assert (copy / "evaluation.json").read_bytes() == before
