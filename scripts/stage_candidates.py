"""What candidates for the next stage of a protocol break of the images that the stages before it
leave, and at what cost: how `strong` was put together.

    python scripts/stage_candidates.py resnet20-snn-t4.cifar10_linf_pgd --data cifar10 --eps 2/255
        --transfer resnet20.cifar10_linf_pgd --first 1000 --images 600
        --before pgd10@PCW:1 pgd10@ASSG rotating50! square1000!
        --then square4000! rotating30+square1000x4 'rotating30+square250x6 > square2500!'

ATTACK@VIEW goes through one view, those with `rotating` through the views of `strong` and the other
model. A ! starts from each image's best so far, xN makes N attempts, A > B is B after A. --state
keeps what the stages before left, for another call with other candidates. Use images that no card
measures.
"""

from __future__ import annotations

import argparse
import sys
import time
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sj_robust import load
from sj_robust.attack import Attack, GradientView, Sources, parse_attack
from sj_robust.attack.base import Best
from sj_robust.budget import radius
from sj_robust.data import load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.protocol import find_protocol
from sj_robust.evaluation.words import TRANSFER
from sj_robust.model import SpikingModel

BATCH = 64


class Candidates:
    """Attacks by their words on images x [N, C, H, W] with labels y, which `ids` name."""

    def __init__(
        self, model: nn.Module, other: nn.Module, x: Tensor, y: Tensor, ids: Tensor
    ) -> None:
        self.model, self.x, self.y, self.ids = model, x, y, ids
        turns = next(
            stage.views for stage in find_protocol("strong").stages if len(stage.views) > 2
        )
        self.turns = Sources(
            model, [other if view == TRANSFER else self.seen(view) for view in turns]
        )

    def seen(self, view: str) -> nn.Module:
        return (
            GradientView(self.model, view) if isinstance(self.model, SpikingModel) else self.model
        )

    def tried(self, words: str, eps: float, at: Tensor, x_adv: Tensor) -> Tensor:
        """What attacks in a row make of the images `at` [n], of which x_adv [n, C, H, W] are the
        best so far."""
        for part in words.split(">"):
            name, _, view = part.strip().partition("@")
            name, goes_on = name.rstrip("!"), name.endswith("!")
            name, _, attempts = name.partition("x")
            attack: Attack = replace(parse_attack(name, eps), restarts=int(attempts or 1))
            several = attack.many_sources
            model = self.turns if several else self.seen(view) if view else self.model
            start = x_adv if goes_on else None
            x_adv = attack(model, self.x[at], self.y[at], ids=self.ids[at], start=start)
        return x_adv

    def improve(self, best: Best, words: str, eps: float) -> str:
        """Offer `best` what they find of the images that stand: a row of the table."""
        standing, begun = best.standing, time.monotonic()
        for at in standing.split(BATCH):
            best.offer(self.tried(words, eps, at, best.x_adv[at]), at=at)
        broke = len(standing) - len(best.standing)
        return f"{words} | {broke} | {len(standing)} | {time.monotonic() - begun:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--transfer", required=True, help="the model whose gradients take a turn")
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--first", type=int, default=1000, help="index of the first test image")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--before", nargs="*", default=["pgd10@PCW:1", "pgd10@ASSG"])
    parser.add_argument("--then", nargs="+", required=True)
    parser.add_argument("--state", type=Path, help="where to keep what the stages before left")
    options = parser.parse_args()
    try:
        dataset = load_dataset(options.data, "test")
        ids = torch.arange(options.first, options.first + options.images)
        x, y, eps = dataset.floats(ids), dataset.labels[ids], radius(options.eps, "linf")
        model, other = load(options.checkpoint).eval(), load(options.transfer).eval()
        candidates, best = Candidates(model, other, x, y, ids), Best(model, x, y, targeted=False)
        last = options.first + options.images - 1
        print(f"{options.checkpoint}, test images {options.first} to {last}, eps {options.eps}\n")
        print("| attack | broke | of | seconds |\n| --- | --- | --- | --- |")
        if options.state and options.state.exists():
            best.x_adv, best.margin = torch.load(options.state)
        else:
            for at in torch.arange(len(x)).split(BATCH):
                best.offer(x[at], at=at)
            for words in options.before:
                print(f"| {candidates.improve(best, words, eps)}", flush=True)
            if options.state:
                torch.save((best.x_adv, best.margin), options.state)
        for words in options.then:
            trial = copy(best)  # each goes on from what the stages before left
            trial.x_adv, trial.margin = best.x_adv.clone(), best.margin.clone()
            print(f"| then {candidates.improve(trial, words, eps)}", flush=True)
    except (SJRobustError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
