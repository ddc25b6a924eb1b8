"""With which mean and std a network wants its images: known, given, or found out on labelled
images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sj_robust.data import MEAN_STD, ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier
from sj_robust.model.mode import evaluation_mode
from sj_robust.model.normalized import count_logits
from sj_robust.model.weights import Normalisation, check_normalisation, normalisation_names, rounded
from sj_robust.recipes.spec import AnnSettings

IMAGES = 128  # labelled images that decide
_AT_ONCE = 32


@dataclass(frozen=True)
class Seen:
    """A data set in as many channels as a network takes, and K where a forward pass showed it:
    None where none succeeded."""

    dataset: ImageDataset
    num_classes: int | None


def look_at(network: nn.Module, dataset: ImageDataset) -> Seen:
    """What two images of `dataset` show of `network`: in colour, or grey where it takes them in
    no other way.

    Raises SJRobustError where it returns anything but logits alone.
    """
    known = [len(network.mean)] if isinstance(network, NormalizedClassifier) else [3, 1]
    refused: SJRobustError | None = None
    for channels in known:
        brought = dataset.in_channels(channels)
        try:
            return Seen(brought, count_logits(network, brought.first(2).floats()))
        # no logits: of the first images tried, those in colour, unless grey ones do
        except SJRobustError as error:
            refused = refused or error
        # whatever a network does with images of another shape; the conversion will say it
        except Exception:
            continue
    if refused:
        raise refused
    return Seen(dataset, None)


def normalisation(
    settings: AnnSettings, backbone: nn.Module, seen: Seen, stored: Normalisation | None = None
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std as the model knows them: 0 and 1 where the network normalises for itself, else
    those `stored` with its weights.

    Where it does not know them: as given, else as pretrained weights want them, else of the named
    data set, else, for random weights, of the pretrained_cfg. Those that are not given, but
    assumed, have to stand a test: where the network is right on clearly more of some labelled
    images as they are, it normalises for itself, and where it cannot be told, they have to be
    given.

    Raises SJRobustError where there are none, or the given ones contradict what the model knows.
    """
    name, dataset = type(backbone).__name__, seen.dataset
    channels = dataset.images.shape[1]
    none = ([0.0] * channels, [1.0] * channels)
    if normalisation_names(dict(backbone.named_buffers())):
        name, stored = f"{name}, which normalises the images itself,", none
    if stored:
        check_normalisation(settings.weights or name, stored, settings.mean, settings.std)
        return stored
    if settings.mean and settings.std:
        given, what = (settings.mean, settings.std), settings.model or settings.weights or name
        if len(given[0]) != channels:
            raise SJRobustError(
                f"mean has {len(given[0])} values, and {what} takes images of "
                f"{channels} channels: give mean and std {_of(channels)}"
            )
        # random ones tell nothing
        if settings.weights or settings.model or settings.brings_weights:
            _doubt(what, backbone, seen, given, none)
        return given
    known = getattr(backbone, "pretrained_cfg", None) or {}
    trained_with = (known["mean"], known["std"]) if known.get("mean") and known.get("std") else None
    if settings.brings_weights:
        chosen = trained_with
    else:  # what timm notes of an architecture says nothing on the weights in a file
        chosen = MEAN_STD.get(dataset.name, None if settings.weights else trained_with)
    if settings.mean or settings.std or chosen is None or len(chosen[0]) != channels:
        what = settings.weights or name
        raise SJRobustError(
            f"the mean and std that {what} was trained with are not known: give both, mean and std,"
            f" {_of(channels)}"
        )
    if settings.brings_weights or settings.scratch:
        return chosen
    return _tested(settings, name, backbone, seen, chosen, none)


def _tested(
    settings: AnnSettings,
    name: str,
    backbone: nn.Module,
    seen: Seen,
    assumed: tuple[Sequence[float], Sequence[float]],
    none: Normalisation,
) -> tuple[Sequence[float], Sequence[float]]:
    """The `assumed` mean and std, or `none` where the network is clearly right without."""
    if not (settings.weights or settings.model):
        return assumed  # random weights, to be trained with it
    what, data = settings.weights or settings.model or name, seen.dataset.name
    mean, std = map(rounded, assumed)
    trial = _Trial.of(backbone, seen, assumed, none)
    if trial and trial.clear and trial.better_without:
        warnings.warn(
            f"{what} normalises the images itself: it is right on {trial.without:.0%} of"
            f" {trial.images} images as they are, and on {trial.normalised:.0%} with {data}'s mean"
            f" {mean} and std {std}, which are left out",
            stacklevel=4,
        )
        return none
    if trial and not trial.clear and not trial.no_better_than_chance:
        raise SJRobustError(
            f"whether {what} normalises the images itself cannot be told: it is right on"
            f" {trial.without:.0%} of {trial.images} images as they are, and on"
            f" {trial.normalised:.0%} with {data}'s mean and std; give both, mean and std (0 and 1"
            " if it does)"
        )
    if not (trial and trial.clear) and (settings.weights or not settings.train):
        found = (
            f" (it is right on no more of {trial.images} images than by chance)" if trial else ""
        )
        warnings.warn(
            f"{what} does not say with which mean and std it was trained: {data}'s are taken,"
            f" {mean} and {std}{found}; give mean and std (--mean, --std) if it was"
            " others (0,0,0 and 1,1,1 for none)",
            stacklevel=4,
        )
    return assumed


def _doubt(
    what: str,
    backbone: nn.Module,
    seen: Seen,
    given: tuple[Sequence[float], Sequence[float]],
    none: Normalisation,
) -> None:
    """Warn where the network is right on clearly more images without the mean and std that the
    user gave."""
    trial = (
        None
        if list(given[0]) == none[0] and list(given[1]) == none[1]
        else _Trial.of(backbone, seen, given, none)
    )
    if trial and trial.clear and trial.better_without:
        warnings.warn(
            f"{what} is right on {trial.without:.0%} of {trial.images} images as they are, and on"
            f" {trial.normalised:.0%} with the mean and std given: if it normalises them itself,"
            " give 0 and 1",
            stacklevel=4,
        )


@dataclass(frozen=True)
class _Trial:
    """On which of some labelled images a network is right, bool [n]: as they are, and
    normalised."""

    as_they_are: Tensor
    with_both: Tensor
    num_classes: int

    @classmethod
    def of(
        cls,
        backbone: nn.Module,
        seen: Seen,
        normalised: tuple[Sequence[float], Sequence[float]],
        none: Normalisation,
    ) -> _Trial | None:
        """None where the network does not run, or its classes are not the data's."""
        dataset = seen.dataset
        if seen.num_classes != len(dataset.classes):
            return None
        generator = torch.Generator().manual_seed(0)
        some = dataset.subset(torch.randperm(len(dataset), generator=generator)[:IMAGES])
        return cls(
            _right(backbone, some, none), _right(backbone, some, normalised), len(dataset.classes)
        )

    @property
    def images(self) -> int:
        return len(self.with_both)

    @property
    def without(self) -> float:
        return float(self.as_they_are.double().mean())

    @property
    def normalised(self) -> float:
        return float(self.with_both.double().mean())

    @property
    def better_without(self) -> bool:
        return self.without > self.normalised

    @property
    def clear(self) -> bool:
        """Whether the two differ by more than chance would have it: McNemar's test of the images
        on which they differ, at two sigma."""
        more, less = (
            int((self.as_they_are & ~self.with_both).sum()),
            int((self.with_both & ~self.as_they_are).sum()),
        )
        return (more - less) ** 2 > 4 * (more + less) and not self.no_better_than_chance

    @property
    def no_better_than_chance(self) -> bool:
        """Whether neither is three sigma above the share that guessing one class gets."""
        share = 1 / self.num_classes
        return (
            max(self.without, self.normalised)
            <= share + 3 * (share * (1 - share) / self.images) ** 0.5
        )


@torch.no_grad()
def _right(
    backbone: nn.Module,
    dataset: ImageDataset,
    normalised_with: tuple[Sequence[float], Sequence[float]],
) -> Tensor:
    model = NormalizedClassifier(backbone, *normalised_with)
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        predicted = [
            model(dataset.floats(some)).argmax(1)
            for some in torch.arange(len(dataset)).split(_AT_ONCE)
        ]
    return torch.cat(predicted) == dataset.labels


def _of(channels: int) -> str:
    return "one value each" if channels == 1 else f"{channels} values each"
