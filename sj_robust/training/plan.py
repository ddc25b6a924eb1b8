"""What each step of a run does, as pure functions of the step: batches, seeds, validations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_robust.data import Augmentation, ImageDataset, batches, steps_per_epoch
from sj_robust.training.config import TrainConfig


def augmentation(config: TrainConfig) -> Augmentation | None:
    """What `config.augmentation` stands for."""
    return {
        "none": None,
        "crop-flip": Augmentation(),
        "crop-flip-cutout": Augmentation(cutout=8),
        "resized-crop-flip": Augmentation(padding=0, scale=config.crop_scale or 0.08),
    }[config.augmentation]


@dataclass(frozen=True)
class Plan:
    """The schedule of a run over `train`, selected on `held_out`; steps count from 0 over all
    epochs, `total` in all."""

    train: ImageDataset
    held_out: ImageDataset
    config: TrainConfig
    per_epoch: int
    total: int

    @staticmethod
    def make(dataset: ImageDataset, config: TrainConfig) -> Plan:
        """Hold out `config.validation` images of `dataset`, stratified and seeded; train on the
        rest, whole batches only."""
        train, held_out = dataset.split_off(config.validation, config.seed)
        per_epoch = steps_per_epoch(train, config.batch_size)
        return Plan(train, held_out, config, per_epoch, max(1, round(config.epochs * per_epoch)))

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.per_epoch

    def validates(self, step: int) -> bool:
        """Whether the model is validated after `step` steps; always after the last."""
        return step == self.total or (
            step > 0 and step % max(1, round(self.config.validate_every * self.per_epoch)) == 0
        )

    def batches(
        self, start: int, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(indices, x, y) of step `start`, `start`+1, … without end, for `device`."""
        epoch, step = divmod(start, self.per_epoch)
        while True:
            yield from batches(
                self.train,
                self.config.batch_size,
                seed=self.config.seed,
                epoch=epoch,
                augment=augmentation(self.config),
                start=step,
                device=device,
            )
            epoch, step = epoch + 1, 0

    def seed(self, step: int) -> int:
        """The seed of all noise in `step`: attack starts, dropout."""
        return (self.config.seed * 0x9E3779B1 + step) % 2**63
