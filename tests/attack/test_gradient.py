"""FGSM, RFGSM and PGD: closed forms, the ball, independence from batches, and models left as they
were found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust.attack import FGSM, PGD, RFGSM, Attack, parse_attack
from sj_robust.attack.noise import signs_like, uniform_like
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.errors import SJRobustError

EPS = 8 / 255
ATTACKS: list[Attack] = [
    FGSM(eps=EPS),
    RFGSM(eps=EPS),
    RFGSM(eps=EPS, alpha=EPS),
    PGD(eps=EPS),
    PGD(eps=EPS, steps=3, step_size=EPS, random_start=False),
    RFGSM(eps=EPS, loss="kl"),
    PGD(eps=EPS, steps=4, loss="kl"),
    PGD(eps=0.3, steps=2),
    FGSM(eps=0.0),
]


def identify(attack: Attack) -> str:
    return "-".join(str(value) for value in attack.settings.values())


@pytest.fixture(scope="module")
def sample() -> ImageDataset:
    return load_dataset("sample", "train").first(400)


@pytest.fixture(scope="module")
def cnn(sample: ImageDataset) -> nn.Module:
    """A small convolutional network with batch norm, trained on real images until it knows most of
    them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(60):
        chosen = torch.arange(step * 50, step * 50 + 50) % len(sample)
        loss = F.cross_entropy(model(sample.floats(chosen)), sample.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def linear(classes: int = 2) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, 48, generator=generator))
    return model


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    """Images [n, 3, 4, 4] with many values at and near 0 and 1, and labels of two classes."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(count, 3, 4, 4, generator=generator).mul(1.2).sub(0.1).clamp(0, 1)
    return x, torch.randint(0, 2, (count,), generator=generator)


@pytest.mark.parametrize("attack", ATTACKS, ids=identify)
def test_stays_in_the_ball_and_in_range(
    attack: Attack, cnn: nn.Module, sample: ImageDataset
) -> None:
    x, y = sample.floats(range(32)), sample.labels[:32]
    x[:4] = (x[:4] > 0.5).float()  # saturated pixels
    x_adv = attack(cnn, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= attack.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if attack.eps:
        assert (x_adv - x).abs().max() >= 0.9 * attack.eps  # it did use the ball


def test_fgsm_on_a_linear_model_is_the_closed_form() -> None:
    model, (x, y) = linear(), images()
    weight = model[1].weight.detach()
    # the cross-entropy of two classes grows along w_other − w_true
    uphill = (weight[1 - y] - weight[y]).sign().view_as(x)
    assert torch.equal(FGSM(eps=EPS)(model, x, y), (x + EPS * uphill).clamp(0, 1))


@pytest.mark.parametrize(
    "attack",
    [PGD(eps=EPS), PGD(eps=EPS, random_start=False), PGD(eps=EPS, steps=3, step_size=EPS)],
    ids=identify,
)
def test_pgd_on_a_linear_model_reaches_the_optimum(attack: PGD) -> None:
    model, (x, y) = linear(), images()
    weight = model[1].weight.detach()
    best = (x + EPS * (weight[1 - y] - weight[y]).sign().view_as(x)).clamp(0, 1)
    assert (attack(model, x, y) - best).abs().max() < 1e-6


def smooth() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Tanh(), nn.Linear(20, 5))


def kl(model: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
    """Σ_k p_k·(log p_k − log q_k), written out: p clean, q adversarial."""
    p, log_p, log_q = (
        model(x).softmax(1).detach(),
        model(x).log_softmax(1).detach(),
        model(x_adv).log_softmax(1),
    )
    return (p * (log_p - log_q)).sum()


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_rfgsm_follows_its_formula_in_float64(loss: str) -> None:
    model, (x, y), alpha, ids = smooth(), images(), 3 / 255, torch.arange(6) + 40
    x_adv = RFGSM(eps=EPS, alpha=alpha, loss=loss)(model, x, y, seed=5, ids=ids)
    start = (x.double() + alpha * signs_like(x, 5, ids).double()).clamp(0, 1).requires_grad_()
    precise = smooth().double()
    value = F.cross_entropy(precise(start), y) if loss == "ce" else kl(precise, x.double(), start)
    (gradient,) = torch.autograd.grad(value, start)
    assert gradient.abs().min() > 1e-9  # no sign is a matter of rounding
    expected = (start + (EPS - alpha) * gradient.sign()).clamp(0, 1)
    assert (x_adv - expected).abs().max() < 1e-6


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_pgd_follows_its_formula_in_float64(loss: str) -> None:
    model, (x, y) = smooth(), images()
    x_adv = PGD(eps=EPS, steps=3, step_size=EPS / 2, loss=loss, keep="last")(model, x, y, seed=1)
    precise, exact = smooth().double(), x.double()
    point = (exact + EPS * (2 * uniform_like(x, 1, torch.arange(6)).double() - 1)).clamp(0, 1)
    for _ in range(3):
        point.requires_grad_()
        value = F.cross_entropy(precise(point), y) if loss == "ce" else kl(precise, exact, point)
        (gradient,) = torch.autograd.grad(value, point)
        point = (point + EPS / 2 * gradient.sign()).detach()
        point = torch.minimum(torch.maximum(point, exact - EPS), exact + EPS).clamp(0, 1)
    assert (x_adv - point).abs().max() < 1e-6


def test_kl_needs_no_labels_and_raises_the_divergence(cnn: nn.Module, sample: ImageDataset) -> None:
    x = sample.floats(range(32))
    attack = PGD(eps=EPS, loss="kl")
    x_adv = attack(cnn, x)
    assert torch.equal(x_adv, attack(cnn, x, sample.labels[:32]))
    start = x + EPS * (2 * uniform_like(x, 0, torch.arange(32)) - 1)
    with torch.no_grad():
        assert kl(cnn, x, x_adv) > 5 * kl(cnn, x, start)


def test_attacks_break_a_natural_network_and_more_steps_break_more(
    cnn: nn.Module, sample: ImageDataset
) -> None:
    x, y = sample.floats(range(200)), sample.labels[:200]

    def accuracy(images: Tensor) -> float:
        with torch.no_grad():
            return float((cnn(images).argmax(1) == y).float().mean())

    assert accuracy(x) > 0.7
    assert accuracy(FGSM(eps=EPS)(cnn, x, y)) < 0.3 * accuracy(x)
    assert accuracy(PGD(eps=EPS, steps=10)(cnn, x, y)) <= accuracy(PGD(eps=EPS, steps=1)(cnn, x, y))


@pytest.mark.parametrize("attack", [FGSM(eps=EPS), RFGSM(eps=EPS), PGD(eps=EPS)], ids=identify)
def test_an_image_is_attacked_alike_in_any_batch(attack: Attack) -> None:
    model, (x, y) = linear(5), images(12)
    whole = attack(model, x, y, seed=3)
    order = torch.tensor([7, 0, 11, 4, 2])
    assert torch.equal(attack(model, x[order], y[order], seed=3, ids=order), whole[order])
    assert torch.equal(attack(model, x[9:10], y[9:10], seed=3, ids=torch.tensor([9])), whole[9:10])


def test_seeds_draw_other_starts() -> None:
    model, (x, y) = linear(5), images()
    attack = RFGSM(eps=EPS)
    assert torch.equal(attack(model, x, y, seed=1), attack(model, x, y, seed=1))
    assert not torch.equal(attack(model, x, y, seed=1), attack(model, x, y, seed=2))


def test_channels_last_stays_channels_last(cnn: nn.Module, sample: ImageDataset) -> None:
    x, y = sample.floats(range(8)), sample.labels[:8]
    for attack in ATTACKS:
        x_adv = attack(cnn, x.to(memory_format=torch.channels_last), y)
        assert x_adv.is_contiguous(memory_format=torch.channels_last), attack.name


class Witness(nn.Module):
    """A classifier with mixed flags that draws random numbers, and may fail at its n-th call."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(16, 2),
        )
        self.fail_at, self.calls, self.seen_training, self.seen_grad = fail_at, 0, False, False
        self.train()
        self.body[1].eval()
        self.body[0].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen_training |= any(module.training for module in self.modules())
        self.seen_grad |= any(parameter.requires_grad for parameter in self.parameters())
        if self.calls == self.fail_at:
            raise ValueError("no more")
        return self.body(x + 1e-3 * torch.rand(1))


def snapshot(model: nn.Module) -> tuple[object, ...]:
    flags = [module.training for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    grads = [parameter.grad is None for parameter in model.parameters()]
    return (
        flags,
        wants,
        grads,
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        [v.tolist() for v in model.state_dict().values()],
    )


@pytest.mark.parametrize(
    "attack", [FGSM(eps=EPS), PGD(eps=EPS, steps=3), RFGSM(eps=EPS, loss="kl")], ids=identify
)
@pytest.mark.parametrize("fail_at", [None, 1, 2])
def test_the_model_is_left_as_it_was(attack: Attack, fail_at: int | None) -> None:
    model, (x, y) = Witness(fail_at), images()
    before = snapshot(model)
    if fail_at is None or (fail_at == 2 and attack.name == "fgsm"):  # FGSM calls the model once
        attack(model, x, y)
    else:
        with pytest.raises(ValueError, match="no more"):
            attack(model, x, y)
    assert snapshot(model) == before
    assert model.calls
    assert not model.seen_training
    assert not model.seen_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(
    context: Callable[[], torch.autograd.grad_mode.no_grad],
) -> None:
    model, (x, y) = linear(), images()
    expected = PGD(eps=EPS)(model, x, y)
    with context():
        found = PGD(eps=EPS)(model, x.clone(), y.clone())
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(eps=-0.1), "eps is -0.1: expected a number ≥ 0"),
        (lambda: PGD(eps=float("nan")), "eps is nan"),
        (lambda: PGD(eps=EPS, steps=0), "steps is 0: expected at least 1"),
        (lambda: PGD(eps=EPS, step_size=-1.0), "step_size is -1.0"),
        (lambda: RFGSM(eps=0.1, alpha=0.2), "alpha is 0.2: expected 0 ≤ alpha ≤ eps = 0.1"),
        (lambda: PGD(eps=EPS, loss="cw"), "loss is 'cw'"),
        (lambda: FGSM(eps=EPS, loss="kl"), "goes nowhere"),
        (lambda: PGD(eps=EPS, loss="kl", random_start=False), "needs random_start=True"),
        (
            lambda: parse_attack("apgd", EPS),
            "unknown attack 'apgd': expected one of fgsm, rfgsm, pgdN",
        ),
        (lambda: parse_attack("pgd0", EPS), "unknown attack 'pgd0'"),
        (lambda: parse_attack("pgd10", -1), "eps is -1"),
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], Attack], message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 3, 4, 4), 1.5), r"images lie in \[1.5, 1.5\]: expected \[0, 1\]"),
        (torch.full((2, 3, 4, 4), float("nan")), "images lie in"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "expected float32"),
        (torch.zeros(3, 3, 4, 4), r"labels have shape \[2\]: expected \[3\]"),
    ],
)
def test_images_that_do_not_fit_are_named(x: Tensor, message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        FGSM(eps=EPS)(linear(), x, torch.zeros(2, dtype=torch.int64))


def test_wrong_ids_missing_labels_and_dead_gradients_are_named() -> None:
    x, y = images()
    with pytest.raises(SJRobustError, match=r"ids have shape \[2\]: expected \[6\]"):
        PGD(eps=EPS)(linear(), x, y, ids=torch.arange(2))
    with pytest.raises(SJRobustError, match="needs labels"):
        PGD(eps=EPS)(linear(), x)

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :2]

    with pytest.raises(SJRobustError, match="no gradient with respect to its input"):
        FGSM(eps=EPS)(Cut(), x, y)


def test_names_parse_back_and_settings_say_everything() -> None:
    for name, kind in (("fgsm", FGSM), ("rfgsm", RFGSM), ("pgd10", PGD), ("pgd20", PGD)):
        attack = parse_attack(name, EPS)
        assert isinstance(attack, kind)
        assert (attack.name, attack.eps) == (name, EPS)
    assert PGD(eps=0.2, steps=20).settings == {
        "name": "pgd20",
        "eps": 0.2,
        "norm": "linf",
        "targeted": False,
        "restarts": 1,
        "loss": "ce",
        "steps": 20,
        "keep": "best",
        "step_size": 2.5 * 0.2 / 20,
        "random_start": True,
    }
    assert RFGSM(eps=0.2).settings == {
        "name": "rfgsm",
        "eps": 0.2,
        "norm": "linf",
        "targeted": False,
        "restarts": 1,
        "loss": "ce",
        "alpha": 0.1,
        "step_size": 0.1,
    }
    with pytest.raises(TypeError):
        FGSM(EPS)  # keyword-only
