"""Several processes that share one piece of work, as torchrun or accelerate start them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sj_robust.errors import SJRobustError, first_line

Thing = TypeVar("Thing")

_LET_GO = 0.2  # seconds in which gloo's threads drop what they held
_groups = itertools.count()
_pooled: ContextVar[int] = ContextVar("pooled", default=1)


@dataclass(frozen=True)
class Team:
    """Process `rank` of `count`. Alone, every method gives back what it was given.

    Each method is called by all processes in the same order, and raises SJRobustError with `advice`
    where another one has ended.
    """

    rank: int = 0
    count: int = 1
    advice: str = "start it again"

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def mine(self, total: int) -> Tensor:
        """The images of this process among `total`, bool: every count-th, so that each has its
        share of hard ones."""
        return torch.arange(total) % self.count == self.rank

    def share(self, batch: Tensor) -> Tensor:
        """The rows of this process among those of `batch`, whose number is a multiple of
        `count`."""
        rows = len(batch) // self.count
        return batch[self.rank * rows : (self.rank + 1) * rows]

    def gather(self, thing: Thing) -> list[Thing]:
        """What every process passed here, in order of rank."""
        if self.count == 1:
            return [thing]
        found: list[Any] = [None] * self.count
        with self._together():
            dist.all_gather_object(found, thing)
        return found

    def from_first(self, thing: Thing) -> Thing:
        """What the first process passed here."""
        if self.count == 1:
            return thing
        found = [thing]
        with self._together():
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def after_first(self, work: Callable[[], Thing]) -> Thing:
        """`work()` by the first process, and only then by the others, which find what it left in
        the caches and on disk."""
        if self.first:
            done = work()
        self.from_first(None)
        return done if self.first else work()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, written into `tensor` (contiguous)."""
        if self.count > 1:
            with self._together():
                dist.all_reduce(tensor)
        return tensor

    def totals(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        return self.total(torch.tensor(numbers, dtype=torch.float64)).tolist()  # type: ignore[no-any-return]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors` (of one device) by its mean over all processes, in one
        transfer."""
        if self.count == 1:
            return
        flat = self.total(
            torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors])
        ).div_(self.count)
        for tensor, mean in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.detach().copy_(mean.view(tensor.shape))

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise SJRobustError(
                f"another process has ended or does not answer: {self.advice} ({first_line(error)})"
            ) from error


ALONE = Team()


def process_count() -> int:
    """How many processes there are by the environment."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's rank by the environment, 0 where there is one process."""
    return int(os.environ.get("RANK", 0)) if process_count() > 1 else 0


def own_device(device: torch.device) -> torch.device:
    """`device`; for "cuda" without a number in one of several processes, the one that is this
    process's by the environment."""
    if device.type != "cuda" or device.index is not None or process_count() == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def first_to_fail() -> bool:
    """Whether no other process has called this before: the one that names the failure which ends
    them all. True where none can be asked."""
    joined = (
        _meeting_point.cache_info().currsize
        or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    )
    return _word_taken() if process_count() > 1 and joined else True


@cache
def _word_taken() -> bool:
    try:
        store = _meeting_point()[0]
        store.set_timeout(timedelta(seconds=10))
        return store.add("sj_robust/failed", 1) == 1  # type: ignore[no-any-return]
    except (RuntimeError, ValueError):  # the process that held the store has ended
        return True


@contextmanager
def processes(
    patience: timedelta, advice: str, device: torch.device | None = None
) -> Iterator[Team]:
    """The team of this process, by the environment that torchrun sets; joined for the block, unless
    they are joined already.

    One that waits longer than `patience` for another gives up. gloo carries tensors of the CPU,
    NCCL those of a CUDA `device`.
    """
    if process_count() == 1:
        yield ALONE
        return
    joined = dist.is_initialized()
    if not joined:
        cuda = device is not None and device.type == "cuda"
        try:
            store, own, count = _meeting_point()
            store.set_timeout(patience)
            # a name of its own for each group: else one process may find in the store what another
            # left there for an earlier group
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                timeout=patience,
                rank=own,
                world_size=count,
                store=dist.PrefixStore(f"sj_robust/{next(_groups)}", store),
            )
        except (RuntimeError, ValueError) as error:
            raise SJRobustError(
                "WORLD_SIZE says that there are several processes, but they cannot be joined:"
                f" start them with torchrun ({first_line(error)})"
            ) from error
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), advice)
    except BaseException:
        first_to_fail()  # asked before the others notice that this process has left
        raise
    finally:
        if not joined:
            # torch before 2.8 waits here for gloo's threads with the GIL in its hand, which one of
            # them may want for the tensor of what it did last: without end (pytorch #154976)
            time.sleep(_LET_GO)
            dist.destroy_process_group()


@contextmanager
def pooled(team: Team) -> Iterator[None]:
    """Say, for the block, that batch norms pool the batches of the whole team."""
    token = _pooled.set(team.count)
    try:
        yield
    finally:
        _pooled.reset(token)


def pooled_batches() -> int:
    """How many processes' batches a batch norm in training mode sees as one: 1, but for a training
    on several processes."""
    return _pooled.get()


@cache
def _meeting_point() -> tuple[dist.Store, int, int]:
    """The store by which the processes find each other, this one's rank and their number; one for
    the life of the process."""
    return next(rendezvous("env://"))  # type: ignore[no-any-return, no-untyped-call]
