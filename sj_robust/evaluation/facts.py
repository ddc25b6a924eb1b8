"""What a report says about the model, the data, the versions, and its own limits."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import sj_robust
from sj_robust.data import ImageDataset
from sj_robust.evaluation.report import DatasetFacts, ModelFacts, Report
from sj_robust.evaluation.words import first_only, not_tried, through
from sj_robust.model import NormalizedClassifier, SpikingModel
from sj_robust.model.unwrap import bare


def model_facts(model: nn.Module, num_classes: int) -> ModelFacts:
    model = bare(model)  # a wrapper would give the weights other names, and so another hash
    common: dict[str, Any] = {
        "architecture": _architecture(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_classes": num_classes,
        "weights_sha256": weights_sha256(model),
        "model_args": (
            (getattr(getattr(model, "backbone", model), "architecture_args", None) or {}).get(
                "model_args"
            )
        ),
    }
    if isinstance(model, NormalizedClassifier):
        common |= {key: getattr(model, key).flatten().tolist() for key in ("mean", "std")}
    if isinstance(model, SpikingModel):
        return ModelFacts(
            kind="snn",
            timesteps=model.timesteps,
            source=dict(model.source or {}),
            settings=dict(model.settings),
            **common,
        )
    return ModelFacts(kind="ann", timesteps=None, source=None, settings=None, **common)


def _architecture(model: nn.Module) -> str:
    source = getattr(model, "source", None) or {}
    backbone = getattr(model, "backbone", model)
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return str(source.get("architecture") or config.get("architecture") or type(backbone).__name__)


def weights_sha256(model: nn.Module) -> str:
    """Hex SHA-256 of the state dict: every name, type, shape and value, in the order of names."""
    return state_sha256(model.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """The same of the tensors of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def dataset_facts(dataset: ImageDataset, evaluated: int) -> DatasetFacts:
    return DatasetFacts(
        name=dataset.name,
        split=dataset.split,
        size=len(dataset),
        evaluated=evaluated,
        image_shape=tuple(dataset.images.shape[1:]),
        classes=len(dataset.classes),
        fingerprint=dataset.fingerprint,
    )


def versions() -> dict[str, str]:
    installed = {name: version(name) for name in ("torch", "spikingjelly", "timm")}
    return {"sj_robust": sj_robust.__version__, **installed, "python": platform.python_version()}


def device_name(device: torch.device) -> str:
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )


def limits(
    attacks: list[str],
    views: list[str],
    dataset: DatasetFacts,
    seed: int,
    restarts: int,
    checked: bool,
    stopped: str | None,
    extended: Report | None,
) -> list[str]:
    """Honest statements on what the numbers do not show."""
    statements = []
    if attacks:
        missing = not_tried(attacks, views)
        not_run = f" Not run: {', '.join(missing)}." if missing else ""
        statements += [
            (
                f"Robust accuracy under {', '.join(attacks)} {through(views)} is an upper bound:"
                f" stronger attacks may exist.{not_run}"
            ),
            *([] if checked else ["No check for gradient masking was made."]),
            (
                f"{'One run' if restarts == 1 else f'{restarts} runs'} per attack and view (seed"
                f" {seed}): other random numbers may break other images."
            ),
        ]
    if stopped:
        statements.append(
            f"The evaluation was stopped {stopped}; what was not attacked counts as robust."
        )
    if extended:
        made_with = ", ".join(
            f"{name} {extended.versions[name]}"
            for name in ("sj_robust", "torch")
            if name in extended.versions
        )
        statements.append(
            f"What was found on the first {extended.dataset.evaluated} images is taken from an"
            f" earlier report ({made_with})."
        )
    return [*statements, *first_only(dataset.evaluated, dataset.size)]
