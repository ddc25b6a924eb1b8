"""Opening an ANN from wherever it comes: a timm name, a weight file, a checkpoint, or a user's own function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sj_robust.data import MEAN_STD, ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.files import sha256
from sj_robust.hub.config import Config, read_config
from sj_robust.recipe import AnnSettings, checked


def open_ann(settings: AnnSettings, dataset: ImageDataset, *, seed: int = 0) -> Any:
    """The NormalizedClassifier that `settings` describe, for the images and classes of `dataset`; random weights are drawn by `seed`.

    Raises SJRobustError: no such network, weights that do not fit it, a checkpoint that is spiking already, or no known mean and std.
    """
    from sj_robust.hub import load
    from sj_robust.model import NormalizedClassifier, SpikingClassifier, create_ann, load_weights

    if settings.checkpoint:
        ann = load(settings.checkpoint, model=call_builder(settings.model, settings.args) if settings.model else None)
        if isinstance(ann, SpikingClassifier):
            raise SJRobustError(f"{settings.checkpoint} is a spiking network already: expected the checkpoint of an ANN")
        return ann
    classes = settings.num_classes or len(dataset.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.architecture:
            args = {**settings.args, "pretrained": True} if settings.pretrained else settings.args
            backbone = create_ann(settings.architecture, classes, weights=settings.weights, **args)
        else:
            assert settings.model is not None
            backbone = call_builder(settings.model, settings.args)
            if settings.weights and not isinstance(backbone, NormalizedClassifier):
                load_weights(backbone, settings.weights)
    if isinstance(backbone, NormalizedClassifier):
        return backbone
    mean, std = normalisation(settings, backbone, dataset)
    return NormalizedClassifier(backbone, mean, std)


def from_text(text: str | None, **fields: Any) -> AnnSettings:
    """Settings for what a command line names: a checkpoint folder, a zoo model, or else an architecture of timm."""
    from sj_robust.hub import list_models

    if text is not None:
        known = Path(text).is_dir() or text in {entry.name for entry in list_models()}
        fields["checkpoint" if known else "architecture"] = text
    return checked(AnnSettings, fields)


def call_builder(name: str, args: dict[str, Any]) -> nn.Module:
    """The network that a user's own `module:function` returns; the working directory is on the import path."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise SJRobustError(f"{name!r} is not module:function: write my_networks:make_resnet for make_resnet() in my_networks.py")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise SJRobustError(f"{name!r}: {error}; it has to be installed or lie in the working directory") from None
    except AttributeError:
        raise SJRobustError(f"{name!r}: module {module_name} has no {attribute}") from None
    network = function(**args)
    if not isinstance(network, nn.Module):
        raise SJRobustError(f"{name!r} returned a {type(network).__name__}: expected a torch.nn.Module")
    return network


def normalisation(settings: AnnSettings, backbone: nn.Module, dataset: ImageDataset) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std as given, else as the pretrained weights want them, else of the named data set, else of the pretrained_cfg."""
    if settings.mean and settings.std:
        return settings.mean, settings.std
    known = getattr(backbone, "pretrained_cfg", None) or {}
    trained_with = (known["mean"], known["std"]) if known.get("mean") and known.get("std") else None
    chosen = trained_with if settings.pretrained else MEAN_STD.get(dataset.name, trained_with)
    if settings.mean or settings.std or chosen is None:
        raise SJRobustError(
            f"the mean and std of {dataset.name} that {type(backbone).__name__} was trained with are not known: give both, mean and std"
        )
    return chosen


def fingerprint(settings: AnnSettings) -> dict[str, Any]:
    """What `settings` point to, as content hashes: a stage made from it is made again when that changes."""
    from sj_robust.hub import zoo

    found: dict[str, Any] = {}
    if settings.weights:
        if not Path(settings.weights).is_file():
            raise SJRobustError(f"no weight file {settings.weights}")
        found["weights"] = sha256(settings.weights)
    if settings.checkpoint:
        config = read_config(zoo.resolve(settings.checkpoint))
        found["checkpoint"] = {"weights": config.weights.sha256, "settings": config.settings}
    if settings.model:
        path = Path(*settings.model.partition(":")[0].split(".")).with_suffix(".py")
        found["code"] = sha256(path) if path.is_file() else None
    return found


def facts_of(config: Config) -> dict[str, Any]:
    """What a spiking network records of the ANN checkpoint it was converted from: flat, for its card."""
    training: dict[str, Any] = config.training or {}
    settings = training.get("config") or {}
    found = {
        "name": config.name,
        "weights_sha256": config.weights.sha256,
        "trained_on": training.get("dataset"),
        "epochs": training.get("epochs"),
        **{key: settings.get(key) for key in ("method", "eps", "attack_steps")},
    }
    return {key: value for key, value in found.items() if value is not None}
