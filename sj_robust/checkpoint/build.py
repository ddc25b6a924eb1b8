"""From a validated config and tensors to the classifier they describe."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

import sj_robust.model  # noqa: F401  registers the CIFAR architectures with timm
from sj_robust.checkpoint.config import LARGEST_SIDE, Config, plain_values
from sj_robust.conversion import rebuild
from sj_robust.errors import SJRobustError
from sj_robust.model import (
    NormalizedClassifier,
    SpikingJellyClassifier,
    SpikingModel,
    from_spikingjelly,
)
from sj_robust.model.limit import within_size
from sj_robust.model.plain import as_stored
from sj_robust.phrases import did_you_mean, few
from sj_robust.text import visible

Classifier = SpikingModel | NormalizedClassifier


def own_arguments(function: Callable[..., nn.Module], config: Config) -> dict[str, Any]:
    """What the config records of the call that made a user's own network, where `function` takes
    it."""
    if config.architecture is not None:
        return {}
    try:
        inspect.signature(function).bind(**config.model_args)
    except (TypeError, ValueError):  # takes others, or says nothing of them
        return {}
    return config.model_args


def build_backbone(config: Config, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The raw network named by a config, randomly initialised, without touching the global random
    state.

    A config asking for a network much larger than its `tensors` is refused before any memory is
    taken for it. Raises SJRobustError for a name timm does not have, or arguments it does not
    accept.
    """
    name = config.architecture
    if name is None or not timm.is_model(name):
        hint = did_you_mean(name or "", timm.list_models()) or "see timm.list_models()"
        raise SJRobustError(
            f"architecture {name!r} is not known to timm {timm.__version__}: {hint}"
        )
    called = _asked(name, config.model_args)
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if any(
        isinstance(value, int) and abs(value) > max(largest, LARGEST_SIDE)
        for value in plain_values(config.model_args)
    ):
        raise SJRobustError(
            f"{called} has a number that is neither a size of the weights nor of images: they do"
            " not fit"
        )
    try:
        with torch.device("meta"), within_size(called, len(tensors)):
            planned = _size(
                timm.create_model(
                    name, num_classes=config.num_classes, **config.model_args
                ).state_dict()
            )
        # folding or omitting batch norms only drops the few numbers they hold
        if planned > 2 * _size(tensors) + 100_000:
            raise SJRobustError(
                f"{called} has {planned} numbers, the weights {_size(tensors)}: they do not fit"
            )
        with torch.random.fork_rng(devices=[]):
            network: Any = timm.create_model(
                name, num_classes=config.num_classes, **config.model_args
            )
    except SJRobustError:
        raise
    except Exception as error:  # timm's builders raise whatever the arguments led to
        raise SJRobustError(
            f"timm {timm.__version__} cannot build {called} ({_line(error)}): "
            "config.json is damaged or made for another timm"
        ) from error
    # timm does not keep the arguments where they can be read: what is measured or saved of this
    # network records them
    network.architecture_args = {"architecture": name, "model_args": dict(config.model_args)}
    return network  # type: ignore[no-any-return]


def assemble(
    config: Config, backbone: nn.Module, tensors: Mapping[str, Tensor], origin: str
) -> Classifier:
    """The classifier described by `config` around `backbone`, holding `tensors`, in eval mode.

    Raises SJRobustError, naming `origin`, where settings or tensors do not fit the network; the
    misfits are listed. Warns where SpikingJelly's nodes have other constants or surrogate functions
    than those that were saved.
    """
    classifier: Classifier
    if max(config.settings["mean"]) > 1:
        raise SJRobustError(
            f"the settings of {origin} have the mean {config.settings['mean']}: expected one of"
            " images in [0,1]"
        )
    try:
        with (
            torch.random.fork_rng(devices=[]),
            within_size(f"config.json of {origin}", len(tensors)),
        ):
            classifier = _structure(config, backbone, tensors)
    except SJRobustError:
        raise
    # settings name places in the network, and lead to whatever lies there
    except Exception as error:
        raise SJRobustError(
            f"the settings of {origin} do not fit {_called(config, backbone)} ({_line(error)})"
        ) from error
    classifier.num_classes = config.num_classes
    classifier.classes = tuple(config.classes) if config.classes else None
    holder = weights_of(classifier)
    if problems := mismatches(holder.state_dict(), tensors):
        raise SJRobustError(
            f"{origin} does not fit {_called(config, backbone)}: {few(problems, 5, '; ')}"
        )
    holder.load_state_dict(dict(tensors))
    if isinstance(classifier, SpikingJellyClassifier):
        _compare_nodes(config.settings["nodes"], classifier.settings["nodes"], origin)
    # layouts take different kernels, which round differently
    return classifier.to(memory_format=getattr(torch, config.memory_format)).eval()


def _structure(config: Config, backbone: nn.Module, tensors: Mapping[str, Tensor]) -> Classifier:
    if config.layers_by_node:
        settings = {key: config.settings.get(key) for key in ("timesteps", "mean", "std", "input")}
        return from_spikingjelly(backbone, **settings, num_classes=config.num_classes)  # type: ignore[arg-type]
    if config.kind == "snn":
        backbone = as_stored(backbone, tensors, "backbone.")
        return rebuild(
            backbone,
            dict(config.settings),
            source=dict(config.source),
            input_size=config.input_size,
        )
    return NormalizedClassifier(
        as_stored(backbone, tensors, ""), config.settings["mean"], config.settings["std"]
    )


def weights_of(model: Classifier) -> nn.Module:
    """The module whose state_dict is stored: a spiking classifier itself, an ANN's raw backbone so
    that timm knows the names."""
    return model if isinstance(model, SpikingModel) else model.backbone


def mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps the tensors `found` in a file from being those a network expects, one phrase each;
    empty when they fit."""
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in expected]
    for key in expected.keys() & found.keys():
        if expected[key].shape != found[key].shape:
            problems.append(
                f"{key} is {list(found[key].shape)}, expected {list(expected[key].shape)}"
            )
        elif expected[key].dtype != found[key].dtype:
            problems.append(f"{key} is {found[key].dtype}, expected {expected[key].dtype}")
    return sorted(problems)


def _compare_nodes(saved: Mapping[str, str], found: Mapping[str, str], origin: str) -> None:
    """The tensors do not tell a node's time constant or threshold; its text does."""
    for name in [*saved, *(found.keys() - saved.keys())]:
        before, now = saved.get(name, "no node"), found.get(name, "no node")
        if before.partition("(")[0] != now.partition("(")[0]:
            raise SJRobustError(
                f"{origin} does not fit the network: {name} was {before} when it was saved, now it"
                f" is {now}"
            )
        if before != now:
            warnings.warn(
                visible(
                    f"{name} of {origin} was {before} when it was saved, now it is {now}: what was"
                    " measured may not hold"
                ),
                stacklevel=4,
            )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return sorted(
        key
        for key, tensor in tensors.items()
        # isfinite does not know all types of 8 bits
        if not torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all()
    )


def probe(input_size: list[int]) -> Tensor:
    """One deterministic image [1,C,H,W] in [0,1], neither flat nor symmetric, to compare two
    networks on."""
    return (
        (torch.arange(math.prod(input_size), dtype=torch.float32) * 0.37)
        .sin()
        .abs()
        .view(1, *input_size)
    )


def _asked(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name} with {visible(dict(arguments), 200)}" if arguments else name


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _called(config: Config, backbone: nn.Module) -> str:
    return config.architecture or type(backbone).__name__


def _line(error: Exception) -> str:
    return visible((f"{type(error).__name__}: {error}".splitlines() or [""])[0], 200)
