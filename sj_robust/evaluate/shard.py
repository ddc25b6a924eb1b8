"""Several processes that share one evaluation, as torchrun or accelerate start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sj_robust.errors import SJRobustError

_PATIENCE = timedelta(hours=12)  # one process may have the hard images


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def mine(self, total: int) -> Tensor:
        """The images of this process among `total`, bool: every count-th, so that each has its share of hard ones."""
        return torch.arange(total) % self.count == self.rank

    def gather(self, thing: Any) -> list[Any]:
        """What every process passed here, in order of rank. Raises SJRobustError where another process has ended."""
        if self.count == 1:
            return [thing]
        found: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(found, thing)
        except RuntimeError as error:
            raise SJRobustError("another process of this evaluation has ended: start it again, with a journal (--out or --record) it "
                                f"goes on where it stopped ({str(error).splitlines()[0]})") from error
        return found


def rank() -> int:
    """This process's rank by the environment, 0 where there is one process."""
    return int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


@contextmanager
def processes() -> Iterator[Shard]:
    """The shard of this process, by the environment that torchrun sets; joined by gloo for the block, unless they are joined already."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Shard()
        return
    joined = dist.is_initialized()
    if not joined:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Shard(dist.get_rank(), dist.get_world_size())
    finally:
        if not joined:
            dist.destroy_process_group()
