"""Random numbers that belong to an image."""

from __future__ import annotations

import zlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Draws:
    """One stream per image, seeded by (seed, corruption, severity, image id) alone. All numbers are
    float64."""

    def __init__(self, name: str, severity: int, seed: int, ids: list[int]) -> None:
        self._keys = [[seed, zlib.crc32(name.encode()), severity, number] for number in ids]

    @cached_property
    def _streams(self) -> list[np.random.Generator]:  # half of the corruptions draw nothing
        # The bit generator is named: NumPy may change which one is its default.
        return [np.random.Generator(np.random.PCG64(key)) for key in self._keys]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[N, *shape] in [low, high)."""
        return torch.from_numpy(
            np.stack([stream.uniform(low, high, shape) for stream in self._streams])
        )

    def normal(self, *shape: int) -> Tensor:
        """[N, *shape] of mean 0 and standard deviation 1."""
        return torch.from_numpy(
            np.stack([stream.standard_normal(shape) for stream in self._streams])
        )

    def poisson(self, rate: Tensor) -> Tensor:
        """Counts of the expected values `rate` [N, ...]."""
        pairs = zip(self._streams, rate.numpy(), strict=True)
        return torch.from_numpy(np.stack([stream.poisson(mean) for stream, mean in pairs])).double()
