"""Clean and robust accuracy of a classifier, spiking or not."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import Attack, GradientView, evaluation_mode, parse_attack
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluate import facts
from sj_robust.evaluate.activity import count_spikes
from sj_robust.evaluate.bench import BALL_TOLERANCE, Bench, count_passes
from sj_robust.evaluate.ensemble import attack_ensemble
from sj_robust.evaluate.journal import Journal
from sj_robust.evaluate.report import Accuracy, Activity, PerImage, Report, Settings
from sj_robust.model import SpikingClassifier
from sj_robust.neuron import ENSEMBLE_VIEWS, Surrogate, View, parse_view, view_name
from sj_robust.progress import bar

EXACT = "exact"  # the one view of a network that is differentiable as it is

# Views that break most images go first, so that few images are left for the others; the result does not depend on it.
_STRONGEST = tuple(parse_view(name) for name in ("PCW:1", "activation", "PCW:2", "rate", "PCW:0.5", "PCW:3"))
DEFAULT_VIEWS: tuple[View, ...] = _STRONGEST + tuple(view for view in ENSEMBLE_VIEWS if view not in _STRONGEST)


def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    eps: Sequence[float] = (2 / 255, 4 / 255, 8 / 255),
    attacks: Sequence[str | Callable[..., Attack]] = ("fgsm", "pgd10"),
    views: Sequence[View | str] | None = None,
    survivors_only: bool = True,
    max_images: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> Report:
    """Clean accuracy, and robust accuracy in l∞ balls under an ensemble of attacks and gradient views.

    Every success is judged by the model's own forward pass in eval mode (for a SpikingClassifier the true spikes), and
    every adversarial image is checked to be finite, within eps and in [0, 1]. Images that are wrong as they are count as
    not robust. An image broken at a smaller eps is broken at a larger one: its adversarial image lies in that ball too.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K]. Its training flags are restored.
        eps: radii in units of [0, 1], in any order; the report has them ascending.
        attacks: "fgsm", "rfgsm", "pgdN", or anything that called with eps=… gives an attack (`functools.partial(PGD, steps=50)`).
        views: gradient views of a SpikingClassifier, default all 19 of `ENSEMBLE_VIEWS` (strongest first). None for other models.
        survivors_only: attack only what is still standing, regrouped into full batches. False gives every view and attack
            every image, at several times the cost, so that the report has each one's accuracy alone.
        max_images: the first so many images only.
        seed: noise depends on (seed, attack, view, index of the image) alone.
        journal: a file that keeps what is done, attack by attack and view by view, so that the same call goes on there after a
            kill, to the same report but for its time, also with another batch size or device. To be removed once the report is safe.
        device: the model is moved there; default: where it is.
        show_progress: None shows a bar on a terminal only.

    Raises SJRobustError if data and model do not fit, on settings out of range, and if an attack leaves its ball.
    Source: ensemble of Özdenizci & Legenstein, TMLR 2024, section 4.3.
    """
    started = time.monotonic()
    total = _image_count(dataset, max_images)
    if batch_size < 1:
        raise SJRobustError(f"batch_size is {batch_size}: expected at least 1")
    plan = _plan(eps, attacks)
    seen = _views(model, views)
    where = _device(model, device)
    bench = Bench(model.to(where), dataset, where, batch_size)
    with keep_large_blocks(), evaluation_mode(model), _true_forward(model), count_passes(model, bench.passes):
        num_classes = _check_fit(bench, total)
        predicted, activity = _clean_pass(bench, total, show_progress)
        labels = dataset.labels[:total].cpu()
        correct = predicted == labels
        steps = sum(attack.iterations for at_eps in plan for attack in at_eps) * len(seen) * int(correct.sum())
        with bar("attacks", steps, unit="gradients", show=show_progress) as progress:
            described = facts.model_facts(model, num_classes)
            notes = Journal.open(None if journal is None else Path(journal), {
                "weights": described.weights_sha256, "settings": described.settings,
                "images": dataset.fingerprint, "predicted": predicted.tolist(), "plan": [[attack.settings for attack in at] for at in plan],
                "views": list(seen), "survivors_only": survivors_only, "seed": seed,
            })  # fmt: skip
            earlier, bench.passes.forward = notes.seconds, bench.passes.forward + notes.passes.forward
            bench.passes.backward += notes.passes.backward
            outcome = attack_ensemble(bench, correct, plan, seen, notes, survivors_only=survivors_only, seed=seed, bar=progress)
    attack_names = [attack.name for attack in plan[0]] if plan else []
    return Report(
        model=described,
        dataset=facts.dataset_facts(dataset, total),
        clean=Accuracy.of(int(correct.sum()), total),
        joint=outcome.joint,
        robust=outcome.robust,
        per_image=PerImage(label=labels.tolist(), predicted=predicted.tolist(), broken_by=outcome.broken_by),
        activity=activity,
        limits=facts.limits(attack_names, list(seen), total, len(dataset), seed),
        settings=Settings(eps=[at_eps[0].eps for at_eps in plan], attacks=attack_names, views=list(seen), survivors_only=survivors_only,
                          batch_size=batch_size, seed=seed, ball_tolerance=BALL_TOLERANCE, device=facts.device_name(where)),
        forward_images=bench.passes.forward,
        backward_images=bench.passes.backward,
        seconds=earlier + time.monotonic() - started,
        versions=facts.versions(),
    )


def _image_count(dataset: ImageDataset, max_images: int | None) -> int:
    if not len(dataset):
        raise SJRobustError(f"{dataset.name} {dataset.split} has no images: nothing to evaluate")
    if max_images is not None and not 1 <= max_images <= len(dataset):
        raise SJRobustError(f"max_images is {max_images}: expected 1 to {len(dataset)}, the images of {dataset.name} {dataset.split}")
    return len(dataset) if max_images is None else max_images


def _plan(eps: Sequence[float], attacks: Sequence[str | Callable[..., Attack]]) -> list[list[Attack]]:
    """For each eps, ascending, its attacks. FGSM goes first: what the cheap attack breaks is spared the dear one."""
    for value in eps:
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise SJRobustError(f"eps is {value}: expected 0 to 1, in units of the image range (8/255, not 8)")

    def plan_at(value: float) -> list[Attack]:
        made = [parse_attack(attack, value) if isinstance(attack, str) else attack(eps=value) for attack in attacks]
        return sorted(made, key=lambda attack: attack.iterations)

    plan = [plan_at(value) for value in sorted(set(eps))] if attacks else []
    names = [attack.name for attack in plan[0]] if plan else []
    if len(set(names)) < len(names):
        raise SJRobustError(f"two attacks have the same name: {', '.join(names)}; evaluate them one at a time")
    return plan


def _views(model: nn.Module, views: Sequence[View | str] | None) -> dict[str, nn.Module]:
    if not isinstance(model, SpikingClassifier):
        if views is not None:
            raise SJRobustError(f"a {type(model).__name__} has its exact gradient and no other: leave views out")
        return {EXACT: model}
    chosen = [parse_view(view) if isinstance(view, str) else view for view in (DEFAULT_VIEWS if views is None else views)]
    if not chosen:
        raise SJRobustError("views is empty: name at least one, or leave it out for all 19")
    return {view_name(view): GradientView(model, view) for view in chosen}


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _true_forward(model: nn.Module) -> AbstractContextManager[object]:
    """Spikes forward, even if the caller has left the nodes in the activation view; which surrogate makes no difference."""
    return model.gradient(Surrogate("PCW")) if isinstance(model, SpikingClassifier) else nullcontext()


def _check_fit(bench: Bench, total: int) -> int:
    """K, after one image has shown that the model takes the images and has a logit for every label."""
    data = bench.dataset
    _, x, _ = next(bench.batches(torch.arange(1)))
    try:
        with torch.no_grad():
            logits = bench.model(x)
    except (RuntimeError, AssertionError, SJRobustError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SJRobustError(f"the model cannot take the images of {data.name}, {list(x.shape[1:])}: {reason}") from error
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 1):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SJRobustError(f"the model returns {shape} for one image: expected logits [1, K]")
    num_classes, highest = logits.shape[1], int(data.labels[:total].max())
    if highest >= num_classes:
        raise SJRobustError(f"{data.name} has the label {highest}, the model's are 0 to {num_classes - 1}: use one made for {data.name}")
    return num_classes


def _clean_pass(bench: Bench, total: int, show_progress: bool | None) -> tuple[Tensor, Activity | None]:
    """Predictions int64 [total], and what the nodes did meanwhile if there are any."""
    model = bench.model
    counting = count_spikes(model) if isinstance(model, SpikingClassifier) else nullcontext()
    predicted = []
    with counting as spikes, bar("clean", total, show=show_progress) as progress:
        for chosen, x, _ in bench.batches(torch.arange(total)):
            predicted.append(bench.predict(x).cpu())
            progress.advance(len(chosen))
    activity = spikes.activity(model.timesteps, total) if spikes is not None and isinstance(model, SpikingClassifier) else None
    return torch.cat(predicted), activity
