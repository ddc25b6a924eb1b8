"""One model on one data set: clean predictions, and which images an attack breaks."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn

from sj_robust.attack import Attack
from sj_robust.attack.base import BALL_TOLERANCE, project, sizes
from sj_robust.attack.loss import margin
from sj_robust.data import ImageDataset, as_dataset, in_order_of
from sj_robust.errors import SJRobustError, first_line
from sj_robust.evaluation.grid import to_grid
from sj_robust.evaluation.report import eps_name
from sj_robust.model import NormalizedClassifier, SpikingModel
from sj_robust.model.hooks import hooked
from sj_robust.model.unwrap import SPIKING, showing_hidden, taken_for_ann

_SIGN_BYTES = 1 << 30


class TimeUp(Exception):
    """The time that an evaluation may take is over."""


@dataclass
class Passes:
    """Images that went forward and backward through the model."""

    forward: int = 0
    backward: int = 0


@dataclass
class Judge:
    """Feeds full batches and judges by the model's own forward pass; the model is in eval mode
    while it is used."""

    model: nn.Module
    dataset: ImageDataset
    device: torch.device
    batch_size: int
    passes: Passes = field(default_factory=Passes)
    deadline: float = math.inf  # of time.monotonic(): attacks going on then are given up
    grid: bool = False  # adversarial images are rounded to 8 bits
    _signs: dict[tuple[str, str], dict[int, Tensor]] = field(default_factory=dict)

    def batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(indices [n], images [n, C, H, W], labels [n]) for `indices` in full batches, the last
        one apart."""
        for chosen in indices.split(self.batch_size) if len(indices) else ():
            yield (
                chosen,
                self.dataset.floats(chosen).to(self.device),
                self.dataset.labels[chosen].to(self.device),
            )

    def predict(self, x: Tensor) -> Tensor:
        """Classes [n] by the true forward pass."""
        return self.logits(x).argmax(1)

    def logits(self, x: Tensor) -> Tensor:
        """[n, K] by the true forward pass. Raises SJRobustError where one is not finite."""
        with torch.no_grad():
            logits: Tensor = self.model(x)
        if not torch.isfinite(logits).all():
            raise SJRobustError(
                f"the model gives logits that are not finite for {self.dataset.name}: its weights"
                " or thresholds are broken"
            )
        return logits

    def broken(
        self,
        attack: Attack,
        seen: nn.Module,
        view: str,
        chosen: Tensor,
        x: Tensor,
        y: Tensor,
        seed: int,
    ) -> Tensor:
        """Which images x [n, C, H, W], named by `chosen` [n], the attack breaks when it takes its
        gradients from `seen`: bool [n] on the CPU. Raises TimeUp once the deadline is over."""
        return self.decide(self.attacked(attack, seen, view, chosen, x, y, seed), y)[0]

    def attacked(
        self,
        attack: Attack,
        seen: nn.Module,
        view: str,
        chosen: Tensor,
        x: Tensor,
        y: Tensor,
        seed: int,
        start: Tensor | None = None,
    ) -> Tensor:
        """The adversarial images [n, C, H, W], inside the ball. `start`: where the attack is to
        begin, if it may be told."""
        if time.monotonic() > self.deadline:
            raise TimeUp
        if attack.one_sign and attack.eps >= BALL_TOLERANCE:
            x_adv = self._along_signs(attack, seen, view, chosen, x, y)
        else:
            begin = {} if start is None else {"start": start}
            x_adv = attack(seen, x, y, seed=seed, ids=chosen.to(self.device), **begin)
        x_adv = to_grid(x_adv) if self.grid else x_adv
        check_ball(x_adv, x, attack, view)
        return x_adv

    def decide(self, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """By the true forward pass: which of the images [n] are broken, bool on the CPU, and their
        margins."""
        logits = self.logits(x_adv)
        return (logits.argmax(1) != y).cpu(), margin(logits, y).cpu()

    def _along_signs(
        self, attack: Attack, seen: nn.Module, view: str, chosen: Tensor, x: Tensor, y: Tensor
    ) -> Tensor:
        """What `attack`, which is FGSM, returns: the signs are kept, up to 1 GiB of them."""
        settings = {
            name: value
            for name, value in attack.settings.items()
            if name not in ("eps", "step_size")
        }
        known = self._signs.setdefault((view, repr(settings)), {})
        missing = torch.tensor([image not in known for image in chosen.tolist()])
        new = missing.to(x.device)
        sign = torch.empty_like(x)
        # Where clipping to [0, 1] has left nothing of the step, it will at a larger eps too: 0 does
        # as well as the sign.
        sign[new] = (attack(seen, x[new], y[new], ids=chosen[missing].to(x.device)) - x[new]).sign()
        for position in (~missing).nonzero().flatten().tolist():
            sign[position] = known[int(chosen[position])].to(x.device)
        if sum(map(len, self._signs.values())) * x[0].numel() < _SIGN_BYTES:
            known.update(zip(chosen.tolist(), sign.to("cpu", torch.int8), strict=True))
        return project(x + attack.eps * sign, x, attack.eps)


def fitted(dataset: Any, model: nn.Module) -> ImageDataset:
    """The data as a data set whose labels are those of the model, see `in_order_of`."""
    return in_order_of(model, as_dataset(dataset))


def image_count(dataset: ImageDataset, max_images: int | None) -> int:
    if not len(dataset):
        raise SJRobustError(f"{dataset.name} {dataset.split} has no images: nothing to evaluate")
    if max_images is not None and not (
        isinstance(max_images, Integral) and 1 <= max_images <= len(dataset)
    ):
        raise SJRobustError(
            f"max_images is {max_images}: expected 1 to {len(dataset)}, the images of"
            f" {dataset.name} {dataset.split}"
        )
    return len(dataset) if max_images is None else int(max_images)


def device_of(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def true_forward(model: nn.Module) -> AbstractContextManager[object]:
    """Spikes forward, even if the caller has left the nodes in the activation view."""
    return model.true_spikes() if isinstance(model, SpikingModel) else nullcontext()


def warn_of_state(model: nn.Module) -> None:
    """SpikingJelly's nodes outside of our classifiers: one warning that says what is missing."""
    if not isinstance(model, SpikingModel) and any(
        isinstance(module, MemoryModule) for module in model.modules()
    ):
        _warn_of_nodes(model)


def _warn_of_nodes(model: nn.Module) -> None:
    warnings.warn(
        f"{type(model).__name__} holds nodes of SpikingJelly, which nothing resets between calls"
        " and which are attacked through their own surrogate alone: wrap it with"
        " sj_robust.from_spikingjelly",
        stacklevel=_callers_level(),
    )


def _callers_level() -> int:
    """The `stacklevel` by which the function that asks warns of the line that called this package,
    however many functions lie between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sj_robust."):
        level, frame = level + 1, frame.f_back
    return level


def first_logits(model: nn.Module, x: Tensor, what: str) -> Tensor:
    """Logits [1, K] of one image x [1, C, H, W], which is `what`. Raises SJRobustError where the
    model does not take it, returns anything else, or hides a spiking network."""
    try:
        with torch.no_grad(), showing_hidden() as hidden:
            logits = model(x)
    except (RuntimeError, ValueError, AssertionError, SJRobustError) as error:
        raise SJRobustError(
            f"the model cannot take the {what}, {list(x.shape[1:])}: {first_line(error)}"
        ) from error
    if hidden and not isinstance(model, SpikingModel):
        if any(isinstance(module, SPIKING) for module in hidden):
            raise taken_for_ann(model)
        # of which `warn_of_state` knows
        if not any(isinstance(module, MemoryModule) for module in model.modules()):
            _warn_of_nodes(model)
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 1):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SJRobustError(f"the model returns {shape} for one image: expected logits [1, K]")
    return logits


def check_fit(judge: Judge, total: int) -> int:
    """K, after one image has shown that the model takes the images and has a logit for every
    label."""
    data = judge.dataset
    _, x, _ = next(judge.batches(torch.arange(1)))
    logits = first_logits(judge.model, x, f"images of {data.name}")
    num_classes, highest = logits.shape[1], int(data.labels[:total].max())
    if num_classes < 2:
        raise SJRobustError(
            "the model gives one logit: expected one for each of two or more classes"
        )
    if highest >= num_classes:
        raise SJRobustError(
            f"{data.name} has the label {highest}, the model's are 0 to {num_classes - 1}: use one"
            f" made for {data.name}"
        )
    # every attack asks for it, and would find out by passes that were counted as the attack's
    if isinstance(judge.model, NormalizedClassifier):
        judge.model.num_classes = num_classes
    return num_classes


def check_ball(x_adv: Tensor, x: Tensor, attack: Attack, view: str) -> None:
    """Every adversarial image must be finite, within eps of its original and in [0, 1]; nothing is
    clipped into place here.

    Raises SJRobustError naming attack, view and the number of images that are not.
    """
    where = f"{attack.name} at eps {eps_name(attack.eps)} through view {view}"
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise SJRobustError(
            f"{where} returned {x_adv.dtype} {list(x_adv.shape)}: expected {x.dtype}"
            f" {list(x.shape)}"
        )
    size = sizes(x_adv - x, attack.norm)
    # False for NaN
    inside = (size <= attack.eps + BALL_TOLERANCE) & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    bad = int((~inside).sum())
    if bad:
        raise SJRobustError(
            f"{where} left the eps ball or [0, 1], or is not finite, on {bad} of {len(x)} images:"
            " the attack is broken"
        )


@contextmanager
def count_passes(model: nn.Module, judge: Judge) -> Iterator[None]:
    """Count images through `model` into `judge.passes` while the block runs, and raise TimeUp in
    the first pass after its deadline."""
    passes = judge.passes

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if time.monotonic() > judge.deadline:
            raise TimeUp

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        passes.forward += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: _count_backward(len(gradient)))

    def _count_backward(images: int) -> None:
        passes.backward += images

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    with hooked(handles):
        yield
