"""Gradient views of a spiking classifier, one or many, as a plain nn.Module for any attack code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.unwrap import spiking, unwrap
from sj_robust.neuron import View, parse_view

if TYPE_CHECKING:
    from sj_robust.model import SpikingModel


class GradientView(nn.Module):
    """A spiking classifier as seen by an attack: its gradients flow by `view`.

    A Surrogate keeps the true spikes and changes the backward pass only, and so do "rate" (BPTR),
    "rate-temporal" (HART) and an AdaptiveSharpness (ASSG); "activation" (Act) replaces the nodes by
    ReLU in both directions. The nodes capture the view while running forward, so backward may come
    later. ASSG gathers statistics over the iterations of an attack: foreign attack code makes a
    GradientView per attack and batch, or calls `forget` before each.

    Args:
        snn: shared, not copied; it shows no trace of the view outside of the call. A wrapped
            network (DataParallel, torch.compile) is taken out of its wrapper.
        view: a View or its name, as of `parse_view`.

    Raises:
        SJRobustError: a network that is not spiking, or an unknown view.
    """

    def __init__(self, snn: SpikingModel | nn.Module, view: View | str) -> None:
        super().__init__()
        self.snn = spiking(snn)
        self.view = view
        self.training = self.snn.training

    @property
    def view(self) -> View:
        """How gradients flow back; may be set, also by name."""
        return self.__dict__["view"]  # type: ignore[no-any-return]

    @view.setter
    def view(self, view: View | str) -> None:
        self.__dict__["view"] = parse_view(view)

    @property
    def num_classes(self) -> int:
        """K of `snn`."""
        return self.snn.num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] → logits [N, K]."""
        with self.snn.gradient(self.view):
            return self.snn(x)

    def forget(self) -> None:
        """Drop what earlier attacks left in the view."""
        self.view.forget()

    def extra_repr(self) -> str:
        return f"view={self.view}"


class Sources(nn.Module):
    """A model for an attack that takes its gradients from several sources.

    It alone decides about the images. Being in it, all of the sources are in eval mode and without
    gradients of their parameters during an attack, and as they were afterwards.

    Args:
        sources: views of `model`, other models.

    Raises:
        SJRobustError: there is no source.
    """

    def __init__(self, model: nn.Module, sources: Iterable[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.sources = nn.ModuleList(sources)
        if not len(self.sources):
            raise SJRobustError(
                "no source of gradients: give at least one, such as the model itself"
            )

    @property
    def num_classes(self) -> int | None:
        """K of `model`, None where it does not say."""
        return getattr(unwrap(self.model), "num_classes", None)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] → logits [N, K] of `model`."""
        return self.model(x)  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Drop what earlier attacks left in the views."""
        for source in self.sources:
            forget(source)

    def decides(self, source: nn.Module) -> bool:
        """Whether `source` is a view of `model`, or `model` itself.

        A pass through it decides as well then.
        """
        return _network(source) is _network(self.model)


def _network(model: nn.Module) -> nn.Module:
    return model.snn if isinstance(model, GradientView) else unwrap(model)


def forget(model: nn.Module) -> None:
    """Start an attack: nothing of an earlier one may remain in the view."""
    if isinstance(model, (GradientView, Sources)):
        model.forget()


def true_logits(model: nn.Module, x: Tensor, shown: Tensor | None = None) -> Tensor:
    """The logits [N, K] that decide about images x, by the true spikes if `model` is a view of a
    spiking network.

    `shown`: the logits that `model` itself gave for x, if known: the true ones, where the view's
    forward pass is.
    """
    if isinstance(model, Sources):
        return true_logits(model.model, x, shown)
    if isinstance(model, GradientView) and not model.view.true_forward:
        with torch.no_grad(), model.snn.true_spikes():
            return model.snn(x)  # type: ignore[no-any-return]
    if shown is not None:
        return shown
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]
