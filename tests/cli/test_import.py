"""Networks and weights from where others keep them: foreign files, folders of timm, and the Hub;
what is known of their input is used."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hub_server.fixtures import ANN, upload
from PIL import Image
from torch import nn

from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, create_ann
from sj_robust.recipes.network import open_ann
from sj_robust.recipes.spec import AnnSettings, CalibratedConversion
from sj_robust.recipes.steps import convert_with

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]
SMALL = (
    "--timesteps",
    2,
    "--calibration-timesteps",
    3,
    "--batches",
    1,
    "--batch-size",
    8,
    "--percentile",
    90,
)
OWN = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.4,0.3")


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(1)
    model = create_ann("cifar_resnet20", num_classes=2)
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained: nn.Module) -> Path:
    """Weights as robustness saves them, as they are, and in a folder of timm's; images of ten
    classes."""
    folder = tmp_path_factory.mktemp("import")
    state = trained.state_dict()
    wrapped: dict[str, Any] = {
        f"module.{branch}model.{key}": value
        for branch in ("", "attacker.")
        for key, value in state.items()
    }
    for layer in ("normalizer", "attacker.normalize"):
        wrapped |= {
            f"module.{layer}.new_{what}": torch.tensor(values).view(3, 1, 1)
            for what, values in (("mean", MEAN), ("std", STD))
        }
    torch.save(
        {"model": wrapped, "epoch": 150, "optimizer": {"state": {}}}, folder / "robustness.pt"
    )
    torch.save(state, folder / "bare.pth")
    torch.save({"state_dict": state, "trainer": Path("an object")}, folder / "objects.pt")
    trained.pretrained_cfg = {**trained.pretrained_cfg, "mean": MEAN, "std": STD, "num_classes": 2}  # type: ignore[assignment]
    timm.models.save_for_hf(trained, str(folder / "timm"))
    random = np.random.default_rng(0)
    for number in range(10):
        target = folder / "ten" / "train" / str(number)
        target.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            target / "image.png"
        )
    return folder


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_robust_checkpoint_brings_its_normalisation(
    cli: Cli, place: Path, workplace: Path
) -> None:
    command = ("convert", "cifar_resnet20", "--data", workplace / "colours", *SMALL)
    done = cli(*command, "--weights", "robustness.pt", "--out", "snn", cwd=place)
    assert done.returncode == 0, done.stderr
    config = settings_of(place / "snn")
    assert (config["settings"]["mean"], config["settings"]["std"]) == (
        pytest.approx(MEAN),
        pytest.approx(STD),
    )
    assert config["architecture"] == "cifar_resnet20"

    wrong = refusal(
        cli(
            *command,
            "--weights",
            "robustness.pt",
            "--mean",
            "0.5,0.5,0.5",
            "--out",
            "no",
            cwd=place,
        )
    )
    assert "robustness.pt has the mean [0.1, 0.2, 0.3], but [0.5, 0.5, 0.5] was given" in wrong
    assert "bare.pth was trained with are not known: give both" in refusal(
        cli(*command, "--weights", "bare.pth", "--out", "no", cwd=place)
    )
    assert "could run code" in refusal(
        cli(*command, "--weights", "objects.pt", *OWN, "--out", "no", cwd=place)
    )
    assert "does not fit the model" in refusal(
        cli(
            *command,
            "--weights",
            "bare.pth",
            "--arg",
            "shortcut=identity",
            *OWN,
            "--out",
            "no",
            cwd=place,
        )
    )
    assert not (place / "no").exists()


def test_a_folder_of_timm_brings_weights_and_normalisation(
    cli: Cli, place: Path, workplace: Path
) -> None:
    done = cli(
        "convert",
        "local-dir:timm",
        "--data",
        workplace / "colours",
        *SMALL,
        "--out",
        "from-timm",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    config = settings_of(place / "from-timm")
    assert (config["settings"]["mean"], config["settings"]["std"]) == (
        pytest.approx(MEAN),
        pytest.approx(STD),
    )
    assert config["architecture"] == "cifar_resnet20"
    line = refusal(
        cli("convert", "local-dir:timm", "--data", "ten", *SMALL, "--out", "no", cwd=place)
    )
    assert "local-dir:timm tell 2 classes apart, ten has 10" in line
    assert "Config file not found" in refusal(
        cli("convert", "local-dir:absent", "--data", "ten", *SMALL, "--out", "no", cwd=place)
    )


def test_a_robust_network_is_trained_on_data_of_other_classes(
    cli: Cli, place: Path, workplace: Path
) -> None:
    command = (
        "train-ann",
        "resnet20.cifar10_linf_pgd",
        "--data",
        workplace / "colours",
        "--method",
        "natural",
        "--epochs",
        1,
        "--validation",
        8,
        "--batch-size",
        16,
    )
    done = cli(*command, "--out", "colours-ann", cwd=place)
    assert done.returncode == 0, done.stderr
    made, theirs = (
        safetensors.torch.load_file(folder / "model.safetensors")
        for folder in (place / "colours-ann", ANN)
    )
    assert made["fc.weight"].shape == (2, 64)
    assert (made["conv1.weight"] - theirs["conv1.weight"]).abs().max() < 0.2  # not drawn anew


def test_networks_on_the_hub(
    cli: Cli, place: Path, workplace: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    # timm asks the address that huggingface_hub took when it was imported
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    upload(hub, ANN, "bob/ann")
    theirs = settings_of(ANN)
    thresholds = []
    for name in ("bob/ann@main", "hf-hub:bob/ann"):
        out = place / f"hub{len(thresholds)}"
        done = cli("convert", name, "--data", "ten", *SMALL, "--out", out, cwd=place)
        assert done.returncode == 0, done.stderr
        made = settings_of(out)
        assert all(
            made["settings"][key] == pytest.approx(theirs["settings"][key])
            for key in ("mean", "std")
        )
        thresholds.append(made["thresholds"])
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-5)
    for name in ("bob/ann", "hf-hub:bob/ann"):
        line = refusal(
            cli("convert", name, "--data", workplace / "colours", *SMALL, "--out", "no", cwd=place)
        )
        assert "10 classes apart, colours has 2" in line
    for name in ("bob/absent", "hf-hub:bob/absent"):
        line = refusal(cli("convert", name, "--data", "ten", *SMALL, "--out", "no", cwd=place))
        assert (
            f"bob/absent is neither a folder in {place} nor a repository that {hub.endpoint}"
            " shows you" in line
        )


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    pixels = torch.randint(
        0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return ImageDataset(pixels, torch.arange(16) % 2, ("a", "b"), "cifar10", "train")


def test_a_named_data_set_is_taken_for_bare_weights_and_says_so(
    place: Path, images: ImageDataset
) -> None:
    settings = AnnSettings(architecture="cifar_resnet20", weights=str(place / "bare.pth"))
    with pytest.warns(
        UserWarning,
        match=r"bare.pth does not say with which mean and std.*cifar10's are taken, \[0.4914",
    ):
        ann = open_ann(settings, images)
    assert ann.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
    wrapped, bare = (
        open_ann(
            AnnSettings(
                architecture="cifar_resnet20", weights=str(place / file), mean=MEAN, std=STD
            ),
            images,
        ).eval()
        for file in ("robustness.pt", "bare.pth")
    )
    assert torch.equal(wrapped(images.floats()), bare(images.floats()))


NORMALISING = """
import torch
from torch import nn

class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), persistent=False)

    def forward(self, x):
        return (x - self.mean) / self.std

def make():
    head = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    return nn.Sequential(Normalize(), nn.Conv2d(3, 4, 3), nn.ReLU(), *head)
"""


def test_a_network_that_normalises_itself_is_not_normalised_twice(
    tmp_path: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "normalising.py").write_text(NORMALISING)
    monkeypatch.syspath_prepend(str(tmp_path))
    ann = open_ann(AnnSettings(model="normalising:make"), images)
    assert (ann.mean.flatten().tolist(), ann.std.flatten().tolist()) == ([0.0] * 3, [1.0] * 3)
    with pytest.raises(
        SJRobustError, match=r"which normalises the images itself, has the mean \[0.0, 0.0, 0.0\]"
    ):
        open_ann(AnnSettings(model="normalising:make", mean=MEAN, std=STD), images)
    # the other settings of a recipe's conversion reach it, too
    snn = convert_with(
        ann,
        images,
        CalibratedConversion(
            timesteps=2,
            calibration_timesteps=2,
            batches=1,
            batch_size=4,
            percentile=90,
            replace_activation="relu",
            pooling="average",
        ),
    )
    assert isinstance(ann, NormalizedClassifier) and isinstance(snn.backbone[3], nn.AvgPool2d)  # type: ignore[index]
    assert snn.settings["replace_activation"] == "relu"
