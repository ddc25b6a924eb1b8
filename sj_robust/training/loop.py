"""The training loop of ANNs and SNNs alike: `fit` reads top to bottom, its parts follow."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.data import ImageDataset
from sj_robust.distributed import Team, process_count, processes
from sj_robust.errors import SJRobustError
from sj_robust.files import only_one
from sj_robust.model.images import values_known
from sj_robust.model.layout import layout_of, settle_layout
from sj_robust.signals import deferred_signals
from sj_robust.training import average
from sj_robust.training.config import Kind, TrainConfig, learning_rate, scheduled
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
from sj_robust.training.session import Session, reproducible
from sj_robust.training.state import (
    Groups,
    Progress,
    check_same_run,
    exists,
    load_state,
    restore,
)

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
    """Raise SJRobustError where the processes there are cannot share a batch equally, or the
    method does not share its statistics."""
    if config.method == "ibp" and process_count() > 1:
        raise SJRobustError(
            "method ibp trains in one process: its bounds know the batch norms of its own images"
        )
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
    with (
        keep_large_blocks(),
        reproducible(device),
        frozen_thresholds(model, not config.learn_thresholds),
        values_known(),
        deferred_signals() as interrupted,
    ):
        optimizer, scaler = make_optimizer(model, config), loss_scaler(config, device)
        groups: Groups = {
            "model": weights,
            "momentum": momentum_buffers(model, optimizer),
            "ema": average.start(weights) if config.ema else {},
            "best": average.start(weights),
        }
        if saved:
            for name, tensors in groups.items():
                restore(tensors, saved.get(name, {}), folder)
            scaler.load_state_dict(progress.scaler)
        batches = plan.batches(progress.step, device)
        with Session(
            model, plan, folder, team, progress, groups, scaler, interrupted, show_progress
        ) as session:
            for step in session.steps():
                with checkpointed_blocks(model, config.checkpointing):
                    facts = train_step(
                        model, optimizer, scaler, next(batches), config, plan, step, team
                    )
                if config.ema:
                    average.update(groups["ema"], weights, config.ema, step)
                session.note(facts)
        average.copy(groups["best"], weights)
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
        loss = training_loss(model, x, y, ids, scheduled(config, step, plan.total), seed)
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


def _begin(folder: Path, resume: bool, fresh: Progress) -> tuple[Progress, Groups]:
    """The state to start from: `fresh` in a folder without one, the saved one with `resume`."""
    if not exists(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return fresh, {}
    if not resume:
        raise SJRobustError(
            f"{folder} already holds a training run: pass --resume (in Python resume=True) to go"
            " on with it, or another folder"
        )
    saved, groups = load_state(folder)
    check_same_run(saved, fresh, folder)
    saved.config = fresh.config  # may differ in what does not touch the outcome
    return saved, groups


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the state dict, aliasing the model's own memory."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
