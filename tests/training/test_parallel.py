"""Batch norm over several processes, in float64 against one batch norm of all images; real
processes are in test_distributed.py."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from sj_robust.distributed import Team
from sj_robust.training.parallel import synchronised


@dataclass
class Table:
    """Where the members of a team of threads put what they add up."""

    count: int
    barrier: threading.Barrier = field(init=False)
    tensors: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count, timeout=60)


@dataclass(frozen=True)
class Member(Team):
    table: Table | None = None

    def total(self, tensor: Tensor) -> Tensor:
        assert self.table is not None
        self.table.tensors[self.rank] = tensor.clone()
        self.table.barrier.wait()
        tensor.copy_(torch.stack([self.table.tensors[rank] for rank in range(self.count)]).sum(0))
        self.table.barrier.wait()
        return tensor


def step(norm: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Output, and the gradients by the input and by what is learned, of a loss that no symmetry
    makes small."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (weights * y.sin()).sum().backward()
    assert x.grad is not None
    return [
        y.detach(),
        x.grad,
        *(parameter.grad for parameter in norm.parameters() if parameter.grad is not None),
    ]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5, 3)])
def test_it_is_one_batch_norm_of_all_images(
    count: int, affine: bool, shape: tuple[int, ...]
) -> None:
    random = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    x[:, 1] = 0.25  # a channel without any spread, as a dead layer's

    def norm() -> nn.Module:
        made = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4, affine=affine).double()
        for name, parameter in made.named_parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        return made

    table, norms, whole = Table(count), [norm() for _ in range(count)], norm()

    def share(rank: int) -> list[Tensor]:
        rows = slice(rank * 6 // count, (rank + 1) * 6 // count)
        with synchronised(Member(rank, count, table=table)):
            return step(norms[rank], x[rows], weights[rows])

    with ThreadPoolExecutor(count) as pool:
        shares = list(pool.map(share, range(count)))
    output, gradient, *learned = step(whole, x, weights)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(torch.cat([found[0] for found in shares]), output, **close)
    torch.testing.assert_close(torch.cat([found[1] for found in shares]), gradient, **close)
    for place, expected in enumerate(learned, start=2):
        torch.testing.assert_close(
            torch.stack([found[place] for found in shares]).sum(0), expected, **close
        )
    for one in norms:
        torch.testing.assert_close(one.state_dict(), whole.state_dict(), **close)


def test_in_eval_mode_every_process_uses_its_running_statistics() -> None:
    norm, x = nn.BatchNorm2d(3).eval(), torch.rand(2, 3, 4, 4)
    with synchronised(Member(0, 2)):  # which could not add anything up
        assert torch.equal(norm(x), nn.BatchNorm2d(3).eval()(x))
