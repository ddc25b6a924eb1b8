"""Witches' brew: poisons that look clean, whose gradient is that of a misclassified target."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust.attack import GradientView
from sj_robust.attack.noise import uniform_like
from sj_robust.budget import Radius, radius
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model import SpikingModel, expose
from sj_robust.model.mode import evaluation_mode
from sj_robust.progress import bar
from sj_robust.threats.poison import in_memory


@dataclass(frozen=True, eq=False)
class Matched:
    """Poisons made by `match_gradients`.

    Attributes:
        dataset: the training set with them, labels as they were.
        rows: which images they are, int64, ascending.
        misalignment: 1 − the cosine of both gradients, at the random start and of the 8-bit images
            in the end.
    """

    dataset: ImageDataset
    rows: Tensor
    misalignment: tuple[float, float]


def match_gradients(
    model: nn.Module,
    dataset: ImageDataset,
    image: Tensor,
    target: int,
    *,
    rate: float = 0.01,
    eps: Radius = "16/255",
    steps: int = 100,
    seed: int = 0,
    show_progress: bool | None = None,
) -> Matched:
    """Change round(rate·N) images of the class `target` so that training on them teaches `image`.

    Within the l∞ ball of eps around each, the perturbations descend 1 − cos(∇L(image, target),
    Σ ∇L(poison, target)) by signed Adam, where ∇ is with respect to the weights; labels stay right.
    Whoever trains on the set is led to take `image` for `target`.

    Source: Geiping et al., "Witches' Brew", ICLR 2021, equation 3 and algorithm 1, with one start
    and without augmentation of the poisons.

    Args:
        model: trained on the clean set, a stand-in for the victim's; it is left as it was. Of a
            spiking network the ANN of its shape is taken (the activation view): the gradients of
            gradients that this takes, a spike has none of.
        image: to be misclassified, float [1, C, H, W] in [0, 1].
        target: the class that it is to be taken for.
        rate: of all images; the poisons are drawn by the seed.
        eps: radius of the perturbations.

    Raises:
        SJRobustError: settings out of range, fewer images of the class than poisons, or a network
            whose loss has no gradient for `image`.
    """
    size, pixels = radius(eps), in_memory(dataset)
    members = (dataset.labels == target).nonzero().flatten()
    count = round(rate * len(dataset))
    if not 1 <= count <= len(members) or steps < 1 or not size:
        raise SJRobustError(
            f"{count} poisons, {steps} steps, eps {size:g}: expected 1 to {len(members)} poisons,"
            f" the images of class {target}, at least one step, and an eps above 0"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = members[torch.randperm(len(members), generator=generator)[:count]].sort().values
    model = expose(model)
    device = next(model.parameters()).device
    x = dataset.floats(rows).to(device)
    labels = torch.full((count,), target, device=device)
    seen = GradientView(model, "activation") if isinstance(model, SpikingModel) else model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with evaluation_mode(model), torch.enable_grad():
        wanted = _gradient(seen, image.to(device), labels[:1], weights, graph=False)
        norm = sum(part.square().sum() for part in wanted).sqrt()  # type: ignore[union-attr]
        if not norm > 0:
            raise SJRobustError("the loss of the image has no gradient: expected a trained network")
        start = size * (2 * uniform_like(x, seed, rows.to(device)) - 1)
        shift = ((x + start).clamp(0, 1) - x).requires_grad_()
        optimizer = torch.optim.Adam([shift], lr=size / 10)
        least, best, first = float("inf"), shift.detach().clone(), float("inf")
        with bar("matching gradients", steps, unit="steps", show=show_progress) as progress:
            for step in range(steps):
                made = _gradient(seen, x + shift, labels, weights, graph=True)
                loss = _misalignment(made, wanted)
                value = float(loss.detach())
                first = value if step == 0 else first
                if value < least:
                    least, best = value, shift.detach().clone()
                (slope,) = torch.autograd.grad(loss, [shift])
                shift.grad = slope.sign()
                optimizer.param_groups[0]["lr"] = size / 10 * _decay(step, steps)
                optimizer.step()
                with torch.no_grad():
                    shift.clamp_(-size, size)
                    shift.copy_((x + shift).clamp(0, 1) - x)
                progress.advance(1)
        levels = _to_levels(x + best, x, size)
        made = _gradient(seen, levels.to(device) / 255, labels, weights, graph=False)
        last = float(_misalignment(made, wanted))
    images = pixels.clone()
    images[rows] = levels
    return Matched(replace(dataset, images=images), rows, (first, last))


def _gradient(
    model: nn.Module, x: Tensor, labels: Tensor, weights: list[nn.Parameter], graph: bool
) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(model(x), labels)
    return torch.autograd.grad(loss, weights, create_graph=graph, materialize_grads=True)


def _misalignment(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    """1 − the cosine between two lists of tensors, taken as one vector each."""
    flat = [torch.cat([part.flatten() for part in parts]) for parts in (one, other)]
    return 1 - F.cosine_similarity(flat[0], flat[1], dim=0)


def _decay(step: int, steps: int) -> float:
    """The paper's: a tenth after 3/8, 5/8 and 7/8 of the steps."""
    return float(0.1 ** sum(8 * step >= part * steps for part in (3, 5, 7)))


def _to_levels(images: Tensor, clean: Tensor, size: float) -> Tensor:
    """In 8 bits, towards the clean image where rounding would leave the ball."""
    levels, before = images.mul(255).round(), clean.mul(255).round()
    most = int(size * 255 + 1e-4)
    return (before + (levels - before).clamp(-most, most)).to("cpu", torch.uint8)
