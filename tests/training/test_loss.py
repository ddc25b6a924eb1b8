"""The losses against their formulas, recomputed in float64 from the logits alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sj_robust import SJRobustError
from sj_robust.attack import PGD, RFGSM
from sj_robust.training.loss import LOSSES, step_size


class Linear(nn.Module):
    """Logits that are linear in the image, so that gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.rand(6, 3, 2, 2, generator=generator),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        torch.tensor([3, 1, 4, 15, 9, 2]),
    )


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def attacked(
    method: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor, seed: int
) -> torch.Tensor:
    attack = {
        "pgd": PGD(eps=0.1, steps=3, keep="last"),
        "mart": PGD(eps=0.1, steps=3, keep="last"),
        "trades": PGD(eps=0.1, steps=3, loss="kl", keep="last"),
        "trades-rfgsm": RFGSM(eps=0.1, alpha=0.04, loss="kl"),
    }[method]
    return attack(model, x, y, seed=seed, ids=ids)


@pytest.mark.parametrize("method", ["natural", "pgd", "trades", "trades-rfgsm"])
def test_value_and_gradient_follow_the_formula(toy, method):
    model, (x, y, ids) = Linear(), batch()
    config = toy.config(method=method, eps=0.1, attack_steps=3, alpha=0.04, beta=5)
    loss = LOSSES[method](model, x, y, ids, config, 7)
    loss.total.backward()

    weight, flat = model.weight.detach().double().numpy(), x.flatten(1).double().numpy()
    adversarial = (
        flat
        if method == "natural"
        else attacked(method, model, x, y, ids, 7).flatten(1).double().numpy()
    )
    target = np.eye(3)[y.numpy()]
    source = adversarial if method == "pgd" else flat
    log_p = log_softmax(source @ weight.T)
    p = np.exp(log_p)
    value = -(target * log_p).sum(1).mean()
    gradient = (p - target).T @ source / len(x)
    if method.startswith("trades"):
        log_q = log_softmax(adversarial @ weight.T)
        kl = (p * (log_p - log_q)).sum(1, keepdims=True)
        value += 5 * kl.mean()
        # through the clean term, which is not detached
        gradient += 5 * (p * (log_p - log_q - kl)).T @ flat / len(x)
        gradient += 5 * (np.exp(log_q) - p).T @ adversarial / len(x)
    assert loss.total.item() == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(model.weight.grad.numpy(), gradient, rtol=1e-4, atol=1e-6)
    assert loss.facts["loss"].item() == loss.total.item()


@pytest.mark.parametrize("method", ["trades", "trades-rfgsm"])
def test_trades_can_attack_the_cross_entropy(toy, method):
    model, (x, y, ids) = Linear(), batch()
    config = toy.config(
        method=method, eps=0.1, attack_steps=3, alpha=0.04, beta=5, attack_loss="ce"
    )
    loss = LOSSES[method](model, x, y, ids, config, 7).total.item()
    attack = PGD(eps=0.1, steps=3) if method == "trades" else RFGSM(eps=0.1, alpha=0.04)
    with torch.no_grad():
        clean, adversarial = model(x), model(attack(model, x, y, seed=7, ids=ids))
        p, log_q = clean.softmax(1), adversarial.log_softmax(1)
        expected = (
            torch.nn.functional.cross_entropy(clean, y) + 5 * (p * (p.log() - log_q)).sum(1).mean()
        )
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    kl = LOSSES[method](
        model, x, y, ids, config.model_copy(update={"attack_loss": "kl"}), 7
    ).total.item()
    assert kl != pytest.approx(loss, rel=1e-6)


def test_batch_norm_sees_clean_then_adversarial_images_in_training_mode(toy):
    model, (x, y, ids) = toy.ann(dropout=0.0).train(), batch()
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    y = y.clamp(max=3)
    twin = copy.deepcopy(model)
    LOSSES["trades"](model, x, y, ids, toy.config(method="trades", eps=0.1, attack_steps=3), 7)
    x_adv = attacked("trades", twin, x, y, ids, 7)
    twin(x), twin(x_adv)
    for (name, ours), (_, theirs) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("kind", ["ann", "snn"])
@pytest.mark.parametrize("method", ["pgd", "trades", "trades-rfgsm", "mart"])
def test_the_inner_attack_leaves_the_model_as_it_was(toy, kind, method):
    model = getattr(toy, kind)().train()
    model.backbone[1].eval()  # a frozen batch norm must come back frozen
    model.backbone[0].weight.requires_grad_(False)
    views = [node.view for node in model.nodes().values()] if kind == "snn" else []
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    x, y, ids = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6)
    random = torch.get_rng_state()
    attacked(method, model, x, y, ids, 5)
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [module.training for module in model.modules()]
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    if kind == "snn":
        assert views == [node.view for node in model.nodes().values()]


# at 18 probabilities round to 1 in float32, not in float64
@pytest.mark.parametrize("scale", [1, 18])
def test_mart_follows_its_formula(toy, scale):
    model, (x, y, ids) = Linear(), batch()
    model.weight.data *= scale
    config = toy.config(method="mart", eps=0.1, attack_steps=3, beta=5)
    loss = LOSSES["mart"](model, x, y, ids, config, 7)
    loss.total.backward()

    x_adv = attacked("mart", model, x, y, ids, 7).flatten(1).double()
    weight, rows = model.weight.detach().double().requires_grad_(), torch.arange(6)
    p, q = (x.flatten(1).double() @ weight.T).softmax(1), (x_adv @ weight.T).softmax(1)
    weaker = torch.stack([min(q[i, k] for k in range(3) if k != y[i]) for i in range(6)])
    # 1 − max_{k≠y} q_k, of three classes
    bce = (-q[rows, y].log() - (q[rows, y] + weaker).log()).mean()
    assert (q.float().max() == 1) == (scale == 18)
    kl = ((p * (p.log() - q.log())).sum(1) * (1 - p[rows, y])).mean()
    (bce + 5 * kl).backward()
    assert loss.total.item() == pytest.approx((bce + 5 * kl).item(), rel=1e-4)
    assert loss.facts["ce"].item() == pytest.approx(bce.item(), rel=1e-4)
    assert loss.facts["kl"].item() == pytest.approx(kl.item(), rel=1e-4, abs=1e-7)
    np.testing.assert_allclose(model.weight.grad.numpy(), weight.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_one_step_training_steps_beyond_the_ball(toy):
    assert step_size(toy.config(eps=0.1, attack_steps=1)) == pytest.approx(0.125)
    assert step_size(toy.config(eps=0.1, attack_steps=5)) == pytest.approx(0.05)
    assert step_size(toy.config(eps=0.1, attack_steps=5, step_size=0.02)) == 0.02


def test_interval_bounds_of_a_linear_network_follow_the_formula(toy):
    """There the worst logits are known: z_k − z_y + eps·|w_k − w_y|₁, for images inside [0, 1]."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 3)
    model, (x, y, ids) = nn.Sequential(nn.Flatten(), layer), batch()
    x = 0.2 + 0.6 * x
    config = toy.config(method="ibp", eps=0.1, kappa=0.3)
    loss = LOSSES["ibp"](model, x, y, ids, config, 7)
    loss.total.backward()
    weight = layer.weight.detach().double().requires_grad_()
    z = x.flatten(1).double() @ weight.T + layer.bias.detach().double()
    worst = z - z.gather(1, y[:, None]) + 0.1 * (weight - weight[y][:, None]).abs().sum(2)
    expected = 0.3 * nn.functional.cross_entropy(z, y) + 0.7 * nn.functional.cross_entropy(worst, y)
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(layer.weight.grad.double(), weight.grad, atol=1e-5)
    assert loss.facts["robust"] == (worst.argmax(1) == y).float().mean()


def test_without_a_ball_the_bounds_are_the_clean_logits(toy):
    """Batch norms in training mode have the statistics of the clean batch in them, and keep those
    that one pass leaves."""
    x, y = toy.patterns(16).floats(), toy.patterns(16).labels
    grads, norms = [], []
    for kappa, method in ((1, "ibp"), (0, "ibp"), (None, "natural")):
        model = toy.ann(dropout=0).train()
        config = toy.config(method=method, kappa=kappa).model_copy(update={"eps": 0.0})
        loss = LOSSES[method](model, x, y, torch.arange(16), config, 0)
        loss.total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        norms.append(model.backbone[1].running_var.clone())
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.allclose(grads[0], grads[2], atol=1e-6)
    assert torch.allclose(grads[1], grads[2], atol=1e-5)
    assert torch.equal(norms[0], norms[2]) and torch.equal(norms[1], norms[2])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_bounds_count_no_batch(toy, momentum):
    """Else a mean of all batches, which momentum None is, would be one of twice as many."""
    buffers = []
    for method in ("ibp", "natural"):
        model = toy.ann(dropout=0).train()
        model.backbone[1].momentum = momentum
        for seed in range(2):
            data = toy.patterns(16, seed=seed)
            config = toy.config(method=method)
            LOSSES[method](model, data.floats(), data.labels, torch.arange(16), config, 0)
        buffers.append(dict(model.named_buffers()))
    assert int(buffers[0]["backbone.1.num_batches_tracked"]) == 2
    for name, value in buffers[1].items():
        assert torch.equal(buffers[0][name], value), name


def test_norms_whose_statistics_are_not_one_batch_are_refused(toy):
    x, y, ids = batch()
    norm = nn.BatchNorm2d(3)
    for layers, message in (
        ((nn.BatchNorm2d(3, track_running_stats=False),), "without running statistics"),
        ((norm, nn.ReLU(), norm), "called twice"),
    ):
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)).train()
        with pytest.raises(SJRobustError, match=message):
            LOSSES["ibp"](model, x, y, ids, toy.config(method="ibp"), 0)
