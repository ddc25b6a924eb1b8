"""The two entry points, and what they report."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from sj_robust.data import ImageDataset, as_dataset, in_order_of
from sj_robust.distributed import own_device
from sj_robust.errors import SJRobustError
from sj_robust.files import check_within
from sj_robust.model import NormalizedClassifier, SpikingJellyClassifier, SpikingModel, expose
from sj_robust.model.normalized import count_logits
from sj_robust.settings import Growing
from sj_robust.threats.poison import PoisonFacts, poisoned
from sj_robust.training.config import PRESETS, Kind, TrainConfig
from sj_robust.training.loop import fit
from sj_robust.training.optimizer import THRESHOLD
from sj_robust.training.plan import Plan
from sj_robust.training.precision import round_weights
from sj_robust.training.state import Progress, Validation


class TrainResult(Growing):
    """The facts of a finished run, for recipes and cards.

    Times are seconds over all resumptions of the run. Images and fingerprint are those of the
    poisoned training set, where `poison` records one.
    """

    LATE = ("poison",)

    kind: Kind
    config: TrainConfig
    poison: PoisonFacts | None = None
    dataset: str
    split: str
    fingerprint: str
    images: int
    validation_images: int
    steps: int
    epochs: float
    seconds: float
    images_per_second: float
    best: Validation
    validations: list[Validation]
    device: str
    threads: int
    torch_version: str


def train_ann(
    model: NormalizedClassifier,
    dataset: ImageDataset,
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] = "run",
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
) -> TrainResult:
    """Train a ReLU network: natural, PGD, TRADES or MART adversarial training, or interval bounds.

    Started by torchrun or accelerate, the processes share every batch (`config.batch_size` is that
    of all together), gradients and batch norm statistics are those of the whole batch, and so the
    run is that of one process up to rounding; only dropout draws other masks. The first process
    writes `folder`; a run may be resumed with another number of processes.

    Args:
        model: images float32 [N,C,H,W] in [0,1] → logits [N,K]. It is trained in place; at the end
            it is in eval mode and holds the weights (their moving average, with `ema`) that were
            best on `config.validation` held-out images.
        dataset: the held-out images are of it, never of a test set.
        config: default: `PRESETS["ann"]["default"]`.
        folder: receives state.safetensors (every epoch, every `checkpoint_minutes`, on Ctrl-C and
            SIGTERM), log.jsonl and curves.png.
        resume: continue the run in `folder`, or start it where there is none: the final weights
            equal those of an uninterrupted run bit for bit on one machine with the same number of
            threads. A finished run returns at once.

    Raises:
        SJRobustError: `folder` holds a run and `resume` is False; its state is damaged, or of
            another config, dataset or network; too few images; the loss or a weight is no longer
            finite, or another process has ended (the last good state stays).
        KeyboardInterrupt: after saving; SIGTERM and SIGHUP do what they did before, once the state
            is saved.
    """
    return _train(
        model,
        dataset,
        config or PRESETS["ann"]["default"],
        folder,
        "ann",
        resume,
        device,
        show_progress,
    )


def finetune(
    snn: SpikingModel,
    dataset: ImageDataset,
    config: TrainConfig | None = None,
    folder: str | os.PathLike[str] = "run",
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    show_progress: bool | None = None,
) -> TrainResult:
    """Finetune a spiking network adversarially.

    Weights, batch norm and (with `learn_thresholds`) firing thresholds are trained through the
    model's own surrogate, thresholds kept at `threshold_min` or above. Everything else as
    `train_ann`. (Özdenizci & Legenstein, TMLR 2024, section 3.3, is the preset "paper".)

    Args:
        snn: a converted network, or one of `from_spikingjelly`, which is trained through its own
            surrogate functions.
        config: default: `PRESETS["finetune"]["default"]`.

    Raises:
        SJRobustError: as `train_ann`, and a network that is not spiking.
    """
    return _train(
        snn,
        dataset,
        config or PRESETS["finetune"]["default"],
        folder,
        "finetune",
        resume,
        device,
        show_progress,
    )


def _train(
    model: torch.nn.Module,
    dataset: ImageDataset,
    config: TrainConfig,
    folder: str | os.PathLike[str],
    kind: Kind,
    resume: bool,
    device: str | torch.device,
    show_progress: bool | None,
) -> TrainResult:
    if isinstance(exposed := expose(model), SpikingModel):
        model = exposed  # an ANN is trained in its wrapper, which may be there to make it fast
    if isinstance(model, SpikingModel) != (kind == "finetune"):
        raise SJRobustError(
            "finetune takes a spiking network: convert yours (sj_robust.convert), or wrap it"
            " (from_spikingjelly)"
            if kind == "finetune"
            else "train_ann takes a network without spiking nodes: use finetune for a spiking one"
        )
    if config.consistency and kind == "ann":
        raise SJRobustError(
            "consistency compares the time steps of a spiking network: leave it out for an ANN"
        )
    if config.method == "ibp" and kind == "finetune":
        raise SJRobustError(
            "method ibp trains ANNs, as spikes have no gradient through their bounds: train the ANN"
            " with it and convert that"
        )
    if isinstance(model, SpikingJellyClassifier) and (config.consistency or config.checkpointing):
        raise SJRobustError(
            "consistency and checkpointing take converted networks: leave them out for"
            " SpikingJelly's own nodes"
        )
    _check_trainable(model, config)
    dataset = in_order_of(model, as_dataset(dataset))
    highest = int(dataset.labels.max()) if len(dataset) else -1
    if isinstance(model, NormalizedClassifier) and len(dataset):
        like = next(model.parameters())
        model.num_classes = count_logits(model, dataset.first(1).floats().to(like.device))
    classes = getattr(model, "num_classes", None)
    if classes == 1 or (len(dataset) and len(dataset.classes) < 2):
        raise SJRobustError(
            f"{dataset.name} has one class, or the model one logit: there is nothing "
            "to tell apart, expected two or more"
        )
    if isinstance(classes, int) and highest >= classes:
        raise SJRobustError(
            f"{dataset.name} has label {highest} but the model only {classes} logits: create it"
            f" with num_classes={len(dataset.classes)}"
        )
    device = own_device(torch.device(device))
    check_within(folder)
    poison = None
    if config.poison:
        made = poisoned(dataset, config.poison, seed=config.seed)
        dataset, poison = made.dataset, made.facts
    progress, plan = fit(
        model,
        dataset,
        config,
        Path(folder),
        kind=kind,
        resume=resume,
        device=device,
        show_progress=show_progress,
    )
    if config.half_weights:
        round_weights(model)
    if isinstance(model, NormalizedClassifier) and classes == len(dataset.classes):
        model.classes = model.classes or dataset.classes  # known names stay: data may have none
    return _result(progress, plan, dataset, poison, device)


def _check_trainable(model: torch.nn.Module, config: TrainConfig) -> None:
    """Raise SJRobustError where nothing of the network trains, or its weights are not float32; warn
    where thresholds alone train."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or parameter.dtype != torch.float32:
            found = (
                "on the meta device"
                if parameter.is_meta
                else str(parameter.dtype).removeprefix("torch.")
            )
            raise SJRobustError(
                f"{name} is {found}: expected float32 weights; call float() on the network, and"
                " choose the precision of its passes by the setting of that name"
            )
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [name for name in trains if not name.endswith(THRESHOLD)]
    if not (trains if config.learn_thresholds else weights):
        raise SJRobustError(
            "nothing of the network trains, all its weights are frozen (requires_grad=False): call "
            "requires_grad_(True) on it"
        )
    if not weights:
        warnings.warn(
            "all weights are frozen (requires_grad=False): only the firing thresholds train",
            stacklevel=4,
        )


def _result(
    progress: Progress,
    plan: Plan,
    dataset: ImageDataset,
    poison: PoisonFacts | None,
    device: torch.device,
) -> TrainResult:
    assert progress.best is not None  # the last step is always validated
    return TrainResult(
        kind=progress.kind,
        config=progress.config,
        poison=poison,
        dataset=dataset.name,
        split=dataset.split,
        fingerprint=dataset.fingerprint,
        images=len(plan.train),
        validation_images=len(plan.held_out),
        steps=progress.step,
        epochs=plan.epoch(progress.step),
        seconds=round(progress.seconds, 1),
        images_per_second=round(progress.images_per_second, 1),
        best=progress.best,
        validations=progress.validations,
        device=str(device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
    )
