"""Where results go: refused before the work where they cannot be written, shown where that comes
too late, and in any locale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sj_robust.checkpoint import zoo

SNN, ANN = "resnet20-snn-t4.cifar10_linf_pgd", "resnet20.cifar10_linf_pgd"
FEW = ("--data", "sample", "--max-images", "2")
NETWORK = """
from pathlib import Path
import my_networks

def make():
    {first}
    return my_networks.make()
"""
WRITERS: dict[str, tuple[str, ...]] = {
    "evaluate": (
        "evaluate",
        SNN,
        *FEW,
        "--attacks",
        "fgsm",
        "--views",
        "PCW:1",
        "--check-images",
        "0",
        "--out",
    ),
    "evaluate --plot": (
        "evaluate",
        SNN,
        *FEW,
        "--attacks",
        "fgsm",
        "--views",
        "PCW:1",
        "--check-images",
        "0",
        "--plot",
    ),
    "energy": ("energy", SNN, *FEW, "--out"),
    "latency": ("latency", SNN, *FEW, "--out"),
    "certify": ("certify", SNN, *FEW, "--sigma", "0.25", "--n0", "2", "--n", "2", "--out"),
    "corruptions": ("corruptions", SNN, *FEW, "--names", "fog", "--severities", "1", "--out"),
    "show": ("show", SNN, "--out"),
    "convert": ("convert", ANN, "--data", "sample", "--out"),
    "train-ann": ("train-ann", "cifar_resnet20", "--data", "sample", "--epochs", "0.1", "--out"),
    "finetune": ("finetune", SNN, "--data", "sample", "--epochs", "0.1", "--out"),
    "export": ("export", SNN, "--format", "torch", "--out"),
    "compare": ("compare", SNN, "--html"),
    "bench": ("bench", "--sides", "ann", "--tasks", "train", "--out"),
    "run": ("run", "recipe.yaml", "--out"),
    "demo": ("demo", "--out"),
}
FOLDERS = ("evaluate --plot", "convert", "train-ann", "finetune", "run", "demo")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("target", ["wrong kind", "below a file", "no room"])
def test_what_cannot_be_written_is_refused_before_the_work(
    cli: Callable[..., Any], workplace: Path, tmp_path: Path, writer: str, target: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    kind = "file" if writer in FOLDERS else "folder"
    path = {
        "wrong kind": tmp_path / kind,
        "below a file": tmp_path / "file" / "x",
        "no room": Path("/proc/x"),
    }[target]
    done = cli(*WRITERS[writer], path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "unexpected" not in done.stderr
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder", "notes.txt"]


def test_a_checkpoint_with_something_of_the_users_in_it_is_refused_before_the_work(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "snn"
    shutil.copytree(zoo.resolve(SNN), folder)
    (folder / "notes.txt").touch()
    done = cli("finetune", SNN, "--data", "sample", "--epochs", "1000", "--out", folder)
    assert done.returncode == 1
    assert "(notes.txt) and is kept" in done.stderr
    assert not (tmp_path / "snn.training").exists()


@pytest.mark.skipif(os.name == "nt", reason="such names")
@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "x" * 210])
def test_a_class_that_no_checkpoint_can_name_is_told_before_the_work(
    cli: Callable[..., Any], workplace: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(workplace / "colours" / "train", tmp_path / "data")
    (tmp_path / "data" / "red").rename(tmp_path / "data" / name)
    normal = ("--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
    network = ("--model", "my_networks:make", "--data", tmp_path / "data", *normal)
    for command in (("train-ann", "--batch-size", 8, "--validation", 8), ("convert",)):
        done = cli(*command, *network, "--out", tmp_path / "out")
        assert done.returncode == 1
        assert "sj-robust: the model could not be saved: classes." in done.stderr
        assert done.stderr.endswith("; rename it\n")
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_the_result_is_shown_where_it_can_no_longer_be_written(
    cli: Callable[..., Any], workplace: Path, tmp_path: Path, option: str
) -> None:
    late = tmp_path / "late"
    meanwhile = (
        f"Path({str(late)!r}).mkdir()" if option == "--out" else f"Path({str(late)!r}).touch()"
    )
    name = f"meanwhile_{option[2:]}"
    (workplace / f"{name}.py").write_text(NETWORK.format(first=meanwhile), encoding="utf-8")
    done = cli(
        "evaluate",
        "--model",
        f"{name}:make",
        "--data",
        "colours",
        "--max-images",
        "4",
        "--eps",
        "4/255",
        "--attacks",
        "fgsm",
        "--check-images",
        "0",
        option,
        late,
        "--json",
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["dataset"]["evaluated"] == 4
    assert str(late) in done.stderr.splitlines()[-1]
    assert "unexpected" not in done.stderr


def test_a_class_folder_whose_name_is_no_text(
    cli: Callable[..., Any], workplace: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for old, new in (("blue", b"bl\xe9u"), ("red", b"red")):
            shutil.copytree(
                os.fsencode(workplace / "colours" / split / old),
                os.fsencode(tmp_path / "d\udce9" / split) + b"/" + new,
            )
    out = tmp_path / "snn"
    done = cli(
        "convert",
        "--model",
        "my_networks:make",
        "--data",
        tmp_path / "d\udce9",
        "--batches",
        "1",
        "--batch-size",
        "4",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.2,0.2,0.2",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    done = cli(
        "evaluate",
        out,
        "--model",
        "my_networks:make",
        "--data",
        tmp_path / "d\udce9",
        "--max-images",
        "4",
        "--eps",
        "4/255",
        "--attacks",
        "fgsm",
        "--views",
        "PCW:1",
        "--check-images",
        "0",
        "--record",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert "d\\xe9" in json.loads(done.stdout)["dataset"]["name"]
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["classes"] == [
        "bl\\xe9u",
        "red",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "euc_jp"])
def test_a_terminal_that_has_not_all_signs(environment: dict[str, str], encoding: str) -> None:
    # files would be read and written as ASCII
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "from sj_robust.cli import main; main()", "list"],
        capture_output=True,
        env=environment | plain | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert SNN in done.stdout.decode(encoding)


def test_a_locale_other_than_utf_8(
    process: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    plain = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "SJ_ROBUST_CACHE": str(tmp_path / "cache"),
    }
    kernel = [
        line
        for line in process("doctor", env=environment).stdout.splitlines()
        if "backend cpu" in line
    ]
    done = process("doctor", env=plain)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "backend cpu" in line] == kernel
