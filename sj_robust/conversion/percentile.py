"""An exact percentile of very many values, without sorting them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SAMPLE = 1 << 16


def percentile(x: Tensor, q: float, copies: int = 1) -> float:
    """The q-th percentile (0–100) of the values of `x` taken `copies` times: of n sorted values the
    one nearest to rank (n − 1)·q/100.

    A value of `x` itself, with no interpolation between ranks, as in the authors' code. Sorting 10⁸
    values would dominate a conversion: only those above a bound guessed from a sample are looked
    at. The guess is checked, so the result does not depend on it.
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)  # the order of values does not matter: flatten without a copy
    values = x.detach().reshape(-1)
    n = values.numel()
    index = round((n * copies - 1) * q / 100) // copies
    tail = values
    above = n - index  # how many values are at this rank or higher
    if n > 4 * _SAMPLE and above < n // 8:
        sample = values[:: n // _SAMPLE].sort().values
        # a bound that some 1.5 times as many values exceed as are needed, plus slack for small
        # counts
        position = len(sample) - 1 - math.ceil(1.5 * above * len(sample) / n) - 32
        if position > 0:
            candidates = values[values >= sample[position]]
            if candidates.numel() >= above:
                tail = candidates
    return float(tail.kthvalue(tail.numel() - above + 1).values.double())
