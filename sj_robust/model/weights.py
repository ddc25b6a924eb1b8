"""Networks by timm name, and weights from files that others wrote, without ever running code found
in them."""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError, first_line
from sj_robust.model import resnet, vgg, wide_resnet  # noqa: F401  registers them with timm
from sj_robust.model.base import renamed
from sj_robust.model.limit import LARGEST, within_size
from sj_robust.model.normalized import NormalizedClassifier, unit_scale
from sj_robust.phrases import did_you_mean
from sj_robust.text import visible

# where training scripts put the weights inside a checkpoint, averaged ones first: the order of
# timm's own loader, then that of others
NESTS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
)
# what wrappers (DataParallel, torch.compile, robustness, TRADES, our own) put before a key
PREFIXES = (
    "module.",
    "_orig_mod.",
    "attacker.",
    "model.",
    "backbone.",
    "net.",
    "network.",
    "basic_net.",
    "1.",
)
# what wrappers call the mean and std of the input: of their own, of a layer of theirs, of the first
# of two in a row
NORMALISATION = tuple(
    (owner + mean, owner + std)
    for owner in ("", "normalizer.", "normalize.", "0.")
    for mean, std in (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
)
LISTED = 4

Normalisation = tuple[list[float], list[float]]
"""Mean and std, one value per channel, of images in [0,1]."""


def create_ann(
    architecture: str,
    num_classes: int | None = 10,
    *,
    weights: str | os.PathLike[str] | None = None,
    **model_args: Any,
) -> nn.Module:
    """Build a network by its timm name and, if `weights` is given, fill it from that file.

    Where the file stores mean and std, a warning tells them: the bare network does not apply them.

    Args:
        architecture: any name `timm.create_model` knows: its own, this package's `cifar_*` and
            `tiny_*`, `hf-hub:…`, `local-dir:…`.
        num_classes: logits K; None leaves the architecture's own number.
        weights: a checkpoint, see `load_weights`.
        **model_args: passed on to the architecture, such as `shortcut="identity"`, `in_chans=1`,
            `pretrained=True`.

    Returns:
        The bare network: normalised images [N,C,H,W] to logits [N,K].

    Raises:
        SJRobustError: an unknown name, arguments that the architecture does not take, or weights
            that do not fit.
    """
    if ":" not in architecture and not timm.is_model(architecture.split(".")[0]):
        raise SJRobustError(f"unknown architecture {architecture!r}: {_near(architecture)}")
    if num_classes is not None:
        model_args["num_classes"] = num_classes
    try:
        with within_size(f"{architecture} with {visible(model_args, 200)}", LARGEST):
            model = timm.create_model(architecture, **model_args)
    except SJRobustError:
        raise
    # timm's builders raise whatever the arguments led to, its downloads whatever the connection did
    except Exception as error:
        raise SJRobustError(
            f"{architecture} cannot be built with {model_args}: {_first_line(error)}"
        ) from error
    # as timm itself does from 1.0.31 on: what is saved of the network then says how to build it
    vars(model).setdefault("_model_args", model_args)
    if weights is not None and (stored := load_weights(model, weights)):
        mean, std = map(rounded, stored)
        warnings.warn(
            f"{weights} was trained with mean {mean} and std {std}: give them to"
            " NormalizedClassifier or convert",
            stacklevel=2,
        )
    return model


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> Normalisation | None:
    """Fill `model` from a checkpoint file, all of it or nothing.

    On an error the model is as it was. Key prefixes of wrappers (`PREFIXES`) are removed as far as
    needed, an architecture's `checkpoint_renames` are applied, counters of batches that a batch
    norm lacks are taken as 0.

    Returns:
        The mean and std that the file stores beside the weights (`NORMALISATION`), None where it
            stores none or `model` keeps them itself.

    Raises:
        SJRobustError: the file cannot be read (see `read_state_dict`), its keys or shapes are not
            those of the model (listed), or it stores another mean or std than those of `model`, a
            NormalizedClassifier.
    """
    target = model.backbone if isinstance(model, NormalizedClassifier) else model
    expected = target.state_dict()
    state, taken_off = fit_keys(
        read_state_dict(path), expected, getattr(target, "checkpoint_renames", ())
    )
    pairs = [
        pair for pair in NORMALISATION if all(key in state and key not in expected for key in pair)
    ]
    stored = normalisation_in({key: state.pop(key) for pair in pairs for key in pair})
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    _check_keys(state, expected, path, taken_off)
    if stored and isinstance(model, NormalizedClassifier):
        check_normalisation(
            str(path), stored, model.mean.flatten().tolist(), model.std.flatten().tolist()
        )
    target.load_state_dict(state)
    return stored


def normalisation_in(tensors: Mapping[str, Tensor]) -> Normalisation | None:
    """Mean and std that `tensors` hold under names of `NORMALISATION`, for images in [0,1]
    (`unit_scale`)."""
    names = normalisation_names(tensors)
    return unit_scale(*(tensors[name] for name in names)) if names else None


def normalisation_names(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names in `NORMALISATION` under which `tensors` hold a mean and a std, if they do."""
    return next((pair for pair in NORMALISATION if all(key in tensors for key in pair)), None)


def check_normalisation(
    origin: str, known: Normalisation, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Raise SJRobustError, naming `origin`, unless `mean` and `std` (None: not given) are the
    `known` ones, to three digits."""
    for what, right, given in zip(("mean", "std"), known, (mean, std), strict=True):
        if given is not None and not (len(right) == len(given) and all(map(_close, right, given))):
            raise SJRobustError(
                f"{origin} has the {what} {rounded(right)}, but {rounded(given)} was given: leave"
                " it away, or correct it"
            )


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, by the names they have there.

    They are taken out of a nested `state_dict` (`NESTS`) if there is one. `.safetensors` is read
    with safetensors, everything else (`.pt`, `.pth`, `.ckpt`, `.th`, `.bin`) with
    `torch.load(weights_only=True)`.

    Raises:
        SJRobustError: no such file, a folder, an empty or damaged file, a web page or Git LFS
            pointer saved in place of the weights, Python objects that are not plain weights, or no
            tensors in it.
    """
    path = Path(path)
    _check_file(path)
    content = (
        _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    )
    for _ in NESTS:  # one in another, but not for ever: a file may hold a dict that holds itself
        if isinstance(content, Mapping):
            content = next(
                (content[name] for name in NESTS if isinstance(content.get(name), Mapping)), content
            )
    if not isinstance(content, Mapping):
        raise SJRobustError(
            f"{path}: holds a {type(content).__name__}, expected a dict of tensors or one with a"
            f" key in {', '.join(NESTS)}"
        )
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    others = [str(key) for key in content if str(key) not in tensors]
    if others or not tensors:
        raise SJRobustError(
            f"{path}: expected a dict of tensors, found {_listed(others) or 'an empty dict'}; save"
            " model.state_dict()"
        )
    return tensors


def fit_keys(
    state: Mapping[str, Tensor], expected: Iterable[str], renames: Iterable[tuple[str, str]] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """`state` with wrapper prefixes removed from the keys and `renames` applied where that leads to
    an `expected` (or normalisation) key, and the prefixes removed.

    A key that leads nowhere loses all its prefixes, and shows so in the error message. Branches of
    one network that a file holds twice, as those of robustness do (`model.`, `attacker.model.`),
    become one.

    Raises:
        SJRobustError: two tensors that differ claim the same key.
    """
    known = {*expected, *(key for pair in NORMALISATION for key in pair)}
    renames = tuple(renames)
    result: dict[str, Tensor] = {}
    taken_off: dict[str, None] = {}
    for key, value in state.items():
        name, prefixes = _fit_key(key, known, renames)
        if name in result and not (
            result[name].shape == value.shape and torch.equal(result[name], value)
        ):
            raise SJRobustError(
                f"two different tensors for {name} (one is {key}): the file holds more than one"
                " network"
            )
        result[name] = value
        taken_off |= dict.fromkeys(prefixes)
    return result, list(taken_off)


def _fit_key(
    key: str, known: set[str], renames: tuple[tuple[str, str], ...]
) -> tuple[str, list[str]]:
    """The first known name on the way from `key` through its prefixes, and those; the fully
    stripped one if none is known."""
    prefixes: list[str] = []
    while True:
        name = next(iter(renamed({key: torch.empty(0)}, renames)))
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if name in known or prefix is None:
            return name, prefixes
        prefixes.append(prefix)
        key = key.removeprefix(prefix)


def _check_keys(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    taken_off: list[str],
) -> None:
    missing = [f"{key} {list(value.shape)}" for key, value in expected.items() if key not in state]
    unknown = [f"{key} {list(value.shape)}" for key, value in state.items() if key not in expected]
    both = {
        key: (list(state[key].shape), list(value.shape))
        for key, value in expected.items()
        if key in state
    }
    misshapen = [
        f"{key} {stored} for {wanted}" for key, (stored, wanted) in both.items() if stored != wanted
    ]
    found = [("missing", missing), ("unknown", unknown), ("wrong shape", misshapen)]
    problems = [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in found if keys]
    if problems:
        without = f" without the prefixes {' '.join(taken_off)}" if taken_off else ""
        raise SJRobustError(
            f"{path}{without} does not fit the model; {'; '.join(problems)}. Check architecture,"
            " its arguments and num_classes; a network that timm does not have is built by a"
            " function of yours (model, --model)"
        )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise SJRobustError(
            f"{path} is a folder: expected a weights file (.safetensors, .pt, .pth, .ckpt, .th,"
            " .bin)"
        )
    if not path.is_file():
        raise SJRobustError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            head = file.read(512).lstrip()
    except OSError as error:
        raise SJRobustError(f"{path}: cannot be read ({error.strerror})") from error
    if path.stat().st_size == 0:
        raise SJRobustError(f"{path} is empty: download or save it again")
    if head.startswith(b"<"):
        raise SJRobustError(
            f"{path} is a web page, not weights: the download went to an error or confirmation"
            " page; fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise SJRobustError(f"{path} is a Git LFS pointer, not weights: run `git lfs pull`")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise SJRobustError(
            f"{path} is damaged or not a safetensors file ({_first_line(error)}): fetch it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        # training scripts, timm's among them, keep their arguments beside the weights; a Namespace
        # cannot run code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _refused_globals(path, error)
        if not refused:
            raise _damaged(path, error) from error
        raise SJRobustError(
            f"{path} holds Python objects that could run code ({_listed(refused)}) and is not read:"
            " where you trust it, load it yourself and save model.state_dict() alone"
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OSError,
    ) as error:
        raise _damaged(path, error) from error


def _refused_globals(path: Path, error: Exception) -> list[str]:
    """Names of the classes and functions that `weights_only` refused, those outside torch first."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # the old file format has no such list, a damaged pickle may raise anything: then the message
    # has the first name
    except Exception:
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return sorted(
        (name for name in names if name != "argparse.Namespace"),
        key=lambda name: (name.startswith("torch."), name),
    )


def _damaged(path: Path, error: Exception) -> SJRobustError:
    inner = re.search(r"WeightsUnpickler error: (.*)", str(error))
    reason = inner[1].strip() if inner else _first_line(error)
    return SJRobustError(
        f"{path} is damaged or not a plain PyTorch checkpoint ({reason}): fetch it again"
    )


def _near(architecture: str) -> str:
    near = did_you_mean(architecture, timm.list_models())
    return near or "timm.list_models() lists the names"


def rounded(values: Sequence[float]) -> list[float]:
    """To the four digits that tell one mean or std from another."""
    return [round(value, 4) for value in values]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=1e-3)


def _listed(items: list[str]) -> str:
    more = f", … ({len(items)} in all)" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _first_line(error: Exception) -> str:
    """The first sentence of the first line: what follows in torch's messages is advice, some of it
    unsafe."""
    return first_line(error).split(". ")[0]
