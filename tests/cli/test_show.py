"""show as a command: the picture, the line beside it, and failures in one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import sj_robust
from sj_robust.data import load_image
from sj_robust.evaluation import show

SNN, ANN = "resnet20-snn-t4.cifar10_linf_pgd", "resnet20.cifar10_linf_pgd"

COLOUR = """
from torch import nn

class Colour(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))[:, [2, 0]]  # how blue, how red

make = Colour
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def ship(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test image as a file, its sides three times as long and one of them longer still."""
    file = tmp_path_factory.mktemp("images") / "ship.png"
    sample = sj_robust.load_dataset("sample", "test")
    pixels = sample.images[11].permute(1, 2, 0).numpy()  # type: ignore[index]
    Image.fromarray(pixels).resize((120, 96)).save(file)
    return file


def written(file: Path) -> Image.Image:
    image = Image.open(file, formats=("PNG",))
    image.load()
    return image


def test_the_line_says_what_the_network_and_the_attack_do(cli: Cli, tmp_path: Path) -> None:
    done = cli("show", SNN, "--label", "Ship", "--seed", 2, "--out", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    snn, sample = sj_robust.load(SNN), sj_robust.load_dataset("sample", "test")
    ships = (sample.labels == sample.classes.index("ship")).nonzero().flatten().tolist()
    with torch.no_grad():
        index = next(i for i in ships if int(snn(sample.floats([i])).argmax()) == sample.labels[i])
    found = show(snn, sample.floats([index])[0], int(sample.labels[index]), seed=2, index=index)
    assert done.stdout == f"{SNN} on sample test {index}: {found.summary()}\n"
    assert done.stdout.count("ship (margin +") == 1 and "after rotating50 at 8/255: " in done.stdout
    assert done.stderr == f"picture: {tmp_path / 'a.png'}\n"
    image = written(tmp_path / "a.png")
    assert image.width == 1600 and image.height > 1200
    again = tmp_path / "b.png"
    cli("show", SNN, "--index", index, "--seed", 2, "--out", again)
    assert again.read_bytes() == (tmp_path / "a.png").read_bytes()  # and so the same neurons


def test_an_image_of_ones_own(cli: Cli, ship: Path, tmp_path: Path) -> None:
    done = cli(
        "show", SNN, "--image", ship, "--attack", "pgd5", "--eps", "2/255", "--json",
        "--resize", 34, "--out", tmp_path / "a.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    snn = sj_robust.load(SNN)
    image = load_image(ship, image_size=32, resize=34)
    assert image.shape == (3, 32, 32)
    found = show(snn, image, eps=2 / 255, attack="pgd5")
    facts = json.loads(done.stdout)
    assert facts["image"] == {"file": str(ship)}
    before, after = found.predictions
    assert (facts["label"], facts["before"]["label"], facts["after"]["label"]) == (
        before,
        before,
        after,
    )
    assert facts["after"]["margin"] == found.margins[1]
    assert facts["broken"] is found.broken and facts["distance"] == found.distance
    assert {name: tuple(rates) for name, rates in facts["rates"].items()} == found.rates()
    written(tmp_path / "a.png")


def test_an_ann(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "show",
        ANN,
        "--data",
        "sample",
        "--split",
        "train",
        "--index",
        1,
        "--out",
        tmp_path / "a.png",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ANN} on sample train 1: ")
    assert written(tmp_path / "a.png").height < 600


def test_a_network_of_ones_own(cli: Cli, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "colour.py").write_text(COLOUR, encoding="utf-8")
    command = ("show", "--model", "colour:make", "--data", workplace / "colours", "--eps", "1e-5")
    for chosen, index, name in (((), 0, "blue"), (("--label", "RED"), 8, "red")):
        done = cli(*command, *chosen, "--attack", "fgsm", "--out", "a.png", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"colour:make on colours test {index}: {name} (margin +0.")
        assert done.stdout.endswith(", not broken\n")
        written(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("no-such-model",), "no-such-model"),
        ((SNN, "--image", "no.png"), "no.png does not exist: expected an image"),
        ((SNN, "--image", "."), "is no regular file"),
        ((SNN, "--image", "my_networks.py"), "my_networks.py cannot be decoded"),
        ((SNN, "--label", "zebra"), "the network has no class 'zebra'"),
        ((SNN, "--label", "10"), "expected a name, or a number from 0 to 9"),
        ((SNN, "--index", 1000), "--index is 1000: expected 0 to 999"),
        ((SNN, "--data", "no/such"), "no dataset 'no/such'"),
    ],
)
def test_a_failure_is_one_line(
    cli: Cli, tmp_path: Path, wrong: tuple[object, ...], message: str
) -> None:
    done = cli("show", *wrong, "--out", tmp_path / "a.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("sj-robust: ")
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_recorded_picture_stands_on_the_card(cli: Cli, ship: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    sj_robust.save(sj_robust.load(ANN), folder)
    before = folder / "README.md"
    assert cli("card", folder).returncode == 0
    assert "attacked.png" not in before.read_text()
    done = cli("show", folder, "--image", ship, "--attack", "fgsm", "--record")
    assert done.returncode == 0, done.stderr
    assert written(folder / "figures" / "attacked.png").width > 500
    assert f"sj-robust card {folder}" in done.stderr
    assert cli("card", folder).returncode == 0
    assert "](figures/attacked.png)" in before.read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        (SNN,),
        ("--image", "a.jpg", "--record", "--model", "timm:cifar_resnet20"),
        (SNN, "--out", "a.pdf"),
        ("--out", "a.png"),
        (SNN, "--out", "a.png", "--eps", "8"),
        (SNN, "--out", "a.png", "--image", "a.jpg", "--index", 3),
        (SNN, "--out", "a.png", "--image", "a.jpg", "--data", "sample"),
        (SNN, "--out", "a.png", "--label", "ship", "--index", 3),
    ],
)
def test_wrong_usage_is_2(cli: Cli, tmp_path: Path, wrong: tuple[object, ...]) -> None:
    done = cli("show", *wrong, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert not list(tmp_path.iterdir())
