"""Load a network of the zoo and attack it: with an attack of this package, and with code that knows
nothing of spikes, a loop of PGD in plain PyTorch. Any attack library takes the network in this way.

    python examples/load_and_attack.py
    python examples/load_and_attack.py --data cifar10 --images 200
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sj_robust
from sj_robust.attack import PGD


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Iterator[Tensor]:
    """Adversarial images [N, C, H, W] after each step, as one finds PGD written in many places."""
    x_adv = x + eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1)
    for _ in range(steps):
        x_adv = x_adv.clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + 2.5 * eps / steps * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
        yield x_adv


def main() -> None:
    parser = argparse.ArgumentParser(description="Attack a network of the zoo.")
    parser.add_argument("--model", default="resnet20-snn-t4.cifar10_linf_pgd")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()

    # Images in [0, 1] to logits [N, K]: normalisation and time steps are inside, no state is left.
    snn = sj_robust.load(options.model).eval()
    test = sj_robust.load_dataset(options.data, "test").first(options.images)
    x, y = test.floats(), test.labels
    eps = 2 / 255

    @torch.no_grad()
    def right(images: Tensor) -> Tensor:
        """Judged by the network itself, never by the view that gave the gradients: bool [N]."""
        assert float((images - x).abs().max()) <= eps + 1e-6
        return snn(images).argmax(1) == y

    def tell(what: str, standing: Tensor) -> Tensor:
        print(f"{what:<46} {100 * float(standing.float().mean()):5.1f} %")
        return standing

    print(f"{options.model}, T={snn.timesteps}, {len(x)} images of {test.name}, eps 2/255")
    survivors = tell("right as they are", right(x))

    # A spike has no gradient: a view says what stands for it. Each finds other images.
    attack = PGD(eps=eps, steps=10)
    for view in ("own", "ASSG", "rate"):
        x_adv = attack(sj_robust.GradientView(snn, view), x, y)
        survivors &= tell(f"after our PGD-10 through {view}", right(x_adv))

    # A GradientView is an nn.Module, so the loop above needs no word on spikes.
    iterates = list(plain_pgd(sj_robust.GradientView(snn, "ASSG"), x, y, eps, steps=10))
    tell("after a plain PGD-10 through ASSG", right(iterates[-1]))

    # A spiking network is a staircase: its steps are lost again on the way. So keep the best image
    # of all iterations, as our attacks do, not the last.
    standing = torch.stack([right(x_adv) for x_adv in iterates]).all(0)
    survivors &= tell("the same, every iterate counted", standing)

    # An image is robust only if it survives everything, and then only until a stronger attack.
    tell("right after all of these", survivors)
    print("sj-robust evaluate --protocol strong goes on from here, with queries.")


if __name__ == "__main__":
    main()
