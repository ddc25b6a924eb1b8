"""The training loop of ANNs and SNNs alike: `fit` reads top to bottom, its parts follow."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust.attack import PGD, evaluation_mode
from sj_robust.data import Augmentation, ImageDataset, batches, steps_per_epoch
from sj_robust.errors import SJRobustError
from sj_robust.progress import bar
from sj_robust.train import average
from sj_robust.train.checkpoint import Groups, Progress, Validation, check_same_run, exists, load_state, restore, save_state
from sj_robust.train.config import Kind, TrainConfig, learning_rate
from sj_robust.train.log import Log, draw_curves
from sj_robust.train.loss import LOSSES
from sj_robust.train.optimizer import clamp_thresholds, frozen_thresholds, make_optimizer, momentum_buffers

AUGMENTATIONS = {"none": None, "crop-flip": Augmentation(), "crop-flip-cutout": Augmentation(cutout=8)}


@dataclass(frozen=True)
class Plan:
    """Which steps do what: steps are counted from 0 over all epochs."""

    train: ImageDataset
    held_out: ImageDataset
    config: TrainConfig
    per_epoch: int
    total: int

    @staticmethod
    def make(dataset: ImageDataset, config: TrainConfig) -> Plan:
        train, held_out = dataset.split_off(config.validation, config.seed)
        per_epoch = steps_per_epoch(train, config.batch_size)
        return Plan(train, held_out, config, per_epoch, max(1, round(config.epochs * per_epoch)))

    def validates(self, step: int) -> bool:
        return step == self.total or (step > 0 and step % max(1, round(self.config.validate_every * self.per_epoch)) == 0)

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of step `start`, `start`+1, … without end."""
        epoch, step = divmod(start, self.per_epoch)
        while True:
            yield from batches(self.train, self.config.batch_size, seed=self.config.seed, epoch=epoch,
                               augment=AUGMENTATIONS[self.config.augmentation], start=step)
            epoch, step = epoch + 1, 0


def fit(model: nn.Module, dataset: ImageDataset, config: TrainConfig, folder: Path, *, kind: Kind, resume: bool,
        device: str | torch.device, show_progress: bool | None) -> tuple[Progress, Plan]:
    """Train `model` in place until it holds the weights that were best on the held-out images. See `train_ann` for the contract."""
    plan = Plan.make(dataset, config)
    progress, saved = _begin(folder, resume, Progress(kind=kind, config=config, fingerprint=dataset.fingerprint, total_steps=plan.total))
    model.to(device).to(memory_format=torch.channels_last).train()
    weights = _tensors(model)
    with frozen_thresholds(model, not config.learn_thresholds), _reproducible(device), _deferred_interrupt() as interrupted:
        optimizer = make_optimizer(model, config)
        momentum = momentum_buffers(model, optimizer)
        ema = average.start(weights) if config.ema else {}
        best = {name: tensor.clone() for name, tensor in weights.items()}
        groups: Groups = {"model": weights, "momentum": momentum, "ema": ema, "best": best}
        for name, tensors in groups.items() if saved else ():
            restore(tensors, saved.get(name, {}), folder)
        if progress.finished:
            restore(weights, best, folder)
            model.eval()
            return progress, plan
        log, stream, clock = Log(folder, progress.log_bytes), plan.batches(progress.step), _Clock(progress)
        images = plan.total * config.batch_size
        with log, bar("training", images, done=progress.step * config.batch_size, show=show_progress) as status:
            while True:
                step, epoch = progress.step, progress.step / plan.per_epoch
                if plan.validates(step) and not progress.validated:
                    with average.swapped(weights, ema):
                        result = validate(model, plan.held_out, config, step, interrupted)
                        if result and (progress.best is None or result.score >= progress.best.score):
                            progress.best = result
                            restore(best, weights, folder)
                    if result:
                        progress.validations.append(result)
                        log.write(event="validation", epoch=epoch, **result.model_dump(), seconds=round(clock.total(), 1))
                stop = interrupted()
                if stop or step % plan.per_epoch == 0 or progress.finished or clock.save_due(config.checkpoint_minutes):
                    progress.log_bytes, progress.seconds = log.flush(), clock.total()
                    save_state(folder, progress, groups)
                    clock.saved()
                if stop:
                    raise KeyboardInterrupt
                if progress.validated:
                    draw_curves(folder)
                if progress.finished:
                    break

                began = time.perf_counter()
                indices, x, y = next(stream)
                seed = step_seed(config.seed, step)
                torch.manual_seed(seed)  # whatever draws global random numbers (dropout) depends on the step alone
                lr = learning_rate(config, step, plan.total)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
                loss = LOSSES[config.method](model, x, y, indices.to(device), config, seed)
                if not torch.isfinite(loss.total):
                    raise SJRobustError(f"training diverged: the loss is {loss.total.item()} at step {step}; the state in {folder} is "
                                        "the last good one. Lower lr and start again in another folder")
                optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                optimizer.step()
                if config.learn_thresholds:
                    clamp_thresholds(model, config.threshold_min)
                if config.ema:
                    average.update(ema, weights, config.ema, step)
                progress.step += 1
                progress.training_seconds += time.perf_counter() - began

                for name, value in loss.facts.items():
                    progress.window[name] = progress.window.get(name, 0.0) + value
                progress.window_steps += 1
                status.advance(config.batch_size)
                status.note(" ".join(f"{name} {value:.3f}" for name, value in loss.facts.items() if name in ("loss", "clean", "robust")))
                if progress.step % config.log_every == 0 or progress.step == plan.total:
                    means = {name: value / progress.window_steps for name, value in progress.window.items()}
                    log.write(event="train", step=progress.step, epoch=progress.step / plan.per_epoch, lr=lr, **means,
                              images_per_second=round(progress.step * config.batch_size / progress.training_seconds, 1),
                              seconds=round(clock.total(), 1))
                    progress.window, progress.window_steps = {}, 0
    restore(weights, best, folder)
    model.eval()
    return progress, plan


def validate(model: nn.Module, held_out: ImageDataset, config: TrainConfig, step: int,
             interrupted: Callable[[], bool] = lambda: False) -> Validation | None:
    """Clean accuracy, and (unless the method is natural) accuracy that survives a short PGD at the training eps through the model's
    own gradient. The noise is that of the images, the same at every validation. None where `interrupted` says stop."""
    attack = PGD(eps=config.eps, steps=config.validation_steps)
    device = next(model.parameters()).device
    clean = robust = 0
    with evaluation_mode(model):
        for ids in torch.arange(len(held_out)).split(config.batch_size):
            if interrupted():
                return None
            x = held_out.floats(ids).to(device, memory_format=torch.channels_last)
            y = held_out.labels[ids].to(device)
            right = _right(model, x, y)
            clean += int(right.sum())
            if config.method != "natural":
                robust += int((right & _right(model, attack(model, x, y, seed=config.seed, ids=ids.to(device)), y)).sum())
    return Validation(step=step, clean=clean / len(held_out), robust=None if config.method == "natural" else robust / len(held_out))


def step_seed(seed: int, step: int) -> int:
    """The seed of all noise of one step."""
    return (seed * 0x9E3779B1 + step) % 2**63


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


def _begin(folder: Path, resume: bool, fresh: Progress) -> tuple[Progress, Groups]:
    """The state to start from: `fresh` in an empty folder, the saved one with `resume`."""
    if not exists(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return fresh, {}
    if not resume:
        raise SJRobustError(f"{folder} already holds a training run: pass --resume (resume=True) to go on with it, or another folder")
    saved, groups = load_state(folder)
    check_same_run(saved, fresh, folder)
    saved.config = fresh.config  # may differ in what does not touch the outcome
    return saved, groups


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the state dict, aliasing the model's own memory."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


class _Clock:
    """Wall-clock seconds of a run over all its resumptions, and since the last save."""

    def __init__(self, progress: Progress) -> None:
        self._start = time.perf_counter() - progress.seconds
        self._saved = time.perf_counter()

    def total(self) -> float:
        return time.perf_counter() - self._start

    def save_due(self, minutes: float) -> bool:
        return time.perf_counter() - self._saved > 60 * minutes

    def saved(self) -> None:
        self._saved = time.perf_counter()


@contextmanager
def _reproducible(device: str | torch.device) -> Iterator[None]:
    """Global random state restored afterwards; cuDNN kernels that give the same bits each time."""
    cuda = torch.device(device)
    with torch.random.fork_rng([cuda] if cuda.type == "cuda" else []), torch.backends.cudnn.flags(enabled=True, deterministic=True):
        yield


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks, the loop answers between two steps, where the state is whole; a second Ctrl-C interrupts at once."""
    asked = False

    def handler(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers, and gets Ctrl-C
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
