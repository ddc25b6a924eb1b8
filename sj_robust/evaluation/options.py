"""The settings of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sj_robust.attack import Norm
from sj_robust.budget import Radius
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.grid import Grid
from sj_robust.evaluation.protocol import AttackMaker, Protocol
from sj_robust.evaluation.report import Report
from sj_robust.evaluation.settings import EvaluationSettings
from sj_robust.files import check_file
from sj_robust.neuron import View


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an evaluation was asked for; `evaluate` says what each field means."""

    protocol: str | Protocol | None
    eps: Radius | Sequence[Radius]
    attacks: Sequence[AttackMaker] | None
    views: Sequence[View | str] | None
    transfer: Mapping[str, nn.Module]
    norm: Norm
    grid: Grid | None
    restarts: int
    survivors_only: bool
    check_images: int
    roughness_images: int
    max_images: int | None
    time_limit: float | None
    batch_size: int
    seed: int
    journal: str | os.PathLike[str] | None
    extend: Report | None
    adversarial: str | os.PathLike[str] | None
    device: str | torch.device | None
    show_progress: bool | None

    def check(self) -> None:
        """Raise SJRobustError for a number out of range, or a journal that could not be written."""
        if self.journal is not None:
            check_file(self.journal)
        for name in ("batch_size", "restarts", "check_images", "roughness_images"):
            rules = EvaluationSettings.model_fields[name].metadata
            least = next(rule.ge for rule in rules if hasattr(rule, "ge"))
            if (value := getattr(self, name)) < least:
                raise SJRobustError(f"{name} is {value}: expected at least {least}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise SJRobustError(
                f"time_limit is {self.time_limit}: expected more than 0 seconds, "
                "or None for no limit"
            )
