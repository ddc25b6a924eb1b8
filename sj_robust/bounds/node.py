"""Bounds on the spikes of a node over T steps, from bounds on its input current."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_robust.bounds.interval import ROUNDOFF, UNDERFLOW, Bounds, Interval
from sj_robust.model import SpikingActivation

_FLOAT64 = 2.0**-50  # of what the sums themselves are computed in


def spike_bounds(
    lower: Tensor,
    upper: Tensor,
    threshold: Tensor,
    *,
    leak: float = 1.0,
    soft_reset: bool = False,
    totals: Bounds | None = None,
    roundoff: float = ROUNDOFF,
) -> tuple[Bounds, Bounds]:
    """Bounds on what a ThresholdLIF fires, for every input current between `lower` and `upper`.

    The node is h_t = leak·v_{t−1} + x_t, s_t = [h_t ≥ v_th], from rest.

    Hard reset, and any leak: the potential is that gathered since the last spike, so for each step
    k of the last spike (or none yet) it is followed by itself, with the fewest and the most spikes
    there may have been until then. Without a leak it is S_t − S_k as well, within the `totals`. In
    exact arithmetic the bounds of each spike and of each count are attained by some input in the
    box, where nothing else is known of the sums.

    Soft reset without leak: with S_t = x_1 + … + x_t and N_t the spikes until t,

        N_t = N_{t−1} + [S_t ≥ (N_{t−1} + 1)·v_th],

    which rises with every S_k, whatever the signs of the inputs: let S'_k ≥ S_k for all k, and
    N'_{t−1} ≥ N_{t−1}. If N'_{t−1} > N_{t−1}, then N'_t ≥ N_{t−1} + 1 ≥ N_t; if they are equal,
    the one fires where the other does. So the node run on the lower and on the upper `totals` gives
    the least and the largest N_t there is.

    Soft reset with a leak: the hull of both cases of every step that may go either way.

    Args:
        lower: current [T, N, *], float64.
        upper: the same.
        threshold: broadcasts over [N, *].
        totals: bounds on the sums of the current over the first t steps [T, N, *]; without them
            those of `lower` and `upper`.
        roundoff: twice the unit roundoff that the node computes with; 0 for exact arithmetic.

    Returns:
        Bounds on the spikes of each step, and on their number in the first t steps, [T, N, *] each.
    """
    sums = (lower.cumsum(0), upper.cumsum(0)) if totals is None else totals
    if not soft_reset:
        return _hard(lower, upper, sums, threshold, leak, roundoff)
    if leak != 1:
        return _soft_leaky(lower, upper, threshold, leak, roundoff)
    return _soft(sums, torch.maximum(lower.abs(), upper.abs()), threshold, roundoff)


def bounded_activation(activation: SpikingActivation, x: Interval) -> Interval:
    """What stands in the place of `activation.forward` while bounds are computed."""
    if x.timesteps is None:
        x = x.repeated(activation.timesteps)
    steps, node = activation.timesteps, activation.node

    def sequence(value: Tensor) -> Tensor:
        return value.unflatten(0, (steps, len(value) // steps))

    lower, upper = sequence(x.lower), sequence(x.upper)
    assert x.totals is not None
    spikes, counts = spike_bounds(
        lower,
        upper,
        node.threshold_for(lower[0]).detach().to(x.dtype),
        leak=node.leak,
        soft_reset=node.soft_reset,
        totals=(sequence(x.totals[0]), sequence(x.totals[1])),
        roundoff=x.arithmetic.roundoff,
    )
    found = Interval(
        spikes[0].flatten(0, 1),
        spikes[1].flatten(0, 1),
        x.arithmetic,
        steps,
        (counts[0].flatten(0, 1), counts[1].flatten(0, 1)),
    )
    return found.times(activation.worth)


@dataclass
class _Since:
    """The potential since the last spike in one step: where that is possible, between `low` and
    `high`, after `least` to `most` spikes; the sums of the current until that step."""

    possible: Tensor
    low: Tensor
    high: Tensor
    least: Tensor
    most: Tensor
    sums: Bounds


def _hard(
    lower: Tensor, upper: Tensor, sums: Bounds, threshold: Tensor, leak: float, roundoff: float
) -> tuple[Bounds, Bounds]:
    zero = torch.zeros_like(lower[0])
    yes = torch.ones_like(zero, dtype=torch.bool)
    past = [_Since(yes, zero, zero, zero, zero, (zero, zero))]
    # of what a potential has gathered: each step rounds it, and it is at most all that was put in
    reach = slack = zero
    rows = []
    for x_low, x_high, sum_low, sum_high in zip(lower, upper, *sums, strict=True):
        reach = reach + torch.maximum(x_low.abs(), x_high.abs())
        slack = slack + max(roundoff, _FLOAT64) * reach
        fires, rests = ~yes, ~yes
        least, most = torch.full_like(zero, torch.inf), torch.full_like(zero, -torch.inf)
        for one in past:
            low, high = _charged(one.low, one.high, x_low, x_high, leak, roundoff)
            if leak == 1:
                low = torch.maximum(low, sum_low - one.sums[1] - slack)
                high = torch.minimum(high, sum_high - one.sums[0] + slack)
                one.possible = one.possible & (low <= high)
            firing = one.possible & (high >= threshold)
            least = torch.where(firing, torch.minimum(least, one.least + 1), least)
            most = torch.where(firing, torch.maximum(most, one.most + 1), most)
            one.possible = one.possible & (low < threshold)
            one.low, one.high = low, torch.minimum(high, threshold)
            fires, rests = fires | firing, rests | one.possible
        past.append(_Since(fires, zero, zero, least, most, (sum_low, sum_high)))
        fewest = [torch.where(one.possible, one.least, torch.inf) for one in past]
        highest = [torch.where(one.possible, one.most, -torch.inf) for one in past]
        rows.append(
            (
                (~rests).to(zero),
                fires.to(zero),
                torch.stack(fewest).amin(0),
                torch.stack(highest).amax(0),
            )
        )
    return _stacked(rows)


def _soft(sums: Bounds, size: Tensor, threshold: Tensor, roundoff: float) -> tuple[Bounds, Bounds]:
    fewest = highest = torch.zeros_like(sums[0][0])
    # each step rounds the potential before and after the reset, which are at most what was put in
    # and the thresholds that were taken off; what a rounding leaves stays in all later steps
    reach = slack = torch.zeros_like(fewest)
    rows = []
    for low, high, largest in zip(*sums, size, strict=True):
        reach = reach + largest + threshold
        slack = slack + 2 * roundoff * reach
        before = fewest, highest
        fewest = fewest + (low - slack >= (fewest + 1) * threshold)
        highest = highest + (high + slack >= (highest + 1) * threshold)
        rows.append(
            (
                (fewest - before[1]).clamp_min(0),
                (highest - before[0]).clamp_max(1),
                fewest,
                highest,
            )
        )
    return _stacked(rows)


def _soft_leaky(
    lower: Tensor, upper: Tensor, threshold: Tensor, leak: float, roundoff: float
) -> tuple[Bounds, Bounds]:
    v_low = v_high = fewest = highest = torch.zeros_like(lower[0])
    rows = []
    for x_low, x_high in zip(lower, upper, strict=True):
        low, high = _charged(v_low, v_high, x_low, x_high, leak, roundoff)
        rests, fires = low < threshold, high >= threshold
        after_low, after_high = _widened(
            torch.maximum(low, threshold) - threshold, high - threshold, roundoff
        )
        inf = torch.full_like(low, torch.inf)
        v_low = torch.minimum(torch.where(rests, low, inf), torch.where(fires, after_low, inf))
        v_high = torch.maximum(
            torch.where(rests, torch.minimum(high, threshold), -inf),
            torch.where(fires, after_high, -inf),
        )
        fewest, highest = fewest + ~rests, highest + fires
        rows.append(((~rests).to(low), fires.to(low), fewest, highest))
    return _stacked(rows)


def _charged(
    v_low: Tensor, v_high: Tensor, x_low: Tensor, x_high: Tensor, leak: float, roundoff: float
) -> Bounds:
    """leak·v + x."""
    if leak != 1:
        v_low, v_high = _widened(leak * v_low, leak * v_high, roundoff)
    return _widened(v_low + x_low, v_high + x_high, roundoff)


def _widened(low: Tensor, high: Tensor, roundoff: float) -> Bounds:
    """Rounding is monotone: a rounded value lies between the roundings of the bounds."""
    if not roundoff:
        return low, high
    return low - roundoff * low.abs() - UNDERFLOW, high + roundoff * high.abs() + UNDERFLOW


def _stacked(rows: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Bounds, Bounds]:
    low, high, fewest, highest = (torch.stack(column) for column in zip(*rows, strict=True))
    return (low, high), (fewest, highest)
