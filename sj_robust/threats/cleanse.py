"""Neural Cleanse: the smallest trigger that leads to each class; a backdoor's is far smaller than
the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust.attack import GradientView
from sj_robust.attack.mode import attack_mode
from sj_robust.attack.noise import uniform_like
from sj_robust.attack.view import forget, true_logits
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model import SpikingModel, expose
from sj_robust.neuron import View, view_name
from sj_robust.progress import bar
from sj_robust.threats.report import Cleanse

# The authors' settings: a mask counts once it leads so many images to the class, and its weight
# grows by 1.5 where it does so 5 times in turn, and shrinks by 1.5^1.5 where it does not.
_ENOUGH, _WEIGHT, _PATIENCE, _UP, _DOWN = 0.99, 1e-3, 5, 1.5, 1.5**1.5
_LR, _BETAS = 0.1, (0.5, 0.9)


@dataclass(frozen=True, eq=False)
class Reversed:
    """A trigger found for one class: (1 − m)·x + m·Δ.

    Attributes:
        mask: m, float32 [1, H, W] in [0, 1].
        pattern: Δ, float32 [C, H, W] in [0, 1].
        hits: how many of the images it leads to the class.
    """

    mask: Tensor
    pattern: Tensor
    hits: int

    @property
    def norm(self) -> float:
        """The l1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    def stamp(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] with the trigger."""
        return _stamped(images, self.mask.to(images), self.pattern.to(images))


def reverse_triggers(
    model: nn.Module,
    clean: ImageDataset,
    *,
    view: View | str = "PCW:1",
    steps: int = 300,
    batch_size: int = 32,
    seed: int = 0,
    show_progress: bool | None = None,
) -> tuple[list[Reversed], Cleanse]:
    """A small trigger for every class, and which classes have one that is too small.

    For class t it descends CE(f((1 − m)·x + m·Δ), t) + λ·‖m‖₁ over clean images x by Adam, where λ
    rises as long as 99 % of a batch are led to t, and falls else; the smallest mask with that
    success is kept, or the last one. A class is flagged where its norm lies more than 2 median
    absolute deviations (× 1.4826) below the median, and its trigger leads 90 % of the images.

    Source: Wang et al., "Neural Cleanse", S&P 2019, sections IV and V.

    Args:
        model: images [N, C, H, W] in [0, 1] → logits [N, K]; it is left as it was.
        clean: images that the defender has, of any labels.
        view: of a spiking network, by whose gradients it descends; judged by its true spikes.
        steps: of Adam, for each class.
        batch_size: images in a step.
        seed: of the starts and of the order of the images.

    Returns:
        (the triggers by class, the norms and what they say).

    Raises:
        SJRobustError: no steps or images, or a model with fewer than three classes, whose median
            says nothing.
    """
    if steps < 1 or batch_size < 1 or not len(clean):
        raise SJRobustError(
            f"{steps} steps on batches of {batch_size} from {len(clean)} images: expected one or"
            " more of each"
        )
    model = expose(model)
    seen = GradientView(model, view) if isinstance(model, SpikingModel) else model
    name = view_name(seen.view) if isinstance(seen, GradientView) else "exact"
    device = next(model.parameters()).device
    with attack_mode(seen, device):
        classes = seen(clean.floats([0]).to(device)).shape[1]
        if classes < 3:
            raise SJRobustError(
                f"Neural Cleanse compares the triggers of all classes: expected 3 or more, not"
                f" {classes}"
            )
        found = []
        with bar("Neural Cleanse", classes * steps, unit="steps", show=show_progress) as progress:
            for label in range(classes):
                found.append(_reversed(seen, clean, label, steps, batch_size, seed, device))
                progress.advance(steps)
    facts = Cleanse.of(name, steps, len(clean), [(one.norm, one.hits) for one in found])
    return found, facts


def _reversed(
    seen: nn.Module,
    clean: ImageDataset,
    label: int,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Reversed:
    forget(seen)
    shape = clean.images.shape[1:]
    ids = torch.tensor([label])
    start = uniform_like(torch.empty(1, shape[0] + 1, *shape[1:], device=device), seed, ids)[0]
    free = torch.atanh((start - 0.5) * 1.9).requires_grad_()  # mask first, then the pattern
    optimizer = torch.optim.Adam([free], lr=_LR, betas=_BETAS)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(clean), generator=generator)
    weight, hit, missed = 0.0, 0, 0
    best, least = free.detach(), float("inf")  # goes along with `free` until a mask is enough
    for step in range(steps):
        rows = order[torch.arange(step * batch_size, (step + 1) * batch_size) % len(clean)]
        x = clean.floats(rows).to(device)
        mask, pattern = _bounded(free)
        stamped = _stamped(x, mask, pattern)
        logits = seen(stamped)
        goal = torch.full((len(x),), label, device=device)
        loss = F.cross_entropy(logits, goal) + weight * mask.sum()
        led = float((true_logits(seen, stamped, logits.detach()).argmax(1) == label).float().mean())
        norm = float(mask.detach().sum())
        if led >= _ENOUGH and norm < least:
            best, least = free.detach().clone(), norm
        (free.grad,) = torch.autograd.grad(loss, [free])
        optimizer.step()
        hit, missed = (hit + 1, 0) if led >= _ENOUGH else (0, missed + 1)
        if hit == _PATIENCE:
            weight, hit = weight * _UP or _WEIGHT, 0
        elif missed == _PATIENCE:
            weight, missed = weight / _DOWN, 0
    with torch.no_grad():
        mask, pattern = _bounded(best)
        hits = 0
        for rows in torch.arange(len(clean)).split(batch_size):
            stamped = _stamped(clean.floats(rows).to(device), mask, pattern)
            hits += int((true_logits(seen, stamped).argmax(1) == label).sum())
    return Reversed(mask.cpu(), pattern.cpu(), hits)


def _bounded(free: Tensor) -> tuple[Tensor, Tensor]:
    """Mask [1, H, W] and pattern [C, H, W] in [0, 1] of free variables [1 + C, H, W]."""
    inside = (free.tanh() + 1) / 2
    return inside[:1], inside[1:]


def _stamped(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return (1 - mask) * images + mask * pattern
