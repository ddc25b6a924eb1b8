"""The training loop of ANNs and SNNs alike: `fit` reads top to bottom, its parts follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import PGD, evaluation_mode
from sj_robust.data import ImageDataset
from sj_robust.distributed import ALONE, Team, process_count, processes
from sj_robust.errors import SJRobustError
from sj_robust.files import only_one
from sj_robust.model.images import values_known
from sj_robust.model.layout import layout_of, settle_layout
from sj_robust.progress import bar
from sj_robust.signals import deferred_signals
from sj_robust.training import average
from sj_robust.training.config import Kind, TrainConfig, learning_rate
from sj_robust.training.log import Log, NoLog, draw_curves
from sj_robust.training.loss import training_loss
from sj_robust.training.memory import checkpointed_blocks
from sj_robust.training.optimizer import (
    clamp_thresholds,
    frozen_thresholds,
    make_optimizer,
    momentum_buffers,
)
from sj_robust.training.parallel import synchronised
from sj_robust.training.plan import Plan
from sj_robust.training.precision import autocast, loss_scaler
from sj_robust.training.session import Stopwatch, reproducible
from sj_robust.training.state import (
    Groups,
    Progress,
    Validation,
    check_same_run,
    exists,
    load_state,
    restore,
    save_state,
)

# drawing takes a second: curves.png is remade at a validation only where the last is older than
# this
DRAW_SECONDS = 30
# between processes, which wait for each other in every step and while the first one saves
PATIENCE = timedelta(minutes=10)


def fit(
    model: nn.Module,
    dataset: ImageDataset,
    config: TrainConfig,
    folder: Path,
    *,
    kind: Kind,
    resume: bool,
    device: torch.device,
    show_progress: bool | None,
) -> tuple[Progress, Plan]:
    """Train `model` in place until it holds the weights that were best on the held-out images. See
    `train_ann` for the contract."""
    check_shares(config)
    with (
        processes(
            PATIENCE, f"the last state saved in {folder} is good, resume from there", device
        ) as team,
        only_one(folder, "a training going on") if team.first else nullcontext(),
        synchronised(team),
    ):
        return _fit(
            model,
            dataset,
            config,
            folder,
            team,
            kind=kind,
            resume=resume,
            device=device,
            show_progress=show_progress if team.first else False,
        )


def check_shares(config: TrainConfig) -> None:
    """Raise SJRobustError where the processes there are cannot share a batch equally."""
    if config.batch_size % process_count():
        raise SJRobustError(
            f"batch_size={config.batch_size} cannot be shared equally by {process_count()}"
            " processes: choose a multiple"
        )


def _fit(
    model: nn.Module,
    dataset: ImageDataset,
    config: TrainConfig,
    folder: Path,
    team: Team,
    *,
    kind: Kind,
    resume: bool,
    device: torch.device,
    show_progress: bool | None,
) -> tuple[Progress, Plan]:
    plan = Plan.make(dataset, config)
    fresh = Progress(
        kind=kind, config=config, fingerprint=dataset.fingerprint, total_steps=plan.total
    )
    progress, saved = team.from_first(_begin(folder, resume, fresh) if team.first else (fresh, {}))
    settle_layout(
        model.to(device), plan.held_out.floats(torch.arange(min(2, len(plan.held_out)))).to(device)
    )
    model.train()
    weights = _weights(model)
    if team.count > 1:
        average.copy(
            team.from_first({name: tensor.cpu() for name, tensor in weights.items()}), weights
        )
    fixed = frozen_thresholds(model, not config.learn_thresholds)
    with (
        keep_large_blocks(),
        reproducible(device),
        fixed,
        values_known(),
        deferred_signals() as interrupted,
    ):
        optimizer, scaler = make_optimizer(model, config), loss_scaler(config, device)
        ema = average.start(weights) if config.ema else {}
        best = average.start(weights)
        groups: Groups = {
            "model": weights,
            "momentum": momentum_buffers(model, optimizer),
            "ema": ema,
            "best": best,
        }
        if saved:
            for name, tensors in groups.items():
                restore(tensors, saved.get(name, {}), folder)
            scaler.load_state_dict(progress.scaler)
        log, stream = (
            Log(folder, progress.log_bytes) if team.first else NoLog(),
            plan.batches(progress.step),
        )
        clock, training, unsaved, undrawn = (
            Stopwatch(progress.seconds),
            Stopwatch(),
            Stopwatch(),
            Stopwatch(),
        )
        images, done = plan.total * config.batch_size, progress.step * config.batch_size
        unread: list[dict[str, Tensor]] = []  # facts of the last steps, still on the device
        with log, bar("training", images, done=done, show=show_progress) as status:
            while not progress.finished:
                step = progress.step
                if plan.validates(step) and not progress.validated:
                    _read(unread, progress, folder)
                    with average.swapped(weights, ema):
                        result = validate(model, plan.held_out, config, step, interrupted, team)
                        if result and progress.add(result):
                            average.copy(weights, best)
                    if result:
                        log.write(
                            event="validation",
                            epoch=plan.epoch(step),
                            **result.model_dump(),
                            seconds=round(clock.seconds, 1),
                        )
                # clocks and signals differ from process to process: what they ask for is agreed on
                stop, due = team.totals(
                    interrupted(), team.first and unsaved.seconds > 60 * config.checkpoint_minutes
                )
                if stop or due or step % plan.per_epoch == 0 or progress.finished:
                    _read(unread, progress, folder)
                    with deferred_signals(patient=True):
                        progress.log_bytes, progress.seconds, progress.scaler = (
                            log.sync(),
                            clock.seconds,
                            scaler.state_dict(),
                        )
                        if team.first:
                            save_state(folder, progress, groups)
                    unsaved.restart()
                if stop:
                    raise KeyboardInterrupt
                if team.first and (
                    progress.finished or (progress.validated and undrawn.seconds > DRAW_SECONDS)
                ):
                    draw_curves(folder)
                    undrawn.restart()
                if progress.finished:
                    break

                training.restart()
                with checkpointed_blocks(model, config.checkpointing):
                    unread.append(
                        train_step(model, optimizer, scaler, next(stream), config, plan, step, team)
                    )
                if config.ema:
                    average.update(ema, weights, config.ema, step)
                progress.step += 1
                reading = progress.step % config.log_every == 0 or progress.step == plan.total
                if reading:
                    _read(unread, progress, folder)
                # read first: on a GPU the steps only end there
                progress.training_seconds += training.seconds
                status.advance(config.batch_size)
                if reading:
                    means = progress.means()
                    status.note(
                        " ".join(
                            f"{name} {means[name]:.3f}"
                            for name in ("loss", "clean", "robust")
                            if name in means
                        )
                    )
                    log.write(
                        event="train",
                        epoch=plan.epoch(progress.step),
                        step=progress.step,
                        **means,
                        lr=learning_rate(config, step, plan.total),
                        images_per_second=round(progress.images_per_second, 1),
                        seconds=round(clock.seconds, 1),
                    )
        average.copy(best, weights)
    model.eval()
    return progress, plan


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: tuple[Tensor, Tensor, Tensor],
    config: TrainConfig,
    plan: Plan,
    step: int,
    team: Team,
) -> dict[str, Tensor]:
    """One update of `model`, by the whole team; the loss terms and accuracies on this batch, left
    on the device: nothing waits for it."""
    device = next(model.parameters()).device
    ids, x, y = (team.share(part).to(device) for part in batch)
    x = x.contiguous(memory_format=layout_of(model))
    seed = plan.seed(step)
    # whatever draws global random numbers (dropout) depends on the step alone
    torch.manual_seed((seed + team.rank * 0x632BE59B) % 2**63)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, plan.total)
    with autocast(model, config, device):
        loss = training_loss(model, x, y, ids, config, seed)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
    team.average(
        [
            *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
            *loss.facts.values(),
        ]
    )
    scaler.step(optimizer)
    scaler.update()
    if config.learn_thresholds:
        clamp_thresholds(model, config.threshold_min)
    return loss.facts


def _read(unread: list[dict[str, Tensor]], progress: Progress, folder: Path) -> None:
    """Fetch what the steps since the last call left behind, in one transfer, for the log.

    Raises SJRobustError, naming the step, where a loss was not finite. This comes before any state
    is saved or validated.
    """
    if not unread:
        return
    rows = torch.stack(
        [torch.stack([value.float() for value in facts.values()]) for facts in unread]
    ).tolist()
    first, names = progress.step - len(unread), list(unread[0])
    unread.clear()
    for step, values in enumerate(rows, start=first):
        facts = dict(zip(names, values, strict=True))
        if not math.isfinite(facts["loss"]):
            raise SJRobustError(
                f"training diverged: the loss is {facts['loss']} at step {step}; the state in"
                f" {folder} is the last good one. Lower lr and start again in another folder"
            )
        progress.collect(facts)


def validate(
    model: nn.Module,
    held_out: ImageDataset,
    config: TrainConfig,
    step: int,
    interrupted: Callable[[], bool] = lambda: False,
    team: Team = ALONE,
) -> Validation | None:
    """Clean accuracy, and (unless the method is natural) accuracy that survives a short PGD at the
    training eps through the model's own gradient. The noise is that of the images, the same at
    every validation. The team shares the images. None where `interrupted` says stop."""
    attack = PGD(eps=config.eps, steps=config.validation_steps)
    device, layout = next(model.parameters()).device, layout_of(model)
    clean = robust = stop = 0.0
    with evaluation_mode(model):
        for ids in torch.arange(len(held_out)).split(config.batch_size // team.count)[
            team.rank :: team.count
        ]:
            if stop := interrupted():
                break
            x, y = (
                held_out.floats(ids).to(device, memory_format=layout),
                held_out.labels[ids].to(device),
            )
            right = _right(model, x, y)
            clean += int(right.sum())
            if config.method != "natural":
                robust += int(
                    (
                        right
                        & _right(
                            model, attack(model, x, y, seed=config.seed, ids=ids.to(device)), y
                        )
                    ).sum()
                )
    clean, robust, stop = team.totals(clean, robust, stop)
    if stop:
        return None
    return Validation(
        step=step,
        clean=clean / len(held_out),
        robust=None if config.method == "natural" else robust / len(held_out),
    )


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


def _begin(folder: Path, resume: bool, fresh: Progress) -> tuple[Progress, Groups]:
    """The state to start from: `fresh` in a folder without one, the saved one with `resume`."""
    if not exists(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return fresh, {}
    if not resume:
        raise SJRobustError(
            f"{folder} already holds a training run: pass --resume (resume=True) to go on with it,"
            " or another folder"
        )
    saved, groups = load_state(folder)
    check_same_run(saved, fresh, folder)
    saved.config = fresh.config  # may differ in what does not touch the outcome
    return saved, groups


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the state dict, aliasing the model's own memory."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
