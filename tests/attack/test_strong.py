"""SA-PGD, APGD, FAB, Square and noise: the contract they share, their formulas, and what they
find."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sj_robust.attack import (
    APGD,
    FAB,
    FGSM,
    PGD,
    SAPGD,
    Attack,
    GradientView,
    Rotating,
    Rounds,
    Square,
    UniformNoise,
    parse_attack,
)
from sj_robust.attack.gradient import checkpoints
from sj_robust.attack.loss import margin, objective
from sj_robust.attack.noise import uniform_like
from sj_robust.conversion import convert
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import parse_view

EPS = 8 / 255
ATTACKS: list[Callable[..., Attack]] = [
    lambda **s: SAPGD(steps=6, **s),
    lambda **s: SAPGD(steps=6, loss="dlr", **s),
    lambda **s: APGD(steps=6, **s),
    lambda **s: APGD(steps=6, loss="dlr", **s),
    lambda **s: APGD(steps=3, loss="t", targets=2, **s),
    lambda **s: FAB(steps=4, targets=2, **s),
    lambda **s: FAB(steps=3, targets=0, **s),
    lambda **s: Square(queries=25, **s),
    lambda **s: UniformNoise(restarts=3, **s),
    lambda **s: PGD(steps=3, **s),
    lambda **s: FGSM(**s),
    lambda **s: Rotating(steps=6, **s),
    lambda **s: Rounds(first=PGD(steps=2, **s), second=Square(queries=15, **s), restarts=2, **s),
]
L2 = [make for make in ATTACKS if make(eps=EPS).name.split("-")[0] != "sapgd6"]


def name(make: Callable[..., Attack]) -> str:
    return make(eps=EPS).name


def net(classes: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, classes),
    ).eval()


def images(model: nn.Module, count: int = 12) -> tuple[Tensor, Tensor]:
    """Images of [3, 8, 8] and the labels that the model gives them, two of them wrong."""
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 6
    return x, y


def spiking() -> tuple[SpikingClassifier, Tensor, Tensor]:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 6),
    )
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ann = NormalizedClassifier(backbone, [0.5] * 3, [0.25] * 3)
    snn = convert(ann, x.view(2, 6, 3, 8, 8), timesteps=3, calibration_timesteps=10).eval()
    return snn, x, snn(x).argmax(1)


@pytest.mark.parametrize(
    ("make", "norm"),
    [(make, "linf") for make in ATTACKS] + [(make, "l2") for make in L2],
    ids=[f"{name(make)}-linf" for make in ATTACKS] + [f"{name(make)}-l2" for make in L2],
)
def test_in_the_ball_alike_in_any_batch_and_order_and_leaving_no_trace(
    make: Callable[..., Attack], norm: str
) -> None:
    model = net()
    x, y = images(model)
    eps = EPS if norm == "linf" else 0.4
    attack, ids = make(eps=eps, norm=norm), torch.arange(12) + 50
    torch.manual_seed(9)
    before = torch.get_rng_state()
    model.train()
    x_adv = attack(model, x, y, seed=3, ids=ids)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, torch.float32, False)
    size = (x_adv - x).flatten(1).norm(torch.inf if norm == "linf" else 2, dim=1)
    assert size.max() <= eps + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    order = torch.tensor([7, 2, 11, 0, 5])
    torch.manual_seed(10)
    part = attack(model, x[order], y[order], seed=3, ids=ids[order])
    alone = attack(model, x[5:6], y[5:6], seed=3, ids=ids[5:6])
    # Convolutions may round differently in another batch: a sign may flip where a gradient is about
    # zero, no more.
    assert (part - x_adv[order]).abs().gt(1e-5).float().mean() < 0.02
    assert (alone - x_adv[5:6]).abs().gt(1e-5).float().mean() < 0.02
    other = attack(model, x, y, seed=4, ids=ids)
    if attack.name.split("-")[0] not in ("fab", "fgsm"):
        assert not torch.equal(other, x_adv)
    channels_last = attack(model, x.to(memory_format=torch.channels_last), y, seed=3, ids=ids)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", ATTACKS, ids=name)
@pytest.mark.parametrize("view", ["PCW:1", "ASSG", "rate-temporal", "activation"])
def test_any_attack_runs_under_any_view_to_the_same_result_twice(
    make: Callable[..., Attack], view: str
) -> None:
    snn, x, y = spiking()
    seen = GradientView(snn, parse_view(view))
    attack = make(eps=EPS)
    first = attack(seen, x, y)
    assert torch.equal(attack(seen, x, y), first)  # nothing is left in the view by the first attack
    assert (first - x).abs().max() <= EPS + 1e-6


def test_the_best_image_is_kept_not_the_last() -> None:
    """On a spiking network the margin goes up and down along the way."""
    snn, x, y = spiking()
    for view in ("PCW:1", "activation"):
        seen = GradientView(snn, parse_view(view))
        best, last = (PGD(eps=EPS, steps=12, keep=keep)(seen, x, y) for keep in ("best", "last"))
        margins = [margin(snn(images), y) for images in (best, last)]
        assert (margins[0] <= margins[1]).all()
        assert (margins[0] < margins[1]).any()


def test_restarts_only_help() -> None:
    model = net()
    x, y = images(model)
    for make in (
        lambda **s: PGD(steps=2, **s),
        lambda **s: SAPGD(steps=2, **s),
        lambda **s: APGD(steps=2, **s),
    ):
        one, five = (
            margin(model(make(eps=EPS, restarts=count)(model, x, y)), y) for count in (1, 5)
        )
        assert (five <= one + 1e-6).all()
        assert (five < one - 1e-6).any()


def test_targeted_attacks_reach_the_class_they_are_given() -> None:
    model = net()
    x, y = images(model)
    target = (y + 3) % 6
    x_adv = PGD(eps=0.5, steps=40, targeted=True)(model, x, target)
    assert (model(x_adv).argmax(1) == target).float().mean() > 0.7
    assert (model(x).argmax(1) == target).float().mean() < 0.2


def test_l2_attacks_reach_the_optimum_of_a_linear_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).requires_grad_(False)
    x = torch.full((4, 3, 8, 8), 0.5)
    y = torch.tensor([0, 1, 0, 1])
    # a margin falls by eps·‖w_y − w_k‖ at most
    lowest = margin(model(x), y) - 0.3 * (model[1].weight[0] - model[1].weight[1]).norm()
    for attack in (
        FGSM(eps=0.3, norm="l2"),
        PGD(eps=0.3, steps=30, norm="l2"),
        APGD(eps=0.3, steps=30, norm="l2"),
    ):
        assert torch.allclose(margin(model(attack(model, x, y)), y), lowest, atol=6e-3), attack.name


def test_sapgd_follows_its_formula_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Tanh(), nn.Linear(10, 6))
    x, y = images(model)
    x, y, steps = x[2:3], y[2:3], 9
    found = SAPGD(eps=EPS, steps=steps)(model, x, y, seed=2)
    precise, exact = model.double(), x.double()
    x_adv = (exact + EPS * (2 * uniform_like(x, 2, torch.arange(1)).double() - 1)).clamp(0, 1)
    m = w = torch.zeros_like(exact)
    tried, eta, gap, since, best = [], EPS, int(0.22 * steps), 0, (-torch.inf, exact, exact)
    for _ in range(steps):
        leaf = x_adv.requires_grad_()
        value = nn.functional.cross_entropy(precise(leaf), y)
        (g,) = torch.autograd.grad(value, leaf)
        x_adv = leaf.detach()
        tried.append(x_adv)
        best = max(best, (value.item(), x_adv, g), key=lambda entry: entry[0])
        if since == gap:
            eta, since, gap = eta / 2, 0, max(gap - 1, 1)
            _, x_adv, g = best
        since += 1
        m = 0.5 * m + g / g.abs().mean()
        w = 0.8 * w + g**2 / (g**2).mean()
        x_adv = x_adv + (eta * m / w.sqrt()).clamp(-eta, eta)
        x_adv = torch.minimum(torch.maximum(x_adv, exact - EPS), exact + EPS).clamp(0, 1)
    tried.append(x_adv)
    expected = min(tried, key=lambda image: margin(precise(image), y).item())
    assert (found - expected).abs().max() < 1e-5


def test_the_checkpoints_are_those_of_apgd() -> None:
    # gaps 22, 19, 16, 13, 10, 7, 6, 6
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_dlr_is_the_ratio_of_its_paper_and_does_not_see_the_scale() -> None:
    logits, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [3.0, 1.0, 0.0, -1.0]]), torch.tensor([0, 1])
    expected = torch.tensor([-(3.0 - 1.0) / 3.0, -(1.0 - 3.0) / 3.0])
    for scale in (1.0, 1e4):
        assert torch.allclose(objective("dlr", nn.Identity(), logits, y)(scale * logits), expected)


def test_apgd_starts_where_the_library_would_and_finds_as_much() -> None:
    """Same algorithm, our own start: as strong as the library run by itself, within a few
    images."""
    from pyautoattack.autopgd_base import APGDAttack

    model = net()
    x, y = images(model, 64)
    own = margin(model(APGD(eps=EPS, steps=20)(model, x, y)), y)
    with torch.random.fork_rng():
        highest = APGDAttack(model, n_iter=20, eps=EPS, seed=0).perturb(x, y, best_loss=True)
    theirs = margin(model(highest), y)
    assert abs((own.mean() - theirs.mean()).item()) < 0.05 * own.std().item()


def test_gradients_that_vanish_by_scale_stop_ce_not_dlr() -> None:
    model = net()
    x = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model[-1].bias.data -= model(x).mean(0).detach()  # else one class has them all
    y = model(x).argmax(1)

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e6 * model(x)

    broken = {
        loss: int((margin(model(APGD(eps=EPS, steps=10, loss=loss)(Scaled(), x, y)), y) < 0).sum())
        for loss in ("ce", "dlr")
    }
    assert broken["dlr"] > broken["ce"]


def test_nan_logits_come_to_light() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4]
            return torch.where(
                (x - 0.5).abs().flatten(1).amax(1, keepdim=True) > 0, logits * torch.nan, logits
            )

    x = torch.full((2, 3, 8, 8), 0.5)
    x_adv = PGD(eps=EPS, steps=2)(Breaks(), x, torch.tensor([0, 1]))
    assert torch.isnan(Breaks()(x_adv)).all()


def test_names_parse_back() -> None:
    for text in (
        "fgsm",
        "rfgsm",
        "pgd7",
        "sapgd100-ce",
        "sapgd20-dlr",
        "apgd100-ce",
        "apgd20-dlr",
        "apgd100-t",
        "fab",
        "fab-t",
        "square5000",
        "noise10",
    ):
        assert parse_attack(text, EPS).name == text
    assert parse_attack("apgd-ce", EPS).name == "apgd100-ce"
    assert parse_attack("square", EPS).name == "square5000"
    assert parse_attack("pgd7", 0.5, "l2").norm == "l2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(eps=EPS, norm="l1"), "norm is 'l1'"),
        (lambda: SAPGD(eps=EPS, norm="l2"), "use APGD under l2"),
        (lambda: APGD(eps=EPS, loss="kl"), "loss is 'kl'"),
        (lambda: APGD(eps=EPS, targeted=True), "use PGD with targeted=True"),
        (
            lambda: PGD(eps=EPS, loss="dlr", targeted=True),
            'a targeted attack descends on the loss "ce"',
        ),
        (lambda: PGD(eps=EPS, random_start=False, restarts=2), "restarts without a random start"),
        (lambda: Square(eps=EPS, queries=0), "queries is 0"),
        (lambda: parse_attack("apgd-kl", EPS), "unknown attack 'apgd-kl'"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], Attack], message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        make()


def test_too_few_classes_are_named() -> None:
    x, y = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    for attack, least in (
        (APGD(eps=EPS, loss="dlr"), 3),
        (APGD(eps=EPS, loss="t"), 4),
        (SAPGD(eps=EPS, loss="dlr"), 3),
    ):
        with pytest.raises(SJRobustError, match=f"at least {least} classes"):
            attack(model, x, y)
    with pytest.raises(SJRobustError, match="needs labels"):
        APGD(eps=EPS)(net(), x)
