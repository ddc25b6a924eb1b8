"""What a gradient view is: how gradients flow back through a spiking node, which decides what a
gradient attack can see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError

T = TypeVar("T")
Run = Callable[[Callable[[Tensor], Tensor]], Any]
"""`run(spike)`: the forward pass of a node that is not ours; it makes its spikes by `spike(u)`."""


class View(ABC):
    """How gradients flow back through a spiking node. `str(view)` is its name.

    A new view is a class of this kind in `neuron/views`, registered by `register_view`. Views that
    mean the same are equal; one that remembers earlier passes is equal to itself alone.
    """

    true_forward: ClassVar[bool] = True
    """Whether the forward pass is the network's own: only its logits decide about an image."""
    timeless: ClassVar[bool] = False
    """Whether what a node emits depends on its input alone: one step is then computed, not T."""
    all_at_once: ClassVar[bool] = False
    """Whether SpikingJelly's nodes, too, have to compute all steps in one call to be seen so."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def steps(
        self,
        node: nn.Module,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Callable[..., Tensor],
    ) -> Tensor:
        """All T steps of our `node` from rest: x [T, N, *] → [T, N, *].

        With a true forward pass it is called for gradients alone.

        Args:
            multistep: the node's backend (`neuron.backend.Multistep`).
        """

    def step(
        self, x: Tensor, v: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool
    ) -> tuple[Tensor, Tensor]:
        """One step of our node: input and potential [N, *] → what it emits and the potential after.

        Raises:
            SJRobustError: the view takes all steps at once.
        """
        raise SJRobustError(
            f"the {self} view needs the whole sequence at once: "
            "use step_mode 'm' without store_v_seq"
        )

    @abstractmethod
    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        """One call of a node that is not ours: all steps [T, N, *] or one [N, *], as it computes.

        Args:
            run: the call itself, with a function in place of the node's `surrogate_function`: for
                views that go back through the node; others run it with `fires` and go back around
                it.
            seen: the node within this pass through its network.
        """

    def forget(self) -> None:  # noqa: B027 - most views have nothing to forget
        """Start an attack: drop what earlier ones left."""

    def instead_of(self, own: T) -> View | T:
        """What the nodes of a network are shown in, that have the view `own` by themselves."""
        return self


class Pass:
    """A node that is not ours within one pass through its network, as a view follows it."""

    def __init__(self, node: nn.Module, name: str) -> None:
        self.node = node
        self.where = f"{name} ({type(node).__name__})"
        self.multistep = getattr(node, "step_mode", "m") == "m"
        self.spikes_made = 0  # the time step, of a node that computes one at a time
        self.memory: Any = None  # what the view keeps from one call to the next

    def check_one_each(self, view: View, x: Tensor, spikes: Any, u: Tensor) -> None:
        """Raise SJRobustError unless there is a spike, and a potential, of each element of x."""
        if not (isinstance(spikes, Tensor) and spikes.shape == x.shape and u.numel() == x.numel()):
            raise SJRobustError(
                f"{self.where} does not make one spike of each input: it has no {view} view"
            )


def fires(u: Tensor) -> Tensor:
    """[u ≥ 0] as 0/1 in the dtype of `u`; no gradient passes."""
    return (u >= 0).to(u)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a result of these is differentiated."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
