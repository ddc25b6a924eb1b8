"""Clean and robust accuracy of a classifier, spiking or not."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import Norm, evaluation_mode
from sj_robust.budget import Radius
from sj_robust.data import ImageDataset
from sj_robust.data.classes import same_classes
from sj_robust.distributed import processes
from sj_robust.errors import SJRobustError
from sj_robust.evaluate import facts
from sj_robust.evaluate.activity import count_spikes
from sj_robust.evaluate.bench import (
    BALL_TOLERANCE,
    Bench,
    check_fit,
    count_passes,
    device_of,
    fitted,
    image_count,
    true_forward,
    warn_of_state,
)
from sj_robust.evaluate.checks import run_checks
from sj_robust.evaluate.energy import estimate_energy
from sj_robust.evaluate.ensemble import attack_ensemble, searcher
from sj_robust.evaluate.extend import taken_over
from sj_robust.evaluate.grid import LIMIT, Grid, grid_radii, on_grid
from sj_robust.evaluate.journal import Journal
from sj_robust.evaluate.protocol import (
    AttackMaker,
    Protocol,
    Run,
    check_classes,
    find_protocol,
    for_few_classes,
    make_plan,
    stages_of,
    view_names,
)
from sj_robust.evaluate.report import Accuracy, Activity, PerImage, Report, Settings
from sj_robust.evaluate.roughness import IMAGES, measure_roughness
from sj_robust.evaluate.words import verdict
from sj_robust.files import check_file
from sj_robust.model import SpikingModel, expose
from sj_robust.model.unwrap import bare
from sj_robust.neuron import View
from sj_robust.progress import bar
from sj_robust.signals import deferred_signals

_PATIENCE = timedelta(hours=12)  # one process may have the hard images


def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    protocol: str | Protocol | None = None,
    eps: Radius | Sequence[Radius] = (2 / 255, 4 / 255, 8 / 255),
    attacks: Sequence[AttackMaker] | None = None,
    views: Sequence[View | str] | None = None,
    transfer: Mapping[str, nn.Module] | None = None,
    norm: Norm = "linf",
    grid: Grid | None = None,
    restarts: int = 1,
    survivors_only: bool = True,
    check_images: int = 64,
    roughness_images: int | None = None,
    max_images: int | None = None,
    time_limit: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    extend: Report | None = None,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> Report:
    """Clean accuracy, and robust accuracy in l∞ or l2 balls under an ensemble of attacks and gradient views.

    Every success is judged by the model's own forward pass in eval mode (of a spiking network the true spikes), and
    every adversarial image is checked to be finite, within eps and in [0, 1]. Images that are wrong as they are count as
    not robust. An image broken at a smaller eps is broken at a larger one: its adversarial image lies in that ball too.

    The energy of one inference is estimated on the first 64 images, as `measure_energy` does it.

    Started by torchrun or accelerate, the processes share the images, and each returns the report that one alone would make.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K], K ≥ 2. Its training flags are restored.
        dataset: or what `as_dataset` takes, such as a DataLoader of (images, labels). Where it and the model name their classes, labels
            are mapped to the model's.
        protocol: "quick", "paper", "strong" or "autoattack" (or "strong@1"), in place of `attacks` and `views`; "autoattack" may be
            given other `views`. With two or three classes it runs what `for_few_classes` says, which the report has among its limits.
        eps: radii in units of [0, 1], one or several in any order, also written "8/255"; the report has them ascending.
        attacks: names that `parse_attack` knows, or anything that called with eps=… gives an attack (`functools.partial(PGD, steps=50)`);
            default FGSM and PGD-10. None at all, (), gives the clean accuracy alone.
        views: gradient views of a spiking network (converted, or wrapped by `from_spikingjelly`), default all 19 of `ENSEMBLE_VIEWS`
            (strongest first). None for other models.
        transfer: other models by name, such as the source ANN, whose gradients are tried as well; of the protocols, "strong" does so.
        norm: "linf" or "l2", for attacks given by name.
        grid: "8bit": an attacker who has to write a file. All models see images rounded to 256 values a channel, and so do the attacks;
            each eps is lowered to a whole number of 1/255. For linf alone. Such a figure stands beside one without it, never for it.
        restarts: attempts of each attack that starts at random.
        survivors_only: attack only what is still standing, regrouped into full batches. False gives every view and attack
            every image, at several times the cost, so that the report has each one's accuracy alone.
        check_images: images for the reliability checks, which end the report with a verdict; 64 takes about as long as "quick" on
            200 images. 0: no checks.
        roughness_images: images on which roughness is measured, with 200 random points each, of the model and of those to transfer
            from; 0: none; default 64 where a protocol is named, else 0.
        max_images: the first so many images only.
        time_limit: seconds after which no attack goes on; images not attacked by then count as robust, and the report says so.
        seed: noise depends on (seed, attack, view, index of the image) alone.
        journal: a file that keeps what is done, batch by batch, so that the same call goes on there after a kill, to the same report
            but for its cost, also with another batch size, device or number of processes. To be removed once the report is safe.
        extend: a complete report of the same evaluation on fewer images, whose outcomes are taken over; the others are attacked.
        device: the model is moved there; default: where it is.
        show_progress: None shows a bar on a terminal only.

    Raises SJRobustError if data and model do not fit, on settings out of range or without effect, if an attack leaves its ball, and if
    the report to extend is of another evaluation.
    Source: ensemble of Özdenizci & Legenstein, TMLR 2024, section 4.3; for the protocols see `sj_robust.evaluate.protocol`.
    """
    started = time.monotonic()
    if journal is not None:
        check_file(journal)
    model = expose(model)
    itself = bare(model)
    dataset = fitted(dataset, model)
    total = image_count(dataset, max_images)
    _check_at_least(1, batch_size=batch_size, restarts=restarts)
    if roughness_images is None:
        roughness_images = 0 if protocol is None else IMAGES
    _check_at_least(0, check_images=check_images, roughness_images=roughness_images)
    if time_limit is not None and not time_limit > 0:
        raise SJRobustError(f"time_limit is {time_limit}: expected more than 0 seconds, or None "
                            "for no limit")  # fmt: skip
    if grid is not None:
        eps = grid_radii(grid, eps, norm)
    chosen = find_protocol(protocol) if isinstance(protocol, str) else protocol
    stages = stages_of(chosen, attacks, view_names(model, views), bool(transfer))
    planned = partial(make_plan, model, eps=eps, norm=norm, restarts=restarts, transfer=transfer,
                      cheap_first=chosen is None)  # fmt: skip
    plan = planned(stages)
    _check_plan(plan, dataset, views is not None)
    where = device_of(model, device)
    warn_of_state(model)
    bench = Bench(model.to(where), dataset, where, batch_size, grid=grid is not None)
    others = [other.to(where) for other in (transfer or {}).values()]
    with ExitStack() as stack:
        for context in (keep_large_blocks(), true_forward(model), *(evaluation_mode(each) for each in (model, *others)),
                        *(count_passes(each, bench) for each in (model, *others))):
            stack.enter_context(context)
        rounding = stack.enter_context(ExitStack())
        if grid is not None:
            rounding.enter_context(on_grid((model, *others)))
        shard = stack.enter_context(processes(_PATIENCE, "start it again, with a journal (--out or --record) it goes on where it stopped"))
        num_classes = check_fit(bench, total)
        for name, other in (transfer or {}).items():
            _check_transfer(name, Bench(other, dataset, where, batch_size), model, num_classes, total)
        replaced: dict[str, str] = {}
        if chosen and num_classes < 4:
            stages, replaced = for_few_classes(stages, num_classes)
            plan = planned(stages)
        check_classes((run.attack for run in plan[0]) if plan else (), num_classes)
        predicted, activity = _clean_pass(bench, total, False if shard.rank else show_progress)
        labels = dataset.labels[:total].cpu()
        correct, mine = predicted == labels, shard.mine(total)
        described, data = facts.model_facts(itself, num_classes), facts.dataset_facts(dataset, total)
        notes = Journal.open(None if journal is None else Path(journal), {
            "weights": described.weights_sha256, "settings": described.settings,
            "images": data.fingerprint, "predicted": predicted.tolist(),
            "plan": [[[run.attack.settings, list(run.seen)] for run in runs] for runs in plan],
            "transfer": {name: facts.weights_sha256(other) for name, other in (transfer or {}).items()},
            "survivors_only": survivors_only, "seed": seed, "grid": grid,
        }, shard.rank if shard.count > 1 else None)  # fmt: skip
        shard.gather(None)  # nobody writes before all have read
        if extend is not None:
            notes.merge(taken_over(extend, plan, described, data, predicted.tolist(), seed, survivors_only, grid))
        earlier = sum(unit.seconds for unit in notes.units.values())
        bench.deadline = started + time_limit if time_limit else bench.deadline
        attackable = int((correct & mine).sum())
        steps = sum(run.attack.iterations * len(run.seen) for runs in plan for run in runs) * attackable
        with bar("attacks", steps, unit="gradients", show=False if shard.rank else show_progress) as progress:
            search = searcher(bench, notes, progress, seed=seed, attackable=attackable)
            try:
                attack_ensemble(correct, plan, notes, search, survivors_only=survivors_only, mine=mine)
            finally:
                with deferred_signals(patient=True):
                    notes.save()
        for done in shard.gather(notes.done):
            notes.merge(done)
        outcome = attack_ensemble(correct, plan, notes, None, survivors_only=survivors_only)
        spent = [sum(unit.forward for unit in notes.units.values()) + total, sum(unit.backward for unit in notes.units.values())]
        found = run_checks(bench, plan, outcome, correct, images=check_images, seed=seed) if check_images and shard.rank == 0 else []
        rounding.close()  # random points are what they are
        rough = measure_roughness(bench, correct, roughness_images, transfer or {}, seed) if shard.rank == 0 else None
        bench.deadline = math.inf  # of the attacks; this takes seconds
        energy = estimate_energy(bench, total) if shard.rank == 0 else None
        checks, energy, rough = shard.gather((found, energy, rough))[0]
    names = [run.attack.name for run in plan[0]] if plan else []
    seen = list(dict.fromkeys(view for runs in plan[:1] for run in runs for view in run.seen))
    stopped = f"after {time_limit:.0f} s (time_limit): {outcome.pending} attempts on images were not made" if outcome.pending else None
    return Report(
        model=described,
        dataset=data,
        clean=Accuracy.of(int(correct.sum()), total),
        joint=outcome.joint,
        robust=outcome.robust,
        per_image=PerImage(label=labels.tolist(), predicted=predicted.tolist(), broken_by=outcome.broken_by),
        activity=activity,
        energy=energy,
        roughness=rough,
        checks=checks,
        verdict=verdict(checks, names, seen, stopped is None) if checks else None,
        stopped=stopped,
        limits=[*facts.limits(names, seen, data, seed, restarts, bool(checks), stopped, extend), *([LIMIT] if grid else []),
                *(f"With {num_classes} classes {chosen} runs {other} in place of {attack}."
                  for attack, other in replaced.items())],
        settings=Settings(protocol=str(chosen) if chosen else None, norm=norm, grid=grid, restarts=restarts,
                          eps=[runs[0].attack.eps for runs in plan],
                          attacks=names, views=seen, survivors_only=survivors_only, batch_size=batch_size, seed=seed,
                          ball_tolerance=BALL_TOLERANCE, device=facts.device_name(where)),
        forward_images=spent[0],
        backward_images=spent[1],
        seconds=earlier + time.monotonic() - started,
        versions=facts.versions(),
    )


def _check_at_least(least: int, **settings: float) -> None:
    for name, value in settings.items():
        if value < least:
            raise SJRobustError(f"{name} is {value}: expected at least {least}")


def _check_plan(plan: list[list[Run]], dataset: ImageDataset, views_given: bool) -> None:
    """Raise SJRobustError for views that no attack looks through, and a ball that holds every image."""
    first = plan[0] if plan else []
    if first and views_given and all(run.attack.black_box for run in first):
        raise SJRobustError("none of the attacks takes gradients: leave views out, or use pgd10")
    diagonal = math.sqrt(math.prod(dataset.images.shape[1:]))
    for runs in plan:
        eps = runs[0].attack.eps if runs else 0.0
        if eps > diagonal:
            raise SJRobustError(
                f"eps is {eps:g}: under l2 the images of {dataset.name} are at most {diagonal:.3g} "
                f"apart, in units of the image range ({eps:g}/255, not {eps:g})")  # fmt: skip


def _check_transfer(name: str, other: Bench, model: nn.Module, num_classes: int, total: int) -> None:
    """Raise SJRobustError unless the other model takes the same images and tells the same classes apart."""
    if (found := check_fit(other, total)) != num_classes:
        raise SJRobustError(f"the model to transfer from, {name}, has {found} classes, this one "
                            f"{num_classes}: expected the same")  # fmt: skip
    if not same_classes(other.model, model):
        raise SJRobustError(f"the model to transfer from, {name}, has other classes, or in another "
                            "order, than this one: expected the same")  # fmt: skip


def _clean_pass(bench: Bench, total: int, show_progress: bool | None) -> tuple[Tensor, Activity | None]:
    """Predictions int64 [total], and what the nodes did meanwhile if there are any."""
    model = bench.model
    counting = count_spikes(model) if isinstance(model, SpikingModel) else nullcontext()
    predicted = []
    with counting as spikes, bar("clean", total, show=show_progress) as progress:
        for chosen, x, _ in bench.batches(torch.arange(total)):
            predicted.append(bench.predict(x).cpu())
            progress.advance(len(chosen))
    activity = spikes.activity(model.timesteps, total) if spikes is not None and isinstance(model, SpikingModel) else None
    return torch.cat(predicted), activity
