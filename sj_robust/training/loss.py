"""The losses: natural, PGD adversarial training, TRADES, MART and interval bounds, each a function
of one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_robust.attack import PGD, RFGSM, Attack
from sj_robust.bounds.network import recorded_statistics, training_margins
from sj_robust.training.config import TrainConfig
from sj_robust.training.regularizer import inconsistency, input_gradient_norm, recorded_steps


@dataclass(frozen=True)
class Loss:
    """A differentiable `total` (scalar) and the numbers worth logging (loss terms, accuracies on
    this batch), detached scalars.

    They stay on the device: reading one would make the CPU wait for the GPU in every step.
    """

    total: Tensor
    facts: dict[str, Tensor]


def natural_loss(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, config: TrainConfig, seed: int
) -> Loss:
    """Cross-entropy on clean images x [N,C,H,W] with labels y [N]."""
    logits = model(x)
    total = F.cross_entropy(logits, y)
    return Loss(total, {"loss": total.detach(), "clean": accuracy(logits, y)})


def pgd_loss(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, config: TrainConfig, seed: int
) -> Loss:
    """Cross-entropy on PGD images (Madry et al. 2018, eq. 2.1); with one step of 1.25·eps from a
    uniform start, Wong et al. 2020."""
    attack = PGD(
        eps=config.eps, steps=config.attack_steps, step_size=step_size(config), keep="last"
    )
    logits = model(attack(model, x, y, seed=seed, ids=ids))
    total = F.cross_entropy(logits, y)
    return Loss(total, {"loss": total.detach(), "robust": accuracy(logits, y)})


def trades_loss(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, config: TrainConfig, seed: int
) -> Loss:
    """CE(f(x), y) + beta·KL(f(x_adv) ‖ f(x)), the attack maximising the KL (Zhang et al. 2019, eq.
    5).

    x_adv comes from PGD (trades) or RFGSM (trades-rfgsm; Özdenizci & Legenstein 2024, section 3.3).
    The clean term is not detached. With `attack_loss="ce"` the attack ascends the cross-entropy
    instead: near x, where RFGSM takes its one step, the KL is flat.
    """
    attack: Attack
    if config.method == "trades":
        attack = PGD(
            eps=config.eps,
            steps=config.attack_steps,
            step_size=step_size(config),
            loss=config.attack_loss,
            keep="last",
        )
    else:
        attack = RFGSM(eps=config.eps, alpha=config.alpha, loss=config.attack_loss)
    x_adv = attack(model, x, y if config.attack_loss == "ce" else None, seed=seed, ids=ids)
    clean, adversarial = model(x), model(x_adv)
    ce = F.cross_entropy(clean, y)
    kl = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
    total = ce + config.beta * kl
    return Loss(
        total,
        {
            "loss": total.detach(),
            "ce": ce.detach(),
            "kl": kl.detach(),
            "clean": accuracy(clean, y),
            "robust": accuracy(adversarial, y),
        },
    )


def mart_loss(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, config: TrainConfig, seed: int
) -> Loss:
    """BCE(f(x_adv), y) + beta·KL(f(x) ‖ f(x_adv))·(1 − p_y(x)) on PGD images (Wang et al., ICLR
    2020; beta is their λ).

    BCE(f, y) = −log p_y − log(1 − max_{k≠y} p_k). Neither p_y(x) nor the clean side of the KL is
    detached, as in the paper's code.
    """
    attack = PGD(
        eps=config.eps, steps=config.attack_steps, step_size=step_size(config), keep="last"
    )
    x_adv = attack(model, x, y, seed=seed, ids=ids)
    clean, adversarial = model(x).float(), model(x_adv).float()
    label = y[:, None]
    strongest = adversarial.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    # log(1 − p_k) from the other logits: exact where p_k rounds to 1, which the paper's code meets
    # with a constant
    rest = adversarial.scatter(1, strongest, -torch.inf).logsumexp(1) - adversarial.logsumexp(1)
    bce = F.cross_entropy(adversarial, y) - rest.mean()
    log_p = clean.log_softmax(1)
    # log_target: the gradient through p itself is not finite where p rounds to 0
    divergence = F.kl_div(adversarial.log_softmax(1), log_p, reduction="none", log_target=True).sum(
        1
    )
    kl = (divergence * (1 - log_p.gather(1, label).squeeze(1).exp())).mean()
    total = bce + config.beta * kl
    return Loss(
        total,
        {
            "loss": total.detach(),
            "ce": bce.detach(),
            "kl": kl.detach(),
            "clean": accuracy(clean, y),
            "robust": accuracy(adversarial, y),
        },
    )


def ibp_loss(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, config: TrainConfig, seed: int
) -> Loss:
    """kappa·CE(f(x), y) + (1 − kappa)·CE(ẑ, y) with the worst logits ẑ that interval bounds of the
    ball leave open (Gowal et al. 2018, eq. 12).

    ẑ_k is the largest z_k − z_y there may be, bounded through the last layer at once. Batch norms
    are in these bounds what they are for the clean batch, statistics and all (Shi et al., "Fast
    Certified Robust Training with Short Warmup", 2021, section 4.2). eps and kappa are those of the
    step, see `scheduled`.
    """
    kappa = 0.5 if config.kappa is None else config.kappa
    with recorded_statistics(model) as statistics:
        clean = model(x)
    margin = training_margins(model, x, y, config.eps, statistics)
    ce, worst = F.cross_entropy(clean, y), F.cross_entropy(-margin, y)
    total = kappa * ce + (1 - kappa) * worst
    return Loss(
        total,
        {
            "loss": total.detach(),
            "ce": ce.detach(),
            "bound": worst.detach(),
            "clean": accuracy(clean, y),
            "robust": (margin.topk(2, 1, largest=False)[0][:, 1] > 0).float().mean(),
        },
    )


LOSSES: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor, TrainConfig, int], Loss]] = {
    "natural": natural_loss,
    "pgd": pgd_loss,
    "trades": trades_loss,
    "trades-rfgsm": trades_loss,
    "mart": mart_loss,
    "ibp": ibp_loss,
}


def training_loss(
    model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, config: TrainConfig, seed: int
) -> Loss:
    """The loss of `config.method` and the regularisers that `config` gives a weight."""
    with recorded_steps(model, bool(config.consistency)) as passes:
        loss = LOSSES[config.method](model, x, y, ids, config, seed)
    terms: list[tuple[str, float, Tensor]] = []
    if config.consistency:
        terms.append(
            (
                "consistency",
                config.consistency,
                torch.stack([inconsistency(steps) for steps in passes]).mean(),
            )
        )
    if config.gradient_penalty:
        terms.append(("gradient", config.gradient_penalty, input_gradient_norm(model, x, y)))
    for name, weight, value in terms:
        total = loss.total + weight * value
        loss = Loss(total, {**loss.facts, "loss": total.detach(), name: value.detach()})
    return loss


def step_size(config: TrainConfig) -> float:
    """PGD's step: as configured, else 1.25·eps for a single step and 2.5·eps/steps for several."""
    if config.step_size is not None:
        return config.step_size
    return 1.25 * config.eps if config.attack_steps == 1 else 2.5 * config.eps / config.attack_steps


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Fraction (scalar) of the N rows of `logits` [N,K] whose largest entry is at the label y
    [N]."""
    return (logits.argmax(1) == y).float().mean()
