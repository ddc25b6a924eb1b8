"""Attacks that begin where others ended, and those of many sources: never worse, alike in any
batch, no trace left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal

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
    Sources,
    Square,
    UniformNoise,
    parse_attack,
)
from sj_robust.attack.loss import margin
from sj_robust.conversion import convert
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.neuron import parse_view

EPS = {"linf": 4 / 255, "l2": 0.25}
GOING_ON: list[Callable[..., Attack]] = [
    lambda **s: Rotating(steps=12, **s),
    lambda **s: Rotating(steps=5, restarts=3, **s),
    lambda **s: Square(queries=60, **s),
    lambda **s: Square(queries=20, p0=0.8, restarts=2, **s),
]


@cache
def networks() -> tuple[SpikingClassifier, nn.Module, Tensor, Tensor]:
    """A spiking network, the ANN that it was made of, images [48, 3, 8, 8] and what the network
    says of them."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 6),
    )
    x = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ann = NormalizedClassifier(backbone, [0.5] * 3, [0.25] * 3).eval()
    snn = convert(ann, x.view(8, 6, 3, 8, 8), timesteps=3, calibration_timesteps=10).eval()
    return snn, ann, x, snn(x).argmax(1)


def sources(*extra: nn.Module) -> Sources:
    snn = networks()[0]
    return Sources(
        snn,
        [
            *(
                GradientView(snn, parse_view(view))
                for view in ("PCW:1", "ASSG", "activation", "rate")
            ),
            *extra,
        ],
    )


def margins(x_adv: Tensor) -> Tensor:
    snn, _, _, y = networks()
    with torch.no_grad():
        return margin(snn(x_adv), y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "make", GOING_ON, ids=lambda make: f"{make(eps=0.1).name}-{make(eps=0.1).restarts}"
)
def test_going_on_is_never_worse_stays_inside_and_is_alike_in_any_batch(
    make: Callable[..., Attack], norm: str
) -> None:
    snn, ann, x, y = networks()
    attack, ids = make(eps=EPS[norm], norm=norm), torch.arange(len(x)) + 50
    model = sources(ann) if attack.many_sources else snn
    start = PGD(eps=EPS[norm], norm=norm, steps=3)(GradientView(snn, parse_view("PCW:1")), x, y)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    x_adv = attack(model, x, y, seed=3, ids=ids, start=start)
    assert torch.equal(torch.get_rng_state(), before)
    assert (margins(x_adv) <= margins(start)).all()
    assert (margins(x_adv) < margins(start) - 1e-6).any()
    assert (x_adv - x).flatten(1).norm(torch.inf if norm == "linf" else 2, dim=1).max() <= EPS[
        norm
    ] + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    # what is broken is left alone
    assert torch.equal(x_adv[margins(start) < 0], start[margins(start) < 0])
    order, again = torch.tensor([7, 2, 11, 0, 5]), torch.tensor([7, 2, 11, 0, 5, 5])
    part = attack(model, x[order], y[order], seed=3, ids=ids[order], start=start[order])
    alone = attack(model, x[5:6], y[5:6], seed=3, ids=ids[5:6], start=start[5:6])
    # In another batch a convolution may round otherwise, and a spike flip by it.
    same = [
        torch.allclose(a, b, atol=1e-5) for a, b in zip([*part, *alone], x_adv[again], strict=True)
    ]
    assert sum(same) >= 5
    assert not torch.equal(attack(model, x, y, seed=4, ids=ids, start=start), x_adv)
    channels_last = attack(model, x.to(memory_format=torch.channels_last), y, start=start)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_many_sources_and_squares_break_what_one_gradient_does_not(norm: str) -> None:
    snn, ann, x, y = networks()
    seen = GradientView(snn, parse_view("PCW:1"))
    pgd = PGD(eps=EPS[norm], norm=norm, steps=20, restarts=2)(seen, x, y)
    rotated = Rotating(eps=EPS[norm], norm=norm, steps=40)(sources(ann), x, y, start=pgd)
    squares = Square(eps=EPS[norm], norm=norm, queries=300)(snn, x, y, start=rotated)
    broken = [int((margins(x_adv) < 0).sum()) for x_adv in (pgd, rotated, squares)]
    assert broken[0] < broken[1] < broken[2] < len(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rounds_go_on_from_what_the_first_found_and_begin_anew(norm: Literal["linf", "l2"]) -> None:
    snn, ann, x, y = networks()
    model, ids = sources(ann), torch.arange(len(x)) + 50
    attack = parse_attack("rotating6+square20", EPS[norm], norm)
    assert isinstance(attack, Rounds)
    assert (
        not attack.gradients_alone
        and not attack.black_box
        and parse_attack("fgsm+rotating2", 0.1).gradients_alone
    )
    assert (attack.name, attack.iterations, attack.many_sources) == ("rotating6+square20", 26, True)
    begin = attack.first(model, x, y, seed=3, ids=ids)
    by_hand = attack.second(snn, x, y, seed=3, ids=ids, start=begin)
    one = attack(model, x, y, seed=3, ids=ids)
    assert torch.equal(one, by_hand)
    again = replace(attack, restarts=5)(model, x, y, seed=3, ids=ids)
    broken = margins(one) < 0
    assert torch.equal(again[broken], one[broken])  # no round is spent on what is broken
    assert (margins(again) <= margins(one)).all()
    assert (margins(again) < 0).sum() > broken.sum()
    assert attack.settings["second"] == {**attack.second.settings}
    assert parse_attack("fgsm+rotating3+square2", 0.1).first == parse_attack("fgsm+rotating3", 0.1)


def test_square_drifts_along_a_tread_to_its_edge() -> None:
    """Where one pixel changes no logit, and several do, as on the staircase of a spiking
    network."""

    class Stairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height = (x.mean(dim=(1, 2, 3)) * 100).round() / 100
            return torch.stack([height - 0.475, torch.zeros_like(height)], 1)

    x, y = torch.full((8, 1, 8, 8), 0.5), torch.zeros(8, dtype=torch.int64)
    attack = Square(eps=0.2, queries=400, p0=1 / 64)  # a pixel changes the mean by 0.003
    x_adv = attack(Stairs(), x, y, start=x)
    assert (Stairs()(x_adv).argmax(1) == 1).all()


def test_the_model_decides_whichever_source_has_the_gradient() -> None:
    """Another network than the one under attack breaks easily, and that is no success."""
    snn, _, x, y = networks()
    torch.manual_seed(5)
    fragile = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    with torch.no_grad():
        fragile[1].weight.mul_(100)
    x_adv = Rotating(eps=EPS["linf"], steps=10)(Sources(snn, [fragile]), x, y)
    found = torch.stack([margin(fragile(x_adv), y), margins(x_adv)]) < 0
    assert (found[0] & ~found[1]).sum() > 10
    best = Rotating(eps=EPS["linf"], steps=10)(
        Sources(snn, [fragile, GradientView(snn, parse_view("PCW:1"))]), x, y
    )
    assert (margins(best) < 0).sum() > found[1].sum()


def test_the_exact_gradient_of_an_ann_is_its_only_source() -> None:
    _, ann, x, _ = networks()
    y = ann(x).argmax(1)
    for norm in ("linf", "l2"):
        attack = Rotating(eps=EPS[norm], norm=norm, steps=20)
        alone, listed = attack(ann, x, y), attack(Sources(ann, [ann]), x, y)
        assert torch.equal(alone, listed)
        pgd = PGD(eps=EPS[norm], norm=norm, steps=20)(ann, x, y)
        assert (ann(alone).argmax(1) != y).sum() >= (ann(pgd).argmax(1) != y).sum() - 1


def test_rotating_reaches_the_optimum_of_a_linear_model_and_a_given_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    x, y = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        # any step decides
        model[1].bias.copy_(torch.tensor([0.01, 0.0]) - model[1].weight.sum(1) / 2)
        weight = (model[1].weight[1 - y] - model[1].weight[y]).view_as(x)
    for targeted in (False, True):
        wanted = 1 - y if targeted else y
        x_adv = Rotating(eps=0.1, steps=1, targeted=targeted)(model, x, wanted, start=x)
        # the first step is eps/2 long
        assert torch.allclose(x_adv, x + 0.05 * weight.sign(), atol=1e-6)
    x_adv = Rotating(eps=0.1, norm="l2", steps=1)(model, x, y, start=x)
    assert torch.allclose(
        x_adv, x + 0.05 * weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), atol=1e-6
    )


def test_all_sources_are_left_as_they_were() -> None:
    snn, _, x, y = networks()

    class Witness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Dropout(0.5))
            self.seen: set[tuple[bool, bool]] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add((self.body.training, self.body[1].weight.requires_grad))
            return self.body(x + 1e-3 * torch.rand(1))

    first, second = Witness().train(), Witness().eval()
    second.body[1].requires_grad_(False)
    view = GradientView(snn, parse_view("ASSG"))
    model = Sources(snn, [view, first, second])
    state = torch.get_rng_state()
    found = Rotating(eps=0.1, steps=6)(model, x[:6], y[:6])
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.seen, second.seen) == ({(False, False)}, {(False, False)})
    assert (first.body.training, second.body.training, snn.training) == (True, False, False)
    assert (first.body[1].weight.requires_grad, second.body[1].weight.requires_grad) == (
        True,
        False,
    )
    # the statistics of ASSG are forgotten
    assert torch.equal(Rotating(eps=0.1, steps=6)(model, x[:6], y[:6]), found)


def test_what_attacks_say_of_themselves() -> None:
    ball = {"eps": 0.1}
    going_on = {"rotating100", "square5000"}
    others = (
        FGSM(**ball),
        PGD(**ball),
        SAPGD(**ball),
        APGD(**ball),
        FAB(**ball),
        UniformNoise(**ball),
    )
    for attack in (*others, *(parse_attack(name, 0.1) for name in going_on)):
        assert attack.takes_start == (attack.name in going_on)
        assert attack.many_sources == (attack.name == "rotating100")
        assert attack.starts_at_random == (type(attack) not in (FGSM, FAB, UniformNoise))
    assert not PGD(eps=0.1, random_start=False).starts_at_random
    assert (
        parse_attack("rotating", 0.1)
        == Rotating(eps=0.1, steps=100)
        == parse_attack("rotating100", 0.1)
    )
    assert parse_attack("rotating7", 0.5, "l2").settings == {
        "name": "rotating7",
        "eps": 0.5,
        "norm": "l2",
        "targeted": False,
        "restarts": 1,
        "steps": 7,
    }
    assert "p0" not in Square(eps=0.1).settings  # as in reports before it could be set
    assert Square(eps=0.1, p0=0.5).settings["p0"] == 0.5


def test_wrong_starts_and_settings_are_named() -> None:
    snn, _, x, y = networks()
    outside = x.clone()
    outside[0, 0, 0, 0] = 0.5 + 0.3 * (1 if x[0, 0, 0, 0] < 0.5 else -1)
    nan = x.clone()
    nan[3] = torch.nan
    for start, message in (
        (
            x[:3],
            (
                r"the images to start from are torch.float32 \[3, 3, 8, 8\]: expected torch.float32"
                r" \[48, 3, 8, 8\]"
            ),
        ),
        (outside, "up to 0.* from their images under linf: expected .* at most eps = 0.1"),
        (nan, r"the images to start from lie in \[nan, nan\]"),
        ([x], "the images to start from are of type list"),
    ):
        with pytest.raises(SJRobustError, match=message):
            Rotating(eps=0.1)(snn, x, y, start=start)
    for attack in (PGD(eps=0.1), FGSM(eps=0.1), FAB(eps=0.1), UniformNoise(eps=0.1)):
        with pytest.raises(
            SJRobustError, match=f"{attack.name} begins at places of its own: leave start out"
        ):
            attack(snn, x, y, start=x)
    for attack in (Rotating(eps=0.1), Square(eps=0.1)):
        with pytest.raises(SJRobustError, match="needs labels"):
            attack(snn, x, start=x)
    with pytest.raises(SJRobustError, match="no source of gradients"):
        Sources(snn, [])
    with pytest.raises(SJRobustError, match="steps is 0"):
        Rotating(eps=0.1, steps=0)
    with pytest.raises(SJRobustError, match="pgd10 cannot start from an image that is given"):
        parse_attack("rotating3+pgd10", 0.1)
    with pytest.raises(SJRobustError, match="square10 has another eps"):
        Rounds(eps=0.1, first=PGD(eps=0.1), second=Square(eps=0.2, queries=10))
    with pytest.raises(SJRobustError, match="unknown attack ''"):
        parse_attack("pgd10+", 0.1)
    with pytest.raises(SJRobustError, match="square10 needs labels"):
        parse_attack("pgd3+square10", 0.1)(snn, x)
    with pytest.raises(SJRobustError, match="p0 is 0: expected a share"):
        Square(eps=0.1, p0=0)


def test_an_attack_that_takes_no_start_need_not_know_of_it() -> None:
    class Still(Attack):
        def run(
            self, model: nn.Module, x: Tensor, y: Tensor | None, seed: int, ids: Tensor
        ) -> Tensor:  # type: ignore[override]
            return x

    _, ann, x, y = networks()
    assert torch.equal(Still(eps=EPS["linf"])(ann, x, y), x)
