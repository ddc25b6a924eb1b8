"""convert on networks that need a choice or a rewrite, and its report."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import sj_robust
from sj_robust.conversion import ConversionReport

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

NETWORK = """
import torch.nn.functional as F
from torch import nn

class Six(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.conv2 = nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(self.pool(self.act(self.conv(x))))).mean((2, 3)))
"""
CONVERT = (
    "convert",
    "--model",
    "sixes:Six",
    "--mean",
    "0.5,0.5,0.5",
    "--std",
    "0.25,0.25,0.25",
    "--timesteps",
    2,
    "--calibration-timesteps",
    3,
    "--batches",
    1,
    "--batch-size",
    4,
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "sixes.py").write_text(NETWORK)
    return tmp_path


def test_a_choice_is_asked_for_and_then_made(cli: Cli, place: Path, workplace: Path) -> None:
    data = ("--data", workplace / "colours")
    refused = cli(*CONVERT, *data, "--out", "snn", cwd=place)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "act (ReLU6)" in refused.stderr
    assert "--replace-activation relu" in refused.stderr
    assert not (place / "snn").exists()
    assert (
        cli(*CONVERT, *data, "--out", "snn", "--replace-activation", "tanh", cwd=place).returncode
        == 2
    )

    chosen = ("--replace-activation", "relu", "--pooling", "average", "--percentile", 90)
    done = cli(*CONVERT, *data, "--out", "snn", *chosen, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["checkpoint"] == "snn"
    report = ConversionReport.model_validate(told["report"])
    assert [node.name for node in report.nodes] == ["act", "relu"]
    assert (report.replaced_activation, report.rewritten, report.images) == ("relu", [""], 4)
    assert [step.timesteps for step in report.agreement] == [1, 2]
    settings = json.loads((place / "snn" / "config.json").read_text())["settings"]
    assert (settings["replace_activation"], settings["pooling"]) == ("relu", "average")

    done = cli(*CONVERT, *data, "--out", "again", *chosen, cwd=place)
    assert done.stdout == "again\n"
    assert "2 spiking nodes, T=2" in done.stderr
    assert "Agreement with the ANN" in done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        from sixes import Six  # type: ignore[import-not-found]

        first, second = (sj_robust.load(place / name, model=Six()) for name in ("snn", "again"))
    assert first.thresholds() == second.thresholds()  # type: ignore[union-attr]
