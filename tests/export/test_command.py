"""sj-robust export: what it writes and prints, and failures in one line with nothing left
behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from sj_robust.cli import main

SNN, ANN = "resnet20-snn-t4.cifar10_linf_pgd", "resnet20.cifar10_linf_pgd"
HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it is now an error
from sj_robust.cli import main
sys.argv = ["sj-robust", "export", "--help"]
main()
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run `sj-robust export ARGS` in an empty folder, in this process, which has imported torch
    already."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        words = ["sj-robust", "export", *map(str, args)]
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", words)
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(
            words, int(ended.value.code or 0), out.getvalue(), err.getvalue()
        )

    return run


def test_nir_as_json_replaces_the_file(export: Cli, tmp_path: Path) -> None:
    pytest.importorskip("nir", reason="the extra nir is not installed")
    file = tmp_path / "made" / "resnet.nir"
    file.parent.mkdir()
    file.write_text("an older file")
    done = export(SNN, "--format", "nir", "--out", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["file"], told["format"], told["timesteps"], told["dt"]) == (
        str(file),
        "nir",
        4,
        1.0,
    )
    assert (told["bytes"], told["sha256"]) == (
        file.stat().st_size,
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    assert told["nodes"] == {
        "Input": 1,
        "Conv2d": 22,
        "IF": 19,
        "AvgPool2d": 1,
        "Flatten": 1,
        "Affine": 1,
        "Output": 1,
    }
    assert told["not_included"][0] == "the mean of the logits over 4 steps"
    assert os.listdir(file.parent) == ["resnet.nir"]


def test_a_torch_program_of_an_ann_in_words(export: Cli) -> None:
    done = export(ANN, "--format", "torch", "--out", "resnet.pt2", "--image-size", 16)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("resnet.pt2  (torch, ")
    assert "aten.relu" in done.stdout
    assert "logits [N,10]\n" in done.stdout


def test_failures_are_one_line_and_leave_nothing(
    export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for arguments, message in [
        (("no-such-model", "--format", "torch", "--out", "x"), "no-such-model"),
        ((SNN, "--format", "torch", "--out", "folder"), "folder is a folder"),
        ((SNN, "--format", "torch", "--out", "file/x"), "file is a file, expected a folder"),
    ]:
        done = export(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (
            1,
            "",
            1,
        ), done.stderr
        assert message in done.stderr
    monkeypatch.setitem(sys.modules, "nir", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'sj-robust[nir]'" in export(SNN, "--format", "nir", "--out", "x").stderr
    assert "pip install 'sj-robust[export]'" in export(SNN, "--format", "onnx", "--out", "x").stderr
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_that_cannot_grow_is_one_line(tmp_path: Path) -> None:
    def small() -> None:  # as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    command = [
        sys.executable,
        "-m",
        "sj_robust",
        "export",
        ANN,
        "--format",
        "torch",
        "--out",
        "x.pt2",
        "--image-size",
        "16",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=small,
        env={**os.environ, "SJ_ROBUST_KERNELS": "0"},
    )
    assert (done.returncode, os.listdir(tmp_path)) == (1, []), done.stderr
    assert done.stderr == "sj-robust: x.pt2 cannot be written (File too large)\n"


@pytest.mark.parametrize(
    "wrong",
    [
        (SNN, "--format", "tflite", "--out", "x"),
        (SNN, "--format", "torch", "--out", "x", "--dt", "1"),
        (SNN, "--out", "x"),
        (),
    ],
)
def test_wrong_usage_is_2(export: Cli, wrong: tuple[str, ...], tmp_path: Path) -> None:
    done = export(*wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert not os.listdir(tmp_path)


def test_help_has_an_example_and_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Example: sj-robust export" in done.stdout
