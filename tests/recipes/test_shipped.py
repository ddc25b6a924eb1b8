"""Every recipe of the zoo can be run as it stands: it parses, its network is there for its data,
its protocol exists, its name is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sj_robust.attack import parse_attack
from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.config import read_config
from sj_robust.data.datasets import MEAN_STD
from sj_robust.evaluation.protocol import find_protocol
from sj_robust.model import create_ann
from sj_robust.recipes.spec import Recipe, read_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "zoo" / "recipes").glob("*.yaml"))
CLASSES_AND_SIZE = {
    "cifar10": (10, 32),
    "cifar100": (100, 32),
    "svhn": (10, 32),
    "tiny-imagenet": (200, 64),
    "imagenet": (1000, 224),
}
ANN_NAME = re.compile(
    r"(?P<arch>[a-z0-9_]+)\.(?P<dataset>[a-z0-9-]+)_(?P<threat>none|linf)_(?P<method>[a-z0-9_]+)"
)
SNN_NAME = re.compile(ANN_NAME.pattern.replace(r"\.", r"-snn-t(?P<timesteps>[0-9]+)\.", 1))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def recipe(path: Path) -> Recipe:
    return read_recipe(path)


def network(recipe: Recipe, classes: int) -> tuple[str, torch.nn.Module]:
    """The architecture's name and the ANN without memory for its weights."""
    architecture, args = recipe.ann.architecture, recipe.ann.args
    if (begun := recipe.ann.checkpoint or "").startswith("runs/"):  # what another recipe makes
        recipe = read_recipe(RECIPES[0].with_name(f"{Path(begun).parent.name}.yaml"))
        assert begun == f"runs/{recipe.name}/ann"
        architecture, args = recipe.ann.architecture, recipe.ann.args
    elif recipe.ann.checkpoint:
        config = read_config(zoo.find(recipe.ann.checkpoint).folder)
        assert config.num_classes == classes or recipe.ann.train  # with a fresh classifier
        architecture, args = config.architecture, config.model_args
    assert architecture is not None
    with torch.device("meta"):
        return architecture, create_ann(architecture, classes, **args)


def test_the_network_is_there_for_its_data(recipe: Recipe) -> None:
    classes, size = CLASSES_AND_SIZE[recipe.dataset]
    assert recipe.image_size in (None, size)
    if recipe.dataset == "imagenet":
        assert recipe.image_size == size  # its images come in all sizes
    _, ann = network(recipe, classes)
    assert ann.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, classes)
    assert recipe.dataset in MEAN_STD or (recipe.ann.mean and recipe.ann.std)


def test_the_name_says_what_it_is(path: Path, recipe: Recipe) -> None:
    assert recipe.name == path.stem
    name = SNN_NAME.fullmatch(recipe.name)
    assert name is not None
    architecture, _ = network(recipe, CLASSES_AND_SIZE[recipe.dataset][0])
    assert architecture in (name["arch"], f"cifar_{name['arch']}", f"tiny_{name['arch']}")
    assert int(name["timesteps"]) == recipe.convert.timesteps
    assert name["dataset"] == recipe.dataset
    assert recipe.finetune is not None
    assert recipe.finetune.method.startswith(name["method"].split("_")[0])
    assert (name["threat"] == "none") == (recipe.finetune.method == "natural")
    source = ANN_NAME.fullmatch(str(recipe.ann.name or recipe.ann.checkpoint))
    assert source is not None
    assert (source["arch"], source["dataset"]) == (name["arch"], name["dataset"])


def test_what_it_asks_for_exists(recipe: Recipe) -> None:
    settings: Any = recipe.evaluate
    if settings.protocol:
        find_protocol(settings.protocol)
    else:
        assert all(parse_attack(attack, eps=settings.eps[0]) for attack in settings.attacks)
    # which finds blocks by their spiking nodes
    assert not (recipe.ann.train and recipe.ann.train.checkpointing)
    assert recipe.license


def test_its_comment_has_the_command(path: Path) -> None:
    comment = "".join(
        line
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.startswith("#")
    )
    assert f"sj-robust run zoo/recipes/{path.name} --data PATH_OF_" in comment
