"""One image, what an attack makes of it, and what a network does on seeing both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.attack import evaluation_mode
from sj_robust.attack.loss import margin
from sj_robust.budget import Radius, radius
from sj_robust.data import ImageDataset
from sj_robust.data.classes import label_of
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.activity import spike_trains
from sj_robust.evaluation.ensemble import noise_seed
from sj_robust.evaluation.judge import (
    check_ball,
    device_of,
    first_logits,
    fitted,
    true_forward,
    warn_of_state,
)
from sj_robust.evaluation.plan import Run, check_classes, make_plan, view_names
from sj_robust.evaluation.protocol import TURNS, AttackMaker, Stage
from sj_robust.evaluation.words import eps_name
from sj_robust.files import write_atomic
from sj_robust.model import SpikingModel, expose
from sj_robust.neuron import View
from sj_robust.text import visible

ATTACK, EPS = "rotating50", "8/255"


@dataclass(frozen=True, eq=False, repr=False)
class Shown:
    """What `show` found; in a notebook it is its picture.

    Tensors are on the CPU. Where two things lie in one, the first is of the image and the second of
    the adversarial one.

    Attributes:
        image: float32 [C, H, W] in [0, 1].
        adversarial: the same.
        label: the true class, or the one attacked away from.
        classes: names by label.
        logits: [2, K].
        attack: the name of what ran, through the gradients of `views`.
        spikes: for each node, in the order of the forward pass, which of its neurons spike at which
            step, bool [2, T, neurons]; empty for an ANN.
    """

    image: Tensor
    adversarial: Tensor
    label: int
    classes: tuple[str, ...]
    logits: Tensor
    eps: float
    attack: str
    views: tuple[str, ...]
    seed: int
    spikes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def predictions(self) -> tuple[int, int]:
        """The labels that the network gives."""
        before, after = self.logits.argmax(1).tolist()
        return before, after

    @property
    def margins(self) -> tuple[float, float]:
        """How far the logit of `label` is above the best other one.

        Below 0 where the class is another.
        """
        before, after = margin(self.logits, torch.tensor([self.label] * 2)).tolist()
        return before, after

    @property
    def right(self) -> bool:
        """Whether the image is classified as `label`; one that is not is not attacked."""
        return self.predictions[0] == self.label

    @property
    def broken(self) -> bool:
        """Whether the attack changed that."""
        return self.right and self.predictions[1] != self.label

    @property
    def distance(self) -> float:
        """The largest change of a value of the image, at most `eps`."""
        return float((self.adversarial - self.image).abs().max())

    def rates(self) -> dict[str, tuple[float, float]]:
        """Spikes per neuron and step of each node."""
        return {
            name: (float(train[0].double().mean()), float(train[1].double().mean()))
            for name, train in self.spikes.items()
        }

    def summary(self) -> str:
        """One line: the prediction before and after, the attack, and whether it broke the image."""
        (before, after), margins = self.predictions, self.margins
        if not self.right:
            return (
                f"{self._named(before)}, not {self._named(self.label)} (margin {margins[0]:+.2f}):"
                " wrong as it is, not attacked"
            )
        return (
            f"{self._named(before)} (margin {margins[0]:+.2f}); after {self.attack} at"
            f" {eps_name(self.eps)}: {self._named(after)} (margin {margins[1]:+.2f}),"
            f" {'broken' if self.broken else 'not broken'}"
        )

    def _named(self, label: int) -> str:
        return visible(self.classes[label], 60)

    def figure(self, title: str = "", neurons: int = 40) -> Any:
        """The picture, a matplotlib Figure.

        Both images, what differs, and the logits; of a spiking network also the spikes of so many
        `neurons` of each node, and all rates.
        """
        from sj_robust.evaluation.picture import draw  # and with it matplotlib, which is slow

        return draw(self, title, neurons)

    def png(self, title: str = "", dpi: int = 200) -> bytes:
        """The picture as a file, 8 inches wide."""
        from sj_robust.evaluation.picture import encode

        return encode(self.figure(title), dpi)

    def save(self, path: str | os.PathLike[str], title: str = "") -> Path:
        """Write the picture as a PNG, whole or not at all."""
        write_atomic(path, self.png(title))
        return Path(path)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:  # asked for by notebooks
        return self.png(dpi=150), {"width": 800}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"


def show(
    model: nn.Module,
    image: Tensor,
    label: int | str | None = None,
    *,
    eps: Radius = EPS,
    attack: AttackMaker = ATTACK,
    views: Sequence[View | str] | None = None,
    seed: int = 0,
    index: int = 0,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> Shown:
    """Attack one image, and record what the network makes of it and of the adversarial one.

    With the same views and seed, and `index` the place of the image in the data set, the attack is
    that of `evaluate`. Of several views, an attack that is not made for many takes one after the
    other until the image is broken. An image that is wrong as it is is left alone.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K], spiking or not. Its training
            flags are restored.
        image: float32 [C, H, W] or [1, C, H, W] in [0, 1].
        label: its class, by name or number; default: whatever the network takes it for.
        eps: l∞ radius in units of [0, 1], also written "8/255".
        attack: a name that `parse_attack` knows, or anything that called with eps=… gives an l∞
            attack.
        views: gradient views of a spiking network; default those of the protocol "strong", in its
            order. None for other models.
        classes: names by label, where the network knows none.
        device: the model is moved there; default: where it is.

    Raises:
        SJRobustError: image and model do not fit, a name is unknown, or a setting out of range.
    """
    model = expose(model)
    where = device_of(model, device)
    model.to(where)
    warn_of_state(model)
    x = _batch(image).to(where)
    chosen = view_names(model, views)
    (plan,) = make_plan(model, [Stage(attack, tuple(chosen or TURNS))], [radius(eps)])
    (run,) = plan
    with _as_it_is(model):
        before = _logits(model, x)
        names = _names(model, classes, before.shape[1])
        check_classes([run.attack], len(names))
        right = int(before.argmax())
        aim = right if label is None else label_of(names, label)
        x_adv = _attacked(model, run, x, aim, seed, index) if aim == right else x
        logits = torch.cat([before, _logits(model, x_adv)]).cpu()
        trains = [
            spike_trains(model, each) for each in (x, x_adv) if isinstance(model, SpikingModel)
        ]
    return Shown(
        image=x[0].cpu(),
        adversarial=x_adv[0].cpu(),
        label=aim,
        classes=names,
        logits=logits,
        eps=run.attack.eps,
        attack=run.attack.name,
        views=tuple(run.gradients),
        seed=seed,
        spikes={name: torch.stack([each[name] for each in trains]) for name in trains[0]}
        if trains
        else {},
    )


def first_right(model: nn.Module, dataset: ImageDataset, label: int | str | None = None) -> int:
    """The first image of `dataset` that the network classifies rightly, or the first of that class.

    Raises:
        SJRobustError: there is none.
    """
    model = expose(model)
    dataset = fitted(dataset, model)
    where = device_of(model, None)
    candidates = torch.arange(len(dataset))
    if label is not None:
        candidates = (dataset.labels == label_of(dataset.classes, label)).nonzero().flatten()
    with _as_it_is(model):
        for index in candidates.tolist():
            found = _logits(model, dataset.floats([index]).to(where)).argmax()
            if int(found) == int(dataset.labels[index]):
                return int(index)
    kind = "" if label is None else f" of {label!r}"
    raise SJRobustError(
        f"the network classifies none of the {len(candidates)} images{kind} of {dataset.name}"
        f" {dataset.split} rightly: name one by its index, or another class"
    )


@contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:
    """In eval mode, spiking as it does by itself."""
    with evaluation_mode(model), true_forward(model):
        yield


def _batch(image: Tensor) -> Tensor:
    """[1, C, H, W]."""
    if isinstance(image, Tensor) and image.dim() == 3:
        image = image.unsqueeze(0)
    if not (isinstance(image, Tensor) and image.dim() == 4 and len(image) == 1):
        found = list(image.shape) if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise SJRobustError(f"the image is {found}: expected one, a tensor [C, H, W]")
    return image.detach()


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """[1, K], by the true forward pass. Raises SJRobustError where there are none."""
    logits = first_logits(model, x, "image")
    if not torch.isfinite(logits).all():
        raise SJRobustError(
            "the model gives logits that are not finite: its weights or thresholds are broken"
        )
    return logits


def _names(model: nn.Module, classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """One for each of `count` logits, numbers for those that nobody names."""
    known = list(getattr(model, "classes", None) or classes or ())[:count]
    return tuple(map(str, known)) + tuple(map(str, range(len(known), count)))


def _attacked(model: nn.Module, run: Run, x: Tensor, label: int, seed: int, index: int) -> Tensor:
    """The adversarial image [1, C, H, W] of least margin."""
    y, ids = (torch.tensor([value], device=x.device) for value in (label, index))
    best, least = x, float("inf")
    for view, seen in run.seen.items():
        x_adv = run.attack(seen, x, y, seed=noise_seed(seed, run.attack, view), ids=ids)
        check_ball(x_adv, x, run.attack, view)
        found = float(margin(_logits(model, x_adv), y))
        if found < least:
            best, least = x_adv, found
        if least < 0:
            break
    return best
