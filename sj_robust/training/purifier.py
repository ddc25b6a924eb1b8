"""Training of a purifier: images under noise, or attacked, back to what they were."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_robust.attack import PGD, GradientView, evaluation_mode
from sj_robust.attack.noise import normal_like, uniform_like
from sj_robust.budget import Radius, radius
from sj_robust.data import Augmentation, ImageDataset, batches, steps_per_epoch
from sj_robust.errors import SJRobustError
from sj_robust.model import Purifier, SpikingModel, expose
from sj_robust.model.images import values_known
from sj_robust.progress import bar


def train_purifier(
    purifier: Purifier,
    dataset: ImageDataset,
    classifier: nn.Module | None = None,
    *,
    eps: Radius = 8 / 255,
    steps: int = 3,
    epochs: int = 2,
    batch_size: int = 64,
    lr: float = 4e-3,
    seed: int = 0,
    show_progress: bool | None = None,
) -> list[float]:
    """Train a denoising autoencoder to give clean images back: the squared error is descended.

    A third of every batch is under Gaussian noise of standard deviation `eps`, a third under
    uniform noise within `eps`, a third attacked: by PGD on `classifier` as it is by itself, or
    under noise as well where there is none.

    Args:
        purifier: trained in place, and in eval mode afterwards.
        dataset: images to take noise off; never a test set.
        classifier: whose adversarial images it learns to take back; left as it is.
        steps: of PGD.
        lr: of Adam, the peak of one cycle (Smith & Topin 2018).

    Returns:
        The mean squared error of each epoch.

    Raises:
        SJRobustError: settings out of range, or too few images.
    """
    eps = radius(eps)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("steps", steps)):
        if value < 1:
            raise SJRobustError(f"{name} is {value}: expected at least 1")
    seen = None
    if classifier is not None:
        seen = expose(classifier)
        seen = GradientView(seen, "PCW:1") if isinstance(seen, SpikingModel) else seen
    device = next(purifier.parameters()).device
    per_epoch = steps_per_epoch(dataset, batch_size)
    optimizer = torch.optim.Adam(purifier.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * per_epoch)
    purifier.train()
    errors = []
    with (
        bar("purifier", epochs * per_epoch * batch_size, show=show_progress) as progress,
        values_known(),
    ):
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for number, (ids, x, y) in enumerate(
                batches(dataset, batch_size, seed=seed, epoch=epoch, augment=Augmentation())
            ):
                x, y = x.to(device), y.to(device)
                draw = seed * 1_000_003 + epoch * per_epoch + number
                noisy = _noisy(x, y, ids.to(device), seen, eps, steps, draw)
                loss = F.mse_loss(purifier(noisy), x)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
                progress.advance(batch_size)
            errors.append(float(total) / per_epoch)
    purifier.eval()
    return errors


def _noisy(
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    seen: nn.Module | None,
    eps: float,
    steps: int,
    seed: int,
) -> Tensor:
    third = len(x) // 3
    noisy = (x + eps * (2 * uniform_like(x, seed, ids) - 1)).clamp(0, 1)
    noisy[:third] = (x[:third] + eps * normal_like(x[:third], seed, ids[:third])).clamp(0, 1)
    if seen is not None and eps and third:
        with evaluation_mode(seen):
            attack = PGD(eps=eps, steps=steps, keep="last")
            noisy[-third:] = attack(seen, x[-third:], y[-third:], seed=seed, ids=ids[-third:])
    return noisy
