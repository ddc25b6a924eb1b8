"""Counter-based noise: the right bits, and nothing but (seed, id, draw, element) in them."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sj_robust.attack.noise import normal_like, signs_like, uniform_like

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(z: int) -> int:
    """The finaliser of SplitMix64 in Python's unbounded integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bits(seed: int, image: int, draw: int, element: int) -> int:
    key = splitmix((image + splitmix((seed + 1) * GOLDEN & MASK)) & MASK)
    key = splitmix((key + splitmix((draw + 1) * GOLDEN & MASK)) & MASK)
    return splitmix((key + (element + 1) * GOLDEN) & MASK)


def test_reference_splitmix_is_splitmix64() -> None:
    # First outputs for seed 0 of the public reference implementation (Vigna, splitmix64.c).
    assert [splitmix(n * GOLDEN & MASK) for n in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize(("seed", "draw"), [(0, 0), (7, 3), (2**63 + 11, 1), (5 << 40, 0)])
def test_noise_has_the_hashed_bits(seed: int, draw: int) -> None:
    ids = torch.tensor([0, 5, 123_456])
    x = torch.zeros(3, 3, 2, 5)
    expected = torch.tensor(
        [
            [bits(seed, image, draw, element) >> 40 for element in range(30)]
            for image in ids.tolist()
        ]
    )
    assert torch.equal(uniform_like(x, seed, ids, draw).flatten(1), expected.float() / 2**24)
    negative = torch.tensor(
        [
            [bits(seed, image, draw, element) >> 63 for element in range(30)]
            for image in ids.tolist()
        ]
    )
    assert torch.equal(signs_like(x, seed, ids, draw).flatten(1), negative.float() * 2 - 1)


def test_uniform_is_uniform_and_uncorrelated() -> None:
    x = torch.zeros(200, 3, 16, 16)
    noise = uniform_like(x, 0, torch.arange(200))
    assert noise.dtype == torch.float32
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise, bins=64, min=0, max=1)
    expected = noise.numel() / 64
    # χ² with 63 degrees of freedom: p < 2e-5 beyond
    assert ((counts - expected) ** 2 / expected).sum() < 120
    rows = noise.flatten(1)
    correlation = torch.corrcoef(rows)
    # 200² pairs over 768 elements: σ = 0.036
    assert (correlation - torch.eye(200)).abs().max() < 0.2
    assert (
        torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1].abs()
        < 0.01
    )


def test_signs_are_balanced() -> None:
    signs = signs_like(torch.zeros(100, 1000), 3, torch.arange(100))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.02  # σ = 0.003


def test_normal_noise_is_normal() -> None:
    x = torch.zeros(20, 3, 64, 64)
    noise = normal_like(x, 3, torch.arange(20))
    values = noise.flatten().double()
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.01
    assert abs(float((values**4).mean()) - 3) < 0.1
    assert values.abs().max() > 4.3  # of 245,760
    assert torch.equal(normal_like(x[4:6], 3, torch.tensor([4, 5])), noise[4:6])
    assert not torch.equal(normal_like(x, 3, torch.arange(20), draw=1), noise)


def test_an_images_noise_ignores_batch_and_order() -> None:
    whole = uniform_like(torch.zeros(10, 3, 4, 4), 1, torch.arange(10))
    chosen = torch.tensor([7, 2, 9])
    assert torch.equal(uniform_like(torch.zeros(3, 3, 4, 4), 1, chosen), whole[chosen])


def test_seed_draw_and_id_each_change_the_noise() -> None:
    x = torch.zeros(1, 50)
    variants = [
        uniform_like(x, 0, torch.tensor([0])),
        uniform_like(x, 1, torch.tensor([0])),
        uniform_like(x, 0, torch.tensor([1])),
        uniform_like(x, 0, torch.tensor([0]), draw=1),
    ]
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert (one - other).abs().max() > 0.1


def test_memory_format_changes_the_layout_not_the_noise() -> None:
    x = torch.zeros(2, 3, 4, 4)
    last = uniform_like(x.to(memory_format=torch.channels_last), 0, torch.arange(2))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, uniform_like(x, 0, torch.arange(2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_noise_is_the_same_on_a_gpu() -> None:
    x, ids = torch.zeros(4, 3, 8, 8), torch.arange(4)
    assert torch.equal(uniform_like(x.cuda(), 9, ids.cuda()).cpu(), uniform_like(x, 9, ids))
