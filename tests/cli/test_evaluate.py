"""evaluate for networks that are no checkpoint: what a function of the user's returns."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

BUILDER = """
import torch
from torch import nn
from spikingjelly.activation_based import functional, layer, neuron
import sj_robust

def build(timesteps=3):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(3, 8, 3, stride=2), neuron.LIFNode(), layer.Flatten(), layer.Linear(8 * 15 * 15, 10))
    functional.set_step_mode(net, "m")
    return sj_robust.from_spikingjelly(net, timesteps=timesteps, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
"""


def test_a_network_of_ones_own_is_evaluated_and_compared(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "my_spiking_network.py").write_text(BUILDER)
    done = cli("evaluate", "--model", "my_spiking_network:build", "--arg", "timesteps=2", "--data", "sample", "--protocol", "quick",
               "--eps", "2/255", "--max-images", "16", "--check-images", "0", "--out", "mine.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Sequential (SNN, T=2) on sample test, first 16" in done.stdout
    assert json.loads((tmp_path / "mine.json").read_text())["model"]["timesteps"] == 2
    beside = cli("compare", "mine.json", "resnet20-snn-t4.cifar10_linf_pgd", "--json", cwd=tmp_path)
    assert beside.returncode == 0, beside.stderr
    row = next(row for row in json.loads(beside.stdout)["rows"] if row["name"] == "mine")
    assert (row["kind"], row["architecture"], row["timesteps"]) == ("snn", "Sequential", 2)
    for wrong, code, message in [
        (("evaluate", "--data", "sample"), 2, "give either a network by name or --model MODULE:FUNCTION"),
        (("evaluate", "--model", "my_spiking_network:build", "--data", "sample", "--record"), 2, "--record writes into a CHECKPOINT"),
        (("energy", "--model", "my_spiking_network:build", "--data", "sample", "--record"), 2, "--record writes into a CHECKPOINT"),
        (("compare", "nothing.json"), 1, "no file nothing.json: expected a report"),
    ]:
        done = cli(*wrong, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, "")
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
