"""The added terms against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sj_robust.attack import PGD
from sj_robust.errors import SJRobustError
from sj_robust.training import train_ann
from sj_robust.training.loss import LOSSES, training_loss
from sj_robust.training.regularizer import H, inconsistency, input_gradient_norm


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(count) % 4, torch.arange(count)


def test_the_gradient_penalty_is_the_squared_l1_norm_of_the_gradient(toy):
    model, (x, y, _) = toy.ann(dropout=0.0), batch()
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    value = input_gradient_norm(model, x, y)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    exact = toy.ann(dropout=0.0).double().eval()
    rows = torch.arange(6)

    def probability(images: torch.Tensor, rival: torch.Tensor) -> torch.Tensor:
        likely = exact(images).exp()
        return likely[rows, y] / (likely[rows, y] + likely[rows, rival])

    leaf = x.double().requires_grad_()
    others = exact(leaf).detach().clone()
    others[rows, y] = -1e9
    rival = others.argmax(1)
    (gradient,) = torch.autograd.grad(probability(leaf, rival).sum(), leaf)
    # first order in h
    assert value.item() == pytest.approx(
        gradient.abs().sum((1, 2, 3)).square().mean().item(), rel=0.1
    )

    difference = (
        (
            (probability(x.double() + H * gradient.sign(), rival) - probability(x.double(), rival))
            / H
        )
        .square()
        .mean()
    )
    assert value.item() == pytest.approx(difference.item(), rel=1e-4)
    value.backward()
    difference.backward()
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=0.02, atol=2e-4)


def test_inconsistency_is_the_divergence_from_the_mean_prediction():
    steps = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    value = inconsistency(steps)
    z = steps.detach().double().numpy()
    p = np.exp(z.mean(0)) / np.exp(z.mean(0)).sum(1, keepdims=True)
    p_t = np.exp(z) / np.exp(z).sum(2, keepdims=True)
    assert value.item() == pytest.approx((p * (np.log(p) - np.log(p_t))).sum(2).mean(), rel=1e-5)
    value.backward()
    # the target is constant
    np.testing.assert_allclose(steps.grad.numpy(), (p_t - p) / 15, rtol=1e-4, atol=1e-6)
    assert inconsistency(torch.ones(3, 1, 1) * torch.randn(5, 4)).item() == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("method", ["natural", "trades"])
def test_the_terms_join_the_loss_with_their_weights(toy, method):
    x, y, ids = batch()
    config = toy.config("finetune", method=method, eps=0.1, attack_steps=2)
    plain = LOSSES[method](toy.snn().train(), x, y, ids, config, 3)
    model = toy.snn().train()
    both = training_loss(
        model, x, y, ids, config.model_copy(update={"consistency": 0.5, "gradient_penalty": 0.1}), 3
    )
    expected = plain.total + 0.5 * both.facts["consistency"] + 0.1 * both.facts["gradient"]
    assert both.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert both.facts["loss"].item() == both.total.item()
    assert both.facts["consistency"] > 0
    assert both.facts["gradient"] > 0
    twin = toy.snn().train()
    seen = [twin.forward_sequence(x)]
    if method == "trades":  # of the training-mode passes, not the attack's
        seen.append(
            twin.forward_sequence(
                PGD(eps=0.1, steps=2, loss="kl", keep="last")(toy.snn(), x, seed=3, ids=ids)
            )
        )
    assert both.facts["consistency"].item() == pytest.approx(
        sum(map(inconsistency, seen)).item() / len(seen), rel=1e-5
    )
    both.total.backward()
    assert model.backbone[2].node.v_threshold.grad is not None
    assert not model.backbone._forward_hooks


def test_descending_on_a_term_lowers_it(toy):
    x, y, _ = batch(32)
    spiking, ann = toy.snn(threshold=1.5).train(), toy.ann(dropout=0.0)
    spiking.backbone[5].weight.data *= 20  # so that a spike more or less matters
    for model, term in (
        (spiking, lambda: inconsistency(spiking.forward_sequence(x))),
        (ann, lambda: input_gradient_norm(ann, x, y)),
    ):
        optimizer, values = torch.optim.SGD(model.parameters(), lr=0.05), []
        for _ in range(30):
            values.append(term())
            optimizer.zero_grad()
            values[-1].backward()
            optimizer.step()
        assert values[-1].item() < 0.6 * values[0].item()


def test_terms_that_do_not_fit_are_refused(toy, tmp_path):
    with pytest.raises(SJRobustError, match="consistency compares the time steps"):
        train_ann(toy.ann(), toy.patterns(), toy.config(consistency=1), tmp_path)
    with pytest.raises(SJRobustError, match="gradient_penalty does not go with checkpointing"):
        toy.config("finetune", gradient_penalty=1, checkpointing=True)
