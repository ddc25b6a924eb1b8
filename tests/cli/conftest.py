"""The real command in a subprocess, a user's own tiny network, and tiny images whose class shows in
their colour."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sj_robust.cli import main

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

NETWORK = """
from torch import nn

def make(width=4):
    stem = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
    return nn.Sequential(*stem, nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), *head)
"""

RECIPE = """
name: tiny-snn-t2.colours_linf_trades
license: mit
dataset: colours
ann:
  model: my_networks:make
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
  train:
    {method: pgd, epochs: 20, batch_size: 8, eps: 4/255, validation: 8, validate_every: 5,
     checkpoint_minutes: 0.000001}
convert: {timesteps: 2, calibration_timesteps: 4, batches: 2, batch_size: 4}
finetune: {epochs: 1, batch_size: 8, eps: 4/255, validation: 8}
evaluate: {eps: [4/255], attacks: [fgsm], views: ["PCW:1", rate], max_images: 8, converted: true}
"""


def environment() -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("SJ_ROBUST_DEBUG", "FORCE_COLOR")
    }
    return kept | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture(scope="session", name="environment")
def _environment() -> dict[str, str]:
    return environment()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my_networks.py, recipe.yaml and the data set `colours`: 48 training and 16 test
    images of 8×8 in 2 classes."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "my_networks.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label, colour in enumerate(("blue", "red")):
            target = folder / "colours" / split / colour
            target.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 160, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 * (1 - label)] += 80
                Image.fromarray(pixels).save(target / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def process(workplace: Path) -> Cli:
    """Run `sj-robust ARGS` in the workplace, as a process of its own."""

    def run(
        *args: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from sj_robust.cli import main; main()", *map(str, args)]
        return subprocess.run(
            command,
            cwd=cwd or workplace,
            env=environment() | (env or {}),
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def cli(workplace: Path) -> Cli:
    """The same command in this process, which has imported torch already."""

    def run(
        *args: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = ["sj-robust", *map(str, args)]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(cwd or workplace)
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "path", [str(cwd or workplace), *sys.path])
            for key, value in {"COLUMNS": "200", "NO_COLOR": "1", **(env or {})}.items():
                patch.setenv(key, value)
            with pytest.raises(SystemExit) as ended:
                main()
        return subprocess.CompletedProcess(
            words, int(ended.value.code or 0), out.getvalue(), err.getvalue()
        )

    return run
