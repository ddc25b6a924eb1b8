"""What a network does with a trigger, what detectors say of it, and what pruning leaves of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import evaluation_mode
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import facts
from sj_robust.evaluation.judge import (
    Judge,
    check_fit,
    device_of,
    fitted,
    image_count,
    true_forward,
)
from sj_robust.evaluation.latency import answers_by_step, check_truncation
from sj_robust.evaluation.report import Accuracy
from sj_robust.evaluation.words import first_only
from sj_robust.model import SpikingModel, expose
from sj_robust.model.plain import copied
from sj_robust.neuron import View
from sj_robust.threats.cleanse import reverse_triggers
from sj_robust.threats.clustering import cluster_activations
from sj_robust.threats.hidden import final_layer
from sj_robust.threats.poison import Poison, Poisoned, PoisonFacts, parse_poison, poisoned
from sj_robust.threats.pruning import check_most_lost, prune
from sj_robust.threats.report import Pruning, Rates, ThreatReport, ThreatSettings
from sj_robust.threats.trigger import stamped

Detector = Literal["cleanse", "clustering", "pruning"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)


def measure_threats(
    model: nn.Module,
    dataset: ImageDataset,
    poison: Poison | str,
    *,
    training: ImageDataset | None = None,
    recorded: PoisonFacts | None = None,
    detect: Sequence[Detector] | None = None,
    view: View | str = "PCW:1",
    steps: int = 300,
    most_lost: float = 0.04,
    training_images: int = 2000,
    max_images: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> ThreatReport:
    """Clean accuracy and attack success after every time step, and what finds the backdoor.

    The attack succeeds on an image of another class than the target that is classified as the
    target once it has the trigger. Triggered images are of 8 bits, as a file holds them.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K]; a spiking model predicts by
            its true spikes. It is left as it was.
        dataset: clean images, of the test split.
        poison: that the network was trained with, or its text, as of `parse_poison`.
        training: the clean training set. Detectors and pruning get its first `training_images` as
            the clean images of a defender; clustering gets the first of it as `poison` and `seed`
            poison it.
        recorded: of the training of the network, where known: clustering is refused where
            `training`, poisoned again, is another set.
        detect: of "cleanse", "clustering" and "pruning"; default: all with `training`, else none.
        view: whose gradients Neural Cleanse takes of a spiking network.
        steps: of Neural Cleanse, for each class.
        most_lost: of the accuracy on clean images, by pruning.
        max_images: the first so many images of `dataset` only.
        seed: with which the training set was poisoned; also that of the detectors.
        device: the model is moved there; default: where it is.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: data and model do not fit, a target that is no class, no image of another
            class, unknown detectors, detectors without `training`, or a `training` that was not
            the one.
    """
    started = time.monotonic()
    model = expose(model)
    dataset = fitted(dataset, model)
    poison = parse_poison(poison) if isinstance(poison, str) else poison
    chosen = _check_detectors(detect, training)
    if batch_size < 1 or training_images < 1:
        raise SJRobustError(
            f"batch_size {batch_size}, training_images {training_images}: expected 1 or more"
        )
    if not 0 <= seed < 2**63:
        raise SJRobustError(f"seed is {seed}: expected 0 to below 2^63")
    if "pruning" in chosen:
        check_most_lost(most_lost)
    if {"clustering", "pruning"} & set(chosen):
        final_layer(model)
    total = image_count(dataset, max_images)
    where = device_of(model, device)
    judge = Judge(model.to(where), dataset, where, batch_size)
    known: Poisoned | None = None
    clean: ImageDataset | None = None
    if training is not None and chosen:
        training = fitted(training, model)
        clean = training.first(training_images)
        if "clustering" in chosen:
            known = poisoned(training, poison, seed=seed)
            _check_recorded(known.facts, recorded)
    with keep_large_blocks(), evaluation_mode(model), true_forward(model):
        num_classes = check_fit(judge, total)
        rates = _rates(model, judge, poison, total)
    cleanse = clustering = pruning = None  # the cheap ones first: they may refuse
    if known is not None:
        clustering = cluster_activations(
            model, known.first(training_images), batch_size=batch_size, seed=seed
        )
    if clean is not None and "pruning" in chosen:
        pruning = _pruned(model, judge, clean, poison, total, most_lost)
    if clean is not None and "cleanse" in chosen:
        cleanse = reverse_triggers(
            model, clean, view=view, steps=steps, seed=seed, show_progress=show_progress
        )[1]
    return ThreatReport(
        model=facts.model_facts(model, num_classes),
        dataset=facts.dataset_facts(dataset, total),
        rates=rates,
        cleanse=cleanse,
        clustering=clustering,
        pruning=pruning,
        limits=_limits(poison, total, len(dataset), pruning is not None),
        settings=ThreatSettings(
            poison=str(poison),
            training=known.facts if known else None,
            batch_size=batch_size,
            seed=seed,
            device=facts.device_name(where),
        ),
        seconds=time.monotonic() - started,
        versions=facts.versions(),
    )


def _rates(model: nn.Module, judge: Judge, poison: Poison, total: int) -> list[Rates]:
    """After each time step, where the network can be read there."""
    images, trigger = judge.dataset.first(total), poison.made_trigger()
    clean = _answers(model, judge, images)
    right = (clean == images.labels).sum(1).tolist()
    steps = model.timesteps if isinstance(model, SpikingModel) else None
    read: list[int | None] = [steps] if len(right) == 1 else [*range(1, len(right) + 1)]
    success: list[Accuracy | None] = [None] * len(right)
    before = list(success)
    if trigger is not None:
        others = images.labels.ne(poison.target or 0).nonzero().flatten()
        if not len(others):
            raise SJRobustError(
                f"all {total} images are of the target class {poison.target}: there is none to"
                " attack"
            )
        fooled = _answers(model, judge, stamped(images.subset(others), trigger))
        for answers, into in ((fooled, success), (clean[:, others], before)):
            hits = answers.eq(poison.target or 0).sum(1).tolist()
            into[:] = [Accuracy.of(count, len(others)) for count in hits]
    return [
        Rates(timesteps=t, clean=Accuracy.of(count, total), success=one, before=other)
        for t, count, one, other in zip(read, right, success, before, strict=True)
    ]


def _answers(model: nn.Module, judge: Judge, images: ImageDataset) -> Tensor:
    """Classes int64 [T, N] of all `images`, on the CPU; [1, N] where fewer steps cannot be read."""
    part = Judge(model, images, judge.device, judge.batch_size)
    if isinstance(model, SpikingModel):
        try:
            check_truncation(part, model)
        except SJRobustError:
            pass  # its last step is read alone
        else:
            return answers_by_step(part, model, len(images), False)
    rows = torch.arange(len(images))
    return torch.cat([part.predict(x).cpu() for _, x, _ in part.batches(rows)])[None]


def _pruned(
    model: nn.Module,
    judge: Judge,
    clean: ImageDataset,
    poison: Poison,
    total: int,
    most_lost: float,
) -> Pruning:
    pruned = copied(model)
    found = prune(pruned, clean, most_lost=most_lost, batch_size=judge.batch_size)
    with evaluation_mode(pruned), true_forward(pruned):
        rates = _rates(pruned, judge, poison, total)
    return Pruning(
        images=len(clean),
        neurons=found.neurons,
        pruned=len(found.pruned),
        most_lost=most_lost,
        kept=found.kept,
        rates=rates[-1],
    )


def check_detectors(names: Sequence[str]) -> None:
    """Raise SJRobustError for one that there is not."""
    if unknown := [name for name in names if name not in DETECTORS]:
        raise SJRobustError(
            f"unknown detector {unknown[0]!r}: expected some of {', '.join(DETECTORS)}"
        )


def _check_detectors(
    detect: Sequence[Detector] | None, training: ImageDataset | None
) -> Sequence[Detector]:
    if detect is None:
        return DETECTORS if training is not None else ()
    check_detectors(detect)
    if detect and training is None:
        raise SJRobustError(f"{detect[0]} needs training images: pass training=")
    return detect


def _check_recorded(found: PoisonFacts, recorded: PoisonFacts | None) -> None:
    """Raise SJRobustError unless these are the images that the network was trained on."""
    for name, expected in (recorded or found).model_dump().items():
        if (value := getattr(found, name)) != expected:
            raise SJRobustError(
                f"clustering: the training images, poisoned again, have {name} {value!r}, expected"
                f" {expected!r}, which the checkpoint records: give the data that it was trained"
                " on, as then, and its own poison and seed, or leave clustering out of detect"
            )


def _limits(poison: Poison, evaluated: int, size: int, pruned: bool) -> list[str]:
    """Honest statements on what the numbers do not show."""
    statements = [
        "One poisoning, one training, one seed: another may take or leave more of the backdoor.",
        (
            "Detectors that find nothing prove nothing: a trigger of another kind, or one made to"
            " hide from them, may remain."
        ),
    ]
    if poison.trigger:
        statements.append(
            "Attack success is that of the trigger that was trained, on the pixels where it was."
        )
    if pruned:
        statements.append("Pruning is without the finetuning that fine-pruning ends with.")
    return [*statements, *first_only(evaluated, size)]
