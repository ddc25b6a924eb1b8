"""The classes of a data set beside those that a network knows, by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from sj_robust.data.datasets import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model.unwrap import unwrap
from sj_robust.phrases import did_you_mean, few


def in_order_of(model: nn.Module, dataset: ImageDataset) -> ImageDataset:
    """`dataset` with the labels of `model`, whose `classes` are names by label where it knows them.

    Labels are mapped by name, with a warning, where the names are the network's, or some of them,
    in another order; case, hyphens and underscores make no difference. Nothing is compared where
    one of the two has no names, or numbers from 0 in their place.

    Raises:
        SJRobustError: the data has a class that the network does not know.
    """
    known = _known(model)
    for ours, theirs in (
        (list(known), list(dataset.classes)),
        ([_plain(name) for name in known], [_plain(name) for name in dataset.classes]),
    ):
        if ours[: len(theirs)] == theirs:
            return dataset
        unique = len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
        if unique and set(theirs) <= set(ours):
            warnings.warn(
                f"{dataset.name} has its classes in another order than the network: the "
                "labels are mapped by name",
                stacklevel=3,
            )
            label_of = torch.tensor([ours.index(name) for name in theirs])
            return replace(dataset, labels=label_of[dataset.labels], classes=tuple(known))
    if _nameless(known) or _nameless(dataset.classes):
        return dataset
    unknown, missing = _lacking(dataset.classes, known), _lacking(known, dataset.classes)
    if not unknown:
        unknown, missing = "two of one name", "another order of them"
    where = f" where the network has {missing}" if missing else ""
    raise SJRobustError(
        f"{dataset.name} has classes that the network does not know: {unknown}{where}; rename them,"
        " or say that they are the same in the same order: --same-classes, or"
        " dataset.with_classes(model.classes)"
    )


def same_classes(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same classes in the same order, as far as both name theirs."""
    names = [[_plain(name) for name in _known(model)] for model in (one, other)]
    return not all(names) or names[0] == names[1]


def label_of(names: Sequence[str], label: int | str) -> int:
    """The label of a class given by its name, whatever its case, hyphens and underscores, or by its
    number from 0. Raises SJRobustError where `names`, one for each label, has no such class."""
    plain = [_plain(name) for name in names]
    if isinstance(label, str) and _plain(label) in plain:
        return names.index(label) if label in names else plain.index(_plain(label))
    digits = isinstance(label, int) or (label.isdecimal() and len(label) < 10)
    number = int(label) if digits else -1
    if not 0 <= number < len(names):
        near = did_you_mean(str(label), names) or f"the classes are {few(names, most=10)}"
        raise SJRobustError(
            f"the network has no class {label!r}: expected a name, or a number from 0 to"
            f" {len(names) - 1}; {near}"
        )
    return number


def nothing_in_common(model: nn.Module, dataset: ImageDataset) -> bool:
    """Whether both name their classes and share no name."""
    known = _known(model)
    if _nameless(known) or _nameless(dataset.classes):
        return False
    return not {_plain(name) for name in known} & {_plain(name) for name in dataset.classes}


def _known(model: nn.Module) -> Sequence[str]:
    return getattr(unwrap(model), "classes", None) or ()


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]+", " ", name).strip().casefold()


def _nameless(names: Sequence[str]) -> bool:
    """Whether there are no names, or what stands for them where a file or folder has none: 0, 1,
    … or 00, 01, …."""
    return all(
        name.isdecimal() and len(name) < 10 and int(name) == label
        for label, name in enumerate(names)
    )


def _lacking(names: Sequence[str], others: Sequence[str]) -> str:
    """Those of `names` that are not among `others`, the first few."""
    plain = {_plain(name) for name in others}
    found = [name for name in names if _plain(name) not in plain]
    return few(list(map(repr, found)))
