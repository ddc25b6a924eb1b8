"""From a classifier to the config that rebuilds it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor, nn

from sj_robust.checkpoint.build import Classifier, assemble, build_backbone, probe
from sj_robust.checkpoint.config import (
    FORMAT_VERSION,
    LIBRARY,
    Architecture,
    Config,
    ModelArgs,
)
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.facts import versions as all_versions
from sj_robust.evaluation.facts import weights_sha256
from sj_robust.model import SpikingModel
from sj_robust.model.layout import layout_of
from sj_robust.model.normalized import count_logits
from sj_robust.model.plain import copied
from sj_robust.settings import first_error

_ARCHITECTURE: TypeAdapter[str] = TypeAdapter(Architecture)
_MODEL_ARGS: TypeAdapter[dict[str, Any]] = TypeAdapter(ModelArgs)


def describe(
    model: Classifier,
    tensors: Mapping[str, Tensor],
    content: bytes,
    *,
    classes: Sequence[str] | None = None,
    input_size: Sequence[int] | None = None,
    builder: str | None = None,
    builder_args: Mapping[str, Any] | None = None,
    training: Any = None,
    **facts: Any,
) -> Config:
    """The config of `model`, whose weights are `tensors`, written as `content`.

    The architecture is what timm, asked by name, rebuilds equal: same tensors, and same logits on
    one image. Where there is no such name it is null, and a warning says so.
    """
    source = dict(getattr(model, "source", None) or {})
    known = getattr(model.backbone, "pretrained_cfg", None) or {}
    size = input_size or source.get("input_size") or known.get("input_size")
    mean, std = ([float(value) for value in buffer.flatten()] for buffer in (model.mean, model.std))
    described: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "library_name": LIBRARY,
        "num_classes": _classes(model, size),
        "model": builder or source.get("model"),
        "input_size": size,
        "classes": classes or model.classes or source.get("classes"),
        "source": source,
        "created_with": versions(),
        "training": (
            training.model_dump(mode="json") if isinstance(training, BaseModel) else training
        ),
        "memory_format": str(layout_of(model)).removeprefix("torch."),
        "weights": {
            "sha256": hashlib.sha256(content).hexdigest(),
            "state_sha256": weights_sha256(model),
            "bytes": len(content),
            "tensors": len(tensors),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        **facts,
    }
    if isinstance(model, SpikingModel):
        described |= {"kind": "snn", "settings": model.settings, "thresholds": model.thresholds()}
    else:
        described |= {
            "kind": "ann",
            "settings": {"mean": mean, "std": std},
            "pretrained_cfg": {
                "input_size": size,
                "mean": mean,
                "std": std,
                **{key: known[key] for key in ("first_conv", "classifier") if known.get(key)},
            },
        }
    try:
        described = json.loads(json.dumps(described))  # tuples become lists
    except TypeError as error:
        raise SJRobustError(
            f"this model cannot be saved: its source or training holds what JSON cannot ({error})"
        ) from None
    for architecture, model_args in _candidates(model.backbone):
        config = _validated({**described, "architecture": architecture, "model_args": model_args})
        if _rebuilds(model, config, tensors):
            return config
    if not described["model"]:  # else it is known, and recorded, what makes it
        warnings.warn(
            f"{type(model.backbone).__name__} cannot be rebuilt from a timm name: load will need"
            " model=",
            stacklevel=3,
        )
    try:
        arguments = _MODEL_ARGS.validate_python(dict(builder_args or {}))
    except ValidationError:
        arguments = {}  # such as a path: whoever loads it has to give them
    return _validated({**described, "architecture": None, "model_args": arguments})


def _classes(model: Classifier, size: Sequence[int] | None) -> int:
    """K, read off a forward pass where the size of its images is known, and is right."""
    try:
        return count_logits(model, probe(list(size or ())).to(model.mean.device))
    except Exception:  # whatever a network does with images of another size
        return model.num_classes


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint computes."""
    found = all_versions()
    packages = {package: found[package] for package in ("torch", "timm", "spikingjelly")}
    return {"sj-robust": found["sj_robust"], **packages}


def _candidates(backbone: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """(timm name, model_args) that may rebuild `backbone`, none for a network timm did not make.

    timm records the name publicly but the arguments in a private attribute, if at all: guesses, to
    be verified by building them.
    """
    known = getattr(backbone, "architecture_args", None)
    pretrained_cfg = getattr(backbone, "pretrained_cfg", None)
    guesses: list[tuple[Any, Any]] = []
    if isinstance(known, Mapping):
        guesses.append((known.get("architecture"), known.get("model_args")))
    if isinstance(pretrained_cfg, Mapping):
        guesses += [
            (pretrained_cfg.get("architecture"), arguments)
            for arguments in (getattr(backbone, "_model_args", None), None)
        ]
    for name, arguments in guesses:
        own = {
            key: value
            for key, value in dict(arguments or {}).items()
            if key not in ("num_classes", "pretrained")
        }
        try:
            yield _ARCHITECTURE.validate_python(name), _MODEL_ARGS.validate_python(own)
        except ValidationError:
            continue  # arguments that JSON cannot hold, such as a layer class


def _rebuilds(model: Classifier, config: Config, tensors: Mapping[str, Tensor]) -> bool:
    try:
        rebuilt = assemble(config, build_backbone(config, tensors), tensors, "the model")
    except SJRobustError:
        return False
    if config.input_size is None:
        return True
    # equal names and shapes do not make equal networks: another stride or activation shows in the
    # logits only
    original, images = copied(model).cpu().eval(), probe(config.input_size)
    with torch.no_grad():
        return torch.allclose(original(images), rebuilt(images), rtol=1e-3, atol=1e-3)


def check_facts(**facts: Any) -> None:
    """Raise SJRobustError, before hours of work, where a config could not hold one of these, by the
    names of its fields."""
    for name, value in facts.items():
        kind: Any = Config.model_fields[name].annotation
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise SJRobustError(
                f"the model could not be saved: {name}.{first_error(error)}; rename it"
            ) from None


def _validated(facts: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(facts)
    except ValidationError as error:
        raise SJRobustError(f"this model cannot be saved: {first_error(error)}") from None
