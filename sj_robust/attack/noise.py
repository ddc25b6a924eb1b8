"""Noise that belongs to an image: a pure function of (seed, image id, draw, element).

Global random state would make an image's noise depend on the batch it is in, on the order of the
batches and on the device. Here every element hashes its own counter with SplitMix64 (Steele, Lea &
Flood, OOPSLA 2014), in int64 arithmetic that wraps alike on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed 64-bit integer
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def uniform_like(x: Tensor, seed: int, ids: Tensor, draw: int = 0) -> Tensor:
    """Uniform noise in [0, 1), float32, of the shape and memory format of `x` [N, ...]; `ids` int64
    [N] names the images."""
    bits = _bits(x, seed, ids, draw)
    # 24 bits are what float32 holds exactly, so 1.0 is never reached by rounding.
    return _in_format_of(x, _shift_right(bits, 40).to(torch.float32) * 2.0**-24)


def signs_like(x: Tensor, seed: int, ids: Tensor, draw: int = 0) -> Tensor:
    """Random signs, −1 or +1 with equal probability (as sign(N(0, 1))), float32, shape and memory
    format of `x` [N, ...]."""
    bits = _bits(x, seed, ids, draw)
    return _in_format_of(x, _shift_right(bits, 63).to(torch.float32) * 2.0 - 1.0)


def normal_like(x: Tensor, seed: int, ids: Tensor, draw: int = 0) -> Tensor:
    """Standard normal noise, float32, of the shape and memory format of `x` [N, ...], by the
    inverse of the normal distribution."""
    # 52 bits, in the middle of their interval: never 0 or 1, and tails as far as 8 standard
    # deviations.
    uniform = (_shift_right(_bits(x, seed, ids, draw), 12).to(torch.float64) + 0.5) * 2.0**-52
    return _in_format_of(x, torch.special.ndtri(uniform).to(torch.float32))


def _bits(x: Tensor, seed: int, ids: Tensor, draw: int) -> Tensor:
    """64 hashed bits per element [N, ...]; elements are counted in logical (C, H, W) order,
    whatever the memory format."""
    image = ids.to(device=x.device, dtype=torch.int64)
    key = _mix(image + _signed(_hash(seed)))
    key = _mix(key + _signed(_hash(draw)))
    counter = (
        torch.arange(1, math.prod(x.shape[1:]) + 1, dtype=torch.int64, device=x.device) * _GOLDEN
    )
    return _mix(key[:, None] + counter).reshape(x.shape)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, count: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _hash(value: int) -> int:
    """SplitMix64's output for one counter, in Python integers."""
    mask = (1 << 64) - 1
    z = (value * (_GOLDEN & mask) + (_GOLDEN & mask)) & mask
    z = ((z ^ (z >> 30)) * (_MIX_1 & mask)) & mask
    z = ((z ^ (z >> 27)) * (_MIX_2 & mask)) & mask
    return z ^ (z >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _in_format_of(x: Tensor, noise: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32).copy_(noise)
