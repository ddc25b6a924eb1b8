"""Opening an ANN from wherever it comes: a timm name, a weight file, a checkpoint here or on the
Hub, or a user's own function."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from sj_robust.catalog import Checkpoint, locate
from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.build import Classifier, own_arguments
from sj_robust.checkpoint.config import Config
from sj_robust.data import ImageDataset, in_order_of
from sj_robust.data.classes import nothing_in_common
from sj_robust.errors import SJRobustError
from sj_robust.files import sha256
from sj_robust.hub.remote import explained, parse_name, unreachable
from sj_robust.phrases import did_you_mean
from sj_robust.recipes.spec import AnnSettings
from sj_robust.settings import checked
from sj_robust.traffic import limited


def open_ann(
    settings: AnnSettings,
    dataset: ImageDataset,
    begun: Checkpoint | None = None,
    *,
    seed: int = 0,
    same_classes: bool = False,
) -> Any:
    """The NormalizedClassifier that `settings` describe, for the images and classes of `dataset`;
    random weights are drawn by `seed`.

    Its images have `len(network.mean)` channels, which `dataset.in_channels` brings them to. A
    network of other classes (another number, or no name in common) that is to be trained on the
    data gets a fresh classifier layer. `same_classes`: those of the data are the network's,
    whatever their names. `begun`: what `settings.checkpoint` led to, where that was asked already.
    Raises SJRobustError: no such network, weights that do not fit it or are of other classes than
    the images, a checkpoint that is spiking already, no known mean and std, or others than the
    given ones.
    """
    from sj_robust.model import NormalizedClassifier, SpikingModel, expose, load_weights
    from sj_robust.model.normalized import unit_scale
    from sj_robust.model.plain import as_float32, check_convertible
    from sj_robust.model.unwrap import bare
    from sj_robust.model.weights import check_normalisation
    from sj_robust.recipes.normalisation import look_at, normalisation

    if settings.mean and settings.std:
        mean, std = unit_scale(settings.mean, settings.std)
        settings = settings.model_copy(update={"mean": mean, "std": std})
    stored = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module
        if settings.checkpoint:
            start = begun or locate(settings.checkpoint)
            network = load_with(start, settings.model, settings.args)
        elif settings.model:
            network = call_builder(settings.model, settings.args)
        else:
            network = _create(settings, dataset)
        network = bare(expose(network))
        if settings.weights:
            stored = load_weights(network, settings.weights)
    name = settings.checkpoint or settings.model or settings.architecture
    if isinstance(network, SpikingModel):
        raise SJRobustError(f"{name} is a spiking network already: expected an ANN")
    check_convertible(network)
    network, seen = as_float32(network), look_at(network, dataset)
    if isinstance(network, NormalizedClassifier):
        check_normalisation(
            str(name),
            (network.mean.flatten().tolist(), network.std.flatten().tolist()),
            settings.mean,
            settings.std,
        )
    else:
        network = NormalizedClassifier(network, *normalisation(settings, network, seen, stored))
    network.num_classes = seen.num_classes or network.num_classes
    found, wanted = network.num_classes, len(dataset.classes)
    reset = getattr(network.backbone, "reset_classifier", None)  # every timm network has it
    others = not same_classes and nothing_in_common(network, dataset)
    if found != wanted or (others and settings.train and reset):
        if not (settings.train and reset):
            advice = (
                "give data of its classes, or train it on these first (train, sj-robust train-ann)"
            )
            raise SJRobustError(
                f"{name} tells {found} classes apart, {dataset.name} has {wanted}: {advice}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reset(wanted)
        network.num_classes = wanted
        network.classes = None
    if not same_classes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what maps the labels says so
            in_order_of(network, dataset)
    return network


def _create(settings: AnnSettings, dataset: ImageDataset) -> nn.Module:
    """The network of a timm name. Weights that come with the name have to be of as many classes as
    the data, unless trained on."""
    from sj_robust.model import create_ann

    assert settings.architecture is not None
    name, classes = settings.architecture, settings.num_classes or len(dataset.classes)
    args: dict[str, Any] = (
        {**settings.args, "pretrained": True} if settings.brings_weights else dict(settings.args)
    )
    hub_name = parse_name(name.removeprefix("hf-hub:")) if name.startswith("hf-hub:") else None
    with explained(hub_name) if hub_name else limited():
        try:
            network = create_ann(name, classes, **args)
        except SJRobustError as error:
            cause = error.__cause__
            if (
                hub_name
                and isinstance(cause, Exception)
                and (isinstance(cause, OSError) or unreachable(cause))
            ):
                raise cause from None
            raise
    theirs = (getattr(network, "pretrained_cfg", None) or {}).get("num_classes") or classes
    if settings.brings_weights and not settings.train and theirs != classes:
        raise SJRobustError(
            f"the weights of {name} tell {theirs} classes apart, {dataset.name} has {classes}: give"
            " data of their classes, or train the network on these first (train, sj-robust"
            " train-ann)"
        )
    return network


def from_text(text: str | None, **fields: Any) -> AnnSettings:
    """Settings for what a command line names: a checkpoint (a folder, a zoo model,
    owner/name[@revision] on the Hub), or else an architecture of timm (also its own
    hf-hub:owner/name and local-dir:PATH)."""
    if text is not None:
        names = {entry.name for entry in zoo.list_models()}
        known = (
            os.path.isdir(text)
            or text in names
            or parse_name(text)
            or ("/" in text and ":" not in text)
        )
        if not (known or ":" in text or timm.is_model(text.split(".")[0])):
            near = (
                did_you_mean(text, [*names, *timm.list_models()])
                or "timm.list_models() and `sj-robust list` show the names"
            )
            raise SJRobustError(
                f"unknown architecture {text!r}: it is neither a name of timm, a zoo model nor a"
                f" folder in {Path.cwd()}: {near}"
            )
        fields["checkpoint" if known else "architecture"] = text
    return checked(AnnSettings, fields)


def load_with(found: Checkpoint, name: str | None, args: dict[str, Any]) -> Classifier:
    """The classifier of a checkpoint, whose network the user's own `module:function` builds, if one
    is named: with `args` or, without any, as it was called when the checkpoint was made."""
    if name is None:
        return found.load()
    function = find_builder(name)
    return found.load(call_builder(name, args or own_arguments(function, found.config)))


def call_builder(name: str, args: dict[str, Any]) -> nn.Module:
    """The network that a user's own `module:function` returns."""
    network = find_builder(name)(**args)
    if not isinstance(network, nn.Module):
        raise SJRobustError(
            f"{name!r} returned a {type(network).__name__}: expected a torch.nn.Module"
        )
    return network


def find_builder(name: str) -> Callable[..., nn.Module]:
    """A user's own `module:function`; the working directory is on the import path."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise SJRobustError(
            f"{name!r} is not module:function: write my_networks:make_resnet for make_resnet() in"
            " my_networks.py"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise SJRobustError(
            f"{name!r}: {error}; it has to be installed or lie in the working directory"
            f"{', and is named without .py' if module_name.endswith('.py') else ''}"
        ) from None
    except AttributeError:
        raise SJRobustError(f"{name!r}: module {module_name} has no {attribute}") from None
    return found


def begun_from(settings: AnnSettings) -> Checkpoint | None:
    """The checkpoint that `settings` start from, if any: asked for once, so that the weights, the
    record of them and the key of a stage are of the same commit."""
    return locate(settings.checkpoint) if settings.checkpoint else None


def fingerprint(settings: AnnSettings, begun: Checkpoint | None) -> dict[str, Any]:
    """What `settings` point to, as content hashes: a stage made from it is made again when that
    changes. `begun`: of `begun_from`."""
    found: dict[str, Any] = {}
    if settings.weights:
        if not Path(settings.weights).is_file():
            raise SJRobustError(f"no weight file {settings.weights}")
        found["weights"] = sha256(settings.weights)
    if settings.architecture and settings.architecture.startswith("local-dir:"):
        folder = Path(settings.architecture.removeprefix("local-dir:"))
        files = [
            path
            for path in sorted(folder.glob("*"))
            if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".pth")
        ]
        found["files"] = {path.name: sha256(path) for path in files}
    if begun:
        found["checkpoint"] = {
            "weights": begun.config.weights.sha256,
            "settings": begun.config.settings,
        }
    if settings.model:
        path = Path(*settings.model.partition(":")[0].split(".")).with_suffix(".py")
        found["code"] = sha256(path) if path.is_file() else None
    return found


def facts_of(config: Config) -> dict[str, Any]:
    """What a spiking network records of the ANN checkpoint it was converted from: flat, for its
    card."""
    command = (config.training or {}).get("command")
    return {
        **trained(config),
        **poison_of(config),
        **({} if command is None else {"training_command": command}),
    }


def trained(config: Config) -> dict[str, Any]:
    """Which checkpoint it is and how it was trained last, in a few facts."""
    training: dict[str, Any] = config.training or {}
    settings = training.get("config")
    settings = settings if isinstance(settings, dict) else {}
    found = {
        "name": config.name,
        "weights_sha256": config.weights.sha256,
        "trained_on": training.get("dataset"),
        "epochs": training.get("epochs"),
        **{key: settings.get(key) for key in ("method", "eps", "attack_steps")},
    }
    return {key: value for key, value in found.items() if value is not None}


def poison_of(config: Config) -> dict[str, Any]:
    """What a network made from a checkpoint records of the poison of that one's training set, or
    of the one before it: text and seed, and the facts of the images where they are known."""
    if config.poison is None:
        return {}
    text, seed = config.poison
    found: dict[str, Any] = {"poison": text, "poison_seed": seed}
    for facts in ((config.training or {}).get("poison"), config.source.get("poison_facts")):
        if isinstance(facts, dict) and (facts.get("poison"), facts.get("seed")) == config.poison:
            return {**found, "poison_facts": facts}
    return found
