"""Poisoned training sets: some images get a trigger, a wrong label, or both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from sj_robust.data import ImageDataset
from sj_robust.data.stream import EncodedImages
from sj_robust.errors import SJRobustError
from sj_robust.settings import Strict, checked
from sj_robust.threats.report import FLIP
from sj_robust.threats.report import PoisonFacts as PoisonFacts
from sj_robust.threats.trigger import Trigger, parse_trigger, stamped


class Poison(Strict):
    """What is done to a training set. `str(poison)` is the text that `parse_poison` reads.

    Attributes:
        trigger: its name; None flips labels alone.
        target: the class that poisoned images are labelled as. Without a trigger None is any other
            class than their own, at random.
        rate: the share of all images that is poisoned.
        labels: "dirty": images of other classes are stamped and get the target's label; "clean":
            images of the target class are stamped and keep it (Barni et al. 2019).
    """

    trigger: str | None
    target: int | None = Field(None, ge=0)
    rate: float = Field(0.05, gt=0, le=1)
    labels: Literal["dirty", "clean"] = "dirty"

    @field_validator("trigger")
    @classmethod
    def _known(cls, trigger: str | None) -> str | None:
        return None if trigger is None else str(parse_trigger(trigger))

    @model_validator(mode="after")
    def _consistent(self) -> Poison:
        if self.trigger is not None and self.target is None:
            raise ValueError("a trigger needs a target, the class that it leads to: target=0")
        if self.trigger is None and self.labels == "clean":
            raise ValueError("flip changes labels and nothing else: leave labels=clean out")
        return self

    def __str__(self) -> str:
        parts = [self.trigger or FLIP, f"rate={self.rate:.12g}"]
        parts += [] if self.target is None else [f"target={self.target}"]
        return ":".join([*parts, *(["labels=clean"] if self.labels == "clean" else [])])

    def made_trigger(self) -> Trigger | None:
        """The trigger itself, None where labels alone are flipped."""
        return None if self.trigger is None else parse_trigger(self.trigger)


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned data set, in the order of the clean one.

    Attributes:
        rows: which images are poisoned, int64, ascending.
    """

    dataset: ImageDataset
    rows: Tensor
    facts: PoisonFacts

    def first(self, count: int) -> Poisoned:
        """The same of the first `count` images; the facts stay those of all."""
        return replace(self, dataset=self.dataset.first(count), rows=self.rows[self.rows < count])


def parse_poison(text: str) -> Poison:
    """The poison of that text.

    Args:
        text: a trigger or flip, then settings: "patch:3:rate=0.05:target=0",
            "sine:6:0.08:rate=0.08:target=0:labels=clean", "flip:rate=0.1".

    Raises:
        SJRobustError: anything else.
    """
    parts = text.split(":")
    name = ":".join(part for part in parts if "=" not in part)
    given = [part.split("=", 1) for part in parts if "=" in part]
    settings = dict(given)
    if len(settings) < len(given):
        raise SJRobustError(f"poison {text!r}: a setting is there twice, expected each once")
    trigger = None if name == FLIP else name
    return checked(Poison, {"trigger": trigger, **settings}, f"poison {text!r}: ")


def poisoned(dataset: ImageDataset, poison: Poison | str, *, seed: int = 0) -> Poisoned:
    """`dataset` with round(rate·N) of its N images poisoned.

    Which ones depends on (seed, image, label) alone, by a hash, and so not on the order of the
    images: a shuffled data set has the same ones poisoned.

    Args:
        poison: or its text, as of `parse_poison`.

    Raises:
        SJRobustError: too few images of the classes that may be poisoned, a class that is none, or
            images that are decoded as they are used.
    """
    poison = parse_poison(poison) if isinstance(poison, str) else poison
    pixels = in_memory(dataset)
    classes = len(dataset.classes)
    if poison.target is not None and poison.target >= classes:
        raise SJRobustError(
            f"target {poison.target}: expected 0 to {classes - 1}, a class of {dataset.name}"
        )
    if classes < 2:
        raise SJRobustError(
            f"{dataset.name} has {classes} class: expected two or more, to be taken for another"
        )
    digests = _digests(dataset, seed)
    rows = _chosen(dataset, poison, digests)
    images, labels = pixels.clone(), dataset.labels.clone()
    trigger = poison.made_trigger()
    if trigger is not None:
        images[rows] = in_memory(stamped(dataset.subset(rows), trigger))
    if poison.target is not None:
        labels[rows] = poison.target
    else:  # one of the K - 1 others, by the digits that did not choose the row
        steps = [1 + int.from_bytes(digests[row][16:], "big") % (classes - 1) for row in rows]
        labels[rows] = (labels[rows] + torch.tensor(steps)) % classes
    facts = PoisonFacts(
        poison=str(poison),
        seed=seed,
        images=len(dataset),
        poisoned=len(rows),
        rows_sha256=hashlib.sha256(rows.numpy().astype("<i8").tobytes()).hexdigest(),
        clean_fingerprint=dataset.fingerprint,
    )
    return Poisoned(replace(dataset, images=images, labels=labels), rows, facts)


def in_memory(dataset: ImageDataset) -> Tensor:
    """The images uint8 [N, C, H, W] of a data set that is to be changed.

    Raises:
        SJRobustError: they are decoded as they are used.
    """
    if isinstance(dataset.images, EncodedImages):
        raise SJRobustError(
            f"{dataset.name} is decoded as it is used, and is not poisoned: load it with"
            " stream=False"
        )
    return dataset.images


def _chosen(dataset: ImageDataset, poison: Poison, digests: list[bytes]) -> Tensor:
    """The rows to poison, ascending: the least digests of the classes that may be."""
    if poison.target is None:
        may = torch.ones(len(dataset), dtype=torch.bool)
    else:
        may = (dataset.labels == poison.target) == (poison.labels == "clean")
    candidates = sorted(may.nonzero().flatten().tolist(), key=lambda row: digests[row])
    count = round(poison.rate * len(dataset))
    if not 1 <= count <= len(candidates):
        raise SJRobustError(
            f"rate {poison.rate:g} is {count} of the {len(dataset)} images of {dataset.name}:"
            f" expected 1 to {len(candidates)}, which may be poisoned"
        )
    return torch.tensor(candidates[:count]).sort().values


def _digests(dataset: ImageDataset, seed: int) -> list[bytes]:
    """SHA-256 of (seed, label, pixels) of each row."""
    pixels = in_memory(dataset).numpy()
    return [
        hashlib.sha256(f"poison/{seed}/{label}/".encode() + image.tobytes()).digest()
        for label, image in zip(dataset.labels.tolist(), pixels, strict=True)
    ]
