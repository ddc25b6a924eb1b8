"""Operations of every layer of a network, counted as torch dispatches them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from spikingjelly.activation_based.op_counter import BaseCounter, SynOpCounter, is_binary_tensor
from torch import Tensor

from sj_robust.evaluation.spike_counts import SpikeCounts

_aten = torch.ops.aten


@dataclass
class Tally:
    """Of one layer, over all images: ACs if its inputs are made of spikes; all products, those with
    a padded zero; its inputs, and the spikes in them."""

    acs: int = 0
    products: int = 0
    padding: int = 0
    inputs: int = 0
    spikes: int = 0
    analogue: bool = False  # some input was made of something else
    summed: bool = False  # some input was a sum or mean of spikes


class LayerCounter(BaseCounter):
    """By layer, ACs from the spikes that its inputs are made of, exact at borders and strides too;
    MACs by shape.

    SpikingJelly's MACCounter is not used: it decides batch by batch whether a layer is spiking, and
    takes an input or a weight that is 0 throughout for spikes. Here one input that is no sum of
    spikes makes a layer analogue for good, whatever the batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = frozenset(SynOpCounter().rules)
        self.counts = SpikeCounts()
        self.rules = dict.fromkeys({*self.products, *SpikeCounts.operations})
        self.tallies: dict[str, Tally] = defaultdict(Tally)

    def count(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        out: Any,
        active_modules: Any = None,
        parent_names: Any = None,
    ) -> int:
        if func not in self.products:
            self.counts.follow(func, args, kwargs, out)
            return 0
        # the innermost module: its path is the longest
        tally = self.tallies[max(parent_names - {"Global"}, key=len)]
        at = 1 if func in (_aten.addmm.default, _aten.baddbmm.default) else 0
        x, spikes = args[at], self.counts.of(args[at])
        acs = 0 if spikes is None else _additions(func, spikes, args[at + 1], args)
        tally.acs += acs
        tally.inputs += x.numel()
        tally.analogue = tally.analogue or spikes is None
        if spikes is not None:
            tally.spikes += int(spikes.sum(dtype=torch.float64))
            tally.summed = tally.summed or not is_binary_tensor(x)
        if func is _aten.convolution.default:
            weight, transposed = args[1], args[6]
            products = (x if transposed else out).numel() * prod(weight.shape[1:])
            tally.padding += 0 if transposed else products - _inside(x, weight, out, args[3:6])
        else:
            products = out.numel() * x.shape[-1]
        tally.products += products
        return acs


def _additions(func: Any, spikes: Tensor, weight: Tensor, args: Any) -> int:
    """Weights that so many `spikes` at each input of a product add."""
    if func is _aten.convolution.default:
        ones = torch.ones_like(weight, dtype=torch.float64)
        return int(func(spikes.double(), ones, None, *args[3:]).sum())
    return int(spikes.sum(dtype=torch.float64)) * weight.shape[-1]


def _inside(x: Tensor, weight: Tensor, out: Tensor, geometry: Any) -> int:
    """Products of a convolution (stride, padding, dilation) without those of padded zeros: along
    each axis, outputs and taps that meet."""
    pairs = len(x) * out.shape[1] * weight.shape[1]
    for size, outputs, taps, stride, padding, dilation in zip(
        x.shape[2:], out.shape[2:], weight.shape[2:], *geometry, strict=True
    ):
        at = torch.arange(outputs)[:, None] * stride - padding + torch.arange(taps) * dilation
        pairs *= int(((at >= 0) & (at < size)).sum())
    return pairs
