"""Bounds on spikes hold for every input current, and are attained where the docstring says so."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sj_robust.bounds import spike_bounds
from sj_robust.neuron import ThresholdLIF

THRESHOLD = 0.71
CASES = [(1.0, "hard"), (0.8, "hard"), (1.0, "soft"), (0.8, "soft")]
Boxes = tuple[Tensor, Tensor]


def boxes(steps: int, count: int, width: float, seed: int = 0) -> Boxes:
    """[T, count] random boxes of input currents, of either sign, some of them points."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(steps, count, generator=generator, dtype=torch.float64) * 1.6 - 0.5
    half = torch.rand(steps, count, generator=generator, dtype=torch.float64) * width
    half[:, ::5] = 0
    return centre - half, centre + half


def points(lower: Tensor, upper: Tensor, per_step: int) -> Tensor:
    """[T, G, count]: a grid over every box, with its corners."""
    grid = torch.linspace(0, 1, per_step, dtype=torch.float64)
    at = torch.tensor(list(itertools.product(grid.tolist(), repeat=len(lower)))).T.double()
    return lower[:, None] + at[:, :, None] * (upper - lower)[:, None]


def fired(x: Tensor, leak: float, reset: str) -> Tensor:
    """What the node itself fires, in float64: [T, *]."""
    node = ThresholdLIF(THRESHOLD, leak=leak, reset=reset, backend="torch").double()
    node.v_threshold.data.fill_(THRESHOLD)
    with torch.no_grad():
        return node(x)


@pytest.mark.parametrize(("leak", "reset"), CASES)
@pytest.mark.parametrize("width", [0.05, 0.6])
def test_no_input_of_the_box_fires_otherwise(leak: float, reset: str, width: float) -> None:
    lower, upper = boxes(4, 200, width)
    (low, high), (fewest, most) = spike_bounds(
        lower, upper, torch.tensor(THRESHOLD).double(), leak=leak, soft_reset=reset == "soft"
    )
    spikes = fired(points(lower, upper, 7), leak, reset)
    counts = spikes.cumsum(0)
    assert (spikes.amin(1) >= low).all() and (spikes.amax(1) <= high).all()
    assert (counts.amin(1) >= fewest).all() and (counts.amax(1) <= most).all()
    if width > 0.5:
        assert ((high - low).mean() > 0.1) and ((high - low).mean() < 0.9)  # neither extreme


@pytest.mark.parametrize(("leak", "reset"), CASES[:3])
def test_the_bounds_are_attained(leak: float, reset: str) -> None:
    """Of counts in both cases, of spikes under hard reset; up to what a grid of 15 misses."""
    lower, upper = boxes(3, 300, 0.5)
    (low, high), (fewest, most) = spike_bounds(
        lower,
        upper,
        torch.tensor(THRESHOLD).double(),
        leak=leak,
        soft_reset=reset == "soft",
        roundoff=0,
    )
    spikes = fired(points(lower, upper, 15), leak, reset)
    counts = spikes.cumsum(0)
    met = [counts.amin(1) == fewest, counts.amax(1) == most]
    if reset == "hard":
        met += [spikes.amin(1) == low, spikes.amax(1) == high]
    missed = 1 - torch.stack(met).double().mean()
    assert missed == 0 if reset == "soft" else missed < 0.01


@pytest.mark.parametrize("soft_reset", [True, False])
def test_sums_say_more_than_steps(soft_reset: bool) -> None:
    """One spike of weight 1 comes in the first or the second step: after both, the node has fired
    for certain, as only the sums tell."""
    zero, one = torch.zeros(2, 1).double(), torch.ones(2, 1).double()
    sums = (torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [1.0]]).double())
    threshold = torch.tensor(0.9).double()
    _, blind = spike_bounds(zero, one, threshold, soft_reset=soft_reset)
    _, (fewest, most) = spike_bounds(zero, one, threshold, soft_reset=soft_reset, totals=sums)
    assert (blind[0][-1], blind[1][-1]) == (0, 2)
    assert fewest[-1] == 1
    assert most[-1] == 1 or not soft_reset


@pytest.mark.parametrize(("leak", "reset"), CASES)
def test_they_hold_for_float32_at_the_very_threshold(leak: float, reset: str) -> None:
    """Currents whose exact sums meet the threshold, where rounding decides."""
    generator = torch.Generator().manual_seed(3)
    parts = torch.rand(10, 20_000, generator=generator)
    node = ThresholdLIF(0.7, leak=leak, reset=reset, backend="torch")
    weights = torch.tensor([leak ** (9 - t) for t in range(10)])[:, None]
    x = 0.7 * parts / (weights * parts).sum(0)
    with torch.no_grad():
        spikes = node(x)
    threshold = node.v_threshold.detach().double()

    def outside(roundoff: float) -> int:
        (low, high), (fewest, most) = spike_bounds(
            x.double(),
            x.double(),
            threshold,
            leak=leak,
            soft_reset=reset == "soft",
            roundoff=roundoff,
        )
        counts = spikes.cumsum(0)
        inside = (spikes >= low) & (spikes <= high) & (counts >= fewest) & (counts <= most)
        return int((~inside).sum())

    assert outside(0.0) > 0  # as if it computed exactly: wrong for some
    assert outside(2.0**-23) == 0
