"""What leads from a source to a checkpoint, a step each, for the commands and for `run` alike: what
a checkpoint says of its origin does not depend on the door it came through."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sj_robust.catalog import Checkpoint
from sj_robust.checkpoint import save
from sj_robust.checkpoint.config import MEASURED, Config, read_config
from sj_robust.checkpoint.describe import check_facts
from sj_robust.checkpoint.files import check_replaceable, own_files
from sj_robust.conversion import convert
from sj_robust.conversion.activations import module_kind
from sj_robust.data import ImageDataset, calibration_batches
from sj_robust.distributed import rank
from sj_robust.errors import SJRobustError
from sj_robust.files import check_folder, sha256
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.model.spiking import SpikingModel
from sj_robust.neuron import Surrogate
from sj_robust.progress import bar
from sj_robust.recipes.network import poison_of, trained
from sj_robust.recipes.spec import AnnSettings, CalibratedConversion
from sj_robust.training import TrainConfig, TrainResult, finetune, train_ann
from sj_robust.training.state import STATE_FILE


def convert_with(
    ann: NormalizedClassifier,
    dataset: ImageDataset,
    settings: CalibratedConversion,
    *,
    seed: int = 0,
    source: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
) -> SpikingClassifier:
    """`sj_robust.convert` with calibration images drawn from `dataset` by `seed`."""
    arguments = settings.model_dump(
        exclude={"batches", "batch_size", "surrogate"}, exclude_none=True
    )
    calibration = calibration_batches(dataset, settings.batches, settings.batch_size, seed=seed)
    # more where one is called several times
    layers = sum(module_kind(module) in ("relu", "other") for module in ann.modules())
    with bar("balancing thresholds", max(1, layers), unit="layers", show=show_progress) as progress:
        return convert(
            ann.to(device),
            calibration,
            surrogate=Surrogate.parse(settings.surrogate),
            source=source,
            on_layer=lambda name, value: progress.advance(1),
            **arguments,
        )


def training_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """Where the state, log and curves of the training lie that makes `checkpoint`: beside it."""
    path = Path(checkpoint)
    return path.with_name(path.name + ".training")


def check_out(folder: str | os.PathLike[str], *, resume: bool | None = None) -> None:
    """Raise SJRobustError, before hours of work, where a checkpoint could not be saved as `folder`,
    or would take the place of one that took hours: that was measured, or unless `resume` trained.
    None: there is nothing to resume."""
    check_folder(folder)
    target = Path(folder)
    check_replaceable(target)
    if not target.is_dir() or not any(target.iterdir()):
        return
    state = (training_folder(target) / STATE_FILE).exists()
    advice = "choose another --out, or remove it"
    if there := [file for file in own_files(target) if file in MEASURED]:
        what = f"was measured ({', '.join(there)})"
    elif read_config(target).training and not (resume and state):
        what = "was trained" + (", and no state to resume from," if resume else "")
        if resume is False and state:
            advice = f"go on with --resume, {advice}"
    else:
        return
    raise SJRobustError(f"{target} holds a checkpoint that {what} and is kept: {advice}")


def _check_names(
    model: Any,
    dataset: ImageDataset,
    builder: str | None,
    builder_args: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Raise SJRobustError, before hours of work, for names that a checkpoint cannot hold."""
    check_facts(classes=list(model.classes or dataset.classes), model=builder, **facts)


def save_trained(
    model: NormalizedClassifier | SpikingModel,
    folder: str | os.PathLike[str],
    dataset: ImageDataset,
    training: dict[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Save a model made for the images of `dataset`, whose class names are the model's if it knows
    none."""
    shape = tuple(dataset.images.shape[1:])
    classes = model.classes or dataset.classes
    save(model, folder, training=training, classes=classes, input_size=shape, **facts)  # type: ignore[arg-type]


def make_ann(
    ann: Any,
    settings: AnnSettings,
    dataset: ImageDataset,
    folder: str | os.PathLike[str],
    begun: Checkpoint | None = None,
    *,
    resume: bool = True,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
    license: str | None = None,
    command: str | None = None,
) -> TrainResult | None:
    """Train `ann`, the NormalizedClassifier that `open_ann` opened by `settings`, where these say
    so, and save it as `folder`, with what it started from. Of several processes the first one
    saves.

    The state and the log of the training lie in `training_folder(folder)`. begun: what
    `settings.checkpoint` led to, of `network.begun_from`. command: the line that
    was typed, for the record.
    """
    facts: dict[str, Any] = {
        "name": settings.name,
        "builder": settings.model,
        "builder_args": settings.args or (begun.config.model_args if begun else {}),
        "license": license,
    }
    _check_names(ann, dataset, **facts)
    start = begun and begun.config
    source, training = None, start.training if start else None
    if settings.weights:  # whose weights these were: the card names them
        source = Path(settings.weights).name, sha256(settings.weights)
    elif start and settings.train:
        source = start.name or str(settings.checkpoint), start.weights.sha256
    result = None
    if settings.train:
        result = train_ann(
            ann,
            dataset,
            settings.train,
            training_folder(folder),
            resume=resume,
            device=device,
            show_progress=show_progress,
        )
        training = _recorded(result, command)
    if source:
        ann.source = {"initial_weights": source[0], "initial_weights_sha256": source[1]}
        if start:
            ann.source |= poison_of(start)
    if not rank():
        save_trained(ann, folder, dataset, training, **facts)
    return result


def make_converted(
    ann: NormalizedClassifier,
    settings: CalibratedConversion,
    dataset: ImageDataset,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    source: dict[str, Any] | None = None,
    name: str | None = None,
    builder: str | None = None,
    builder_args: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
) -> SpikingClassifier:
    """Convert `ann` on images drawn from `dataset` by `seed` and save it as `folder`. `source`:
    what it says of the ANN."""
    _check_names(ann, dataset, builder, name=name)
    snn = convert_with(
        ann,
        dataset,
        settings,
        seed=seed,
        source=source,
        device=device,
        show_progress=show_progress,
    )
    save_trained(snn, folder, dataset, name=name, builder=builder, builder_args=builder_args)
    return snn


def make_finetuned(
    snn: SpikingModel,
    config: TrainConfig,
    dataset: ImageDataset,
    folder: str | os.PathLike[str],
    before: Config | None = None,
    *,
    resume: bool = True,
    name: str | None = None,
    builder: str | None = None,
    builder_args: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
    command: str | None = None,
) -> TrainResult:
    """Finetune `snn` and save it as `folder`; everything else as `make_ann`. `before`: of the
    checkpoint that it is, whose training is recorded beside the new one."""
    _check_names(snn, dataset, builder, name=name)
    result = finetune(
        snn,
        dataset,
        config,
        training_folder(folder),
        resume=resume,
        device=device,
        show_progress=show_progress,
    )
    if not rank():
        training = _recorded(result, command)
        if before and before.training:
            # a list, not one in the other: they may be many
            command_before = before.training.get("command")
            last = trained(before) | ({"command": command_before} if command_before else {})
            training["before"] = [*before.trainings[:-1], last]
        own = {"name": name, "builder": builder, "builder_args": builder_args}
        save_trained(snn, folder, dataset, training, **own)
    return result


def _recorded(result: TrainResult, command: str | None) -> dict[str, Any]:
    return {**result.model_dump(mode="json"), **({"command": command} if command else {})}
