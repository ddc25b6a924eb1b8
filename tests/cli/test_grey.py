"""Networks that take one channel, as those of MNIST, from data to checkpoint and back by the
command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sj_robust.checkpoint.config import read_config

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

NETWORKS = """
import torch
from torch import nn

def convolutions():
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), *head)

def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))

class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.colour = nn.Conv2d(3, 4, 1)  # of another branch, that is not used
        self.act, self.first, self.last = nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.act(self.first(x.view(-1, 64))))

class Itself(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = convolutions()

    def forward(self, x):
        return self.body((x - 0.1307) / 0.3081)

def colour():
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
"""
SMALL = ("--timesteps", 2, "--calibration-timesteps", 2, "--batches", 1, "--batch-size", 8)
GREY = ("--mean", "0.13", "--std", "0.31")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of grey images, 8×8, and the same data set with colours in it."""
    folder, random = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    (folder / "greys.py").write_text(NETWORKS)
    for split in ("train", "test"):
        for label, shade in enumerate((30, 200)):
            for data in ("digits", "coloured"):
                (folder / data / split / str(label)).mkdir(parents=True)
            for number in range(12):
                pixels = shade + random.integers(0, 40, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"coloured/{split}/{label}/{number}.png")
                Image.fromarray(pixels).convert("L").save(
                    folder / f"digits/{split}/{label}/{number}.png"
                )
    return folder


@pytest.mark.parametrize("network", ["convolutions", "layers", "Viewed"])
@pytest.mark.parametrize("data", ["digits", "coloured"])
def test_converted_and_measured(cli: Cli, place: Path, network: str, data: str) -> None:
    model, out = f"greys:{network}", f"{network}-{data}"
    made = cli(
        "convert",
        "--model",
        model,
        *GREY,
        "--data",
        data,
        *SMALL,
        "--percentile",
        100,
        "--out",
        out,
        cwd=place,
    )
    assert made.returncode == 0, made.stderr
    config = read_config(place / out)
    assert config.input_size == [1, 8, 8] and len(config.settings["mean"]) == 1
    for command in (
        (
            "evaluate",
            out,
            "--eps",
            "8/255",
            "--attacks",
            "fgsm",
            "--views",
            "PCW:1",
            "--check-images",
            0,
        ),
        ("energy", out),
        ("certify", out, "--sigma", 0.25, "--max-images", 2, "--n0", 10, "--n", 20),
        ("corruptions", out, "--names", "fog", "--severities", 1, "--max-images", 2),
        ("latency", out, "--max-images", 4),
    ):
        done = cli(*command, "--data", data, "--model", model, cwd=place)
        assert done.returncode == 0, done.stderr
    short = ("--eps", "8/255", "--attacks", "fgsm", "--views", "PCW:1", "--check-images", 0)
    done = cli("evaluate", out, *short, "--data", data, "--model", model, "--json", cwd=place)
    measured = json.loads(done.stdout)
    assert measured["dataset"]["image_shape"] == [1, 8, 8]


def test_a_bare_classifier_of_grey_images_is_measured(cli: Cli, place: Path) -> None:
    for command in (
        ("evaluate", "--attacks", "fgsm", "--eps", "8/255", "--check-images", 0),
        ("energy",),
    ):
        done = cli(*command, "--model", "greys:Itself", "--data", "digits", "--json", cwd=place)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["dataset"]["image_shape"] == [1, 8, 8]


def test_trained_converted_and_finetuned(cli: Cli, place: Path) -> None:
    short = ("--epochs", 0.5, "--batch-size", 8, "--validation", 4, "--augmentation", "crop-flip")
    for name, source in (
        ("own", ("--model", "greys:convolutions")),
        ("resnet", ("cifar_resnet20", "--arg", "in_chans=1")),
    ):
        trained = cli(
            "train-ann",
            *source,
            *GREY,
            "--data",
            "coloured",
            *short,
            "--out",
            f"{name}-ann",
            cwd=place,
        )
        assert trained.returncode == 0, trained.stderr
        built = ("--model", "greys:convolutions") if name == "own" else ()
        assert (
            cli(
                "convert",
                f"{name}-ann",
                *built,
                "--data",
                "coloured",
                *SMALL,
                "--norm",
                "fuse",
                "--percentile",
                100,
                "--out",
                f"{name}-snn",
                cwd=place,
            ).returncode
            == 0
        )
        tuned = cli(
            "finetune",
            f"{name}-snn",
            *built,
            "--data",
            "coloured",
            *short,
            "--out",
            f"{name}-tuned",
            cwd=place,
        )
        assert tuned.returncode == 0, tuned.stderr
        assert read_config(place / f"{name}-tuned").input_size == [1, 8, 8]


def test_a_recipe_of_grey_images(cli: Cli, place: Path) -> None:
    (place / "grey.yaml").write_text("""
name: grey-snn
dataset: digits
ann: {model: "greys:convolutions", mean: [0.13], std: [0.31]}
convert: {timesteps: 2, calibration_timesteps: 2, batches: 1, batch_size: 8, percentile: 100}
finetune: {epochs: 0.5, batch_size: 8, validation: 4}
evaluate: {eps: [4/255], attacks: [fgsm], views: ["PCW:1"], max_images: 8, check_images: 0}
""")
    first = cli("run", "grey.yaml", "--out", "run", "--model", "greys:convolutions", cwd=place)
    if first.returncode == 2:  # a release that does not ask for consent to run code
        first = cli("run", "grey.yaml", "--out", "run", cwd=place)
    assert first.returncode == 0, first.stderr
    assert read_config(place / "run" / "grey-snn").input_size == [1, 8, 8]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "colour",
            GREY,
            (
                "mean has 1 values, and greys:colour takes images of 3 channels: give mean and std"
                " 3 values each"
            ),
        ),
        (
            "convolutions",
            ("--mean", "0.1,0.1,0.1", "--std", "0.3,0.3,0.3"),
            "takes images of 1 channels: give mean and std one value each",
        ),
        ("convolutions", (), "are not known: give both, mean and std, one value each"),
        ("convolutions", ("--mean", "0.13", "--std", "0"), "a std above 0"),
        ("convolutions", ("--mean", "-1", "--std", "0.3"), "a mean from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    cli: Cli, place: Path, model: str, options: tuple[str, ...], message: str
) -> None:
    refused = cli(
        "convert",
        "--model",
        f"greys:{model}",
        *options,
        "--data",
        "digits",
        *SMALL,
        "--out",
        "none",
        cwd=place,
    )
    assert (
        refused.returncode == 1
        and message in refused.stderr
        and len(refused.stderr.splitlines()) == 1
    )
    assert not (place / "none").exists()


def test_means_of_images_up_to_255(cli: Cli, place: Path) -> None:
    scale = ("--mean", "33.3", "--std", "78.6")
    with pytest.warns(UserWarning, match="are of images up to 255: divided by 255") as said:
        made = cli(
            "convert",
            "--model",
            "greys:convolutions",
            *scale,
            "--data",
            "digits",
            *SMALL,
            "--out",
            "scaled",
            cwd=place,
        )
    assert made.returncode == 0, made.stderr
    assert sum("up to 255" in str(warning.message) for warning in said) == 1
    assert read_config(place / "scaled").settings["mean"] == pytest.approx([33.3 / 255])
