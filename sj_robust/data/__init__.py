"""Datasets by name or path, augmentation, and batches that depend on (seed, epoch, step) alone."""

from sj_robust.data.augment import Augmentation
from sj_robust.data.classes import in_order_of
from sj_robust.data.datasets import MEAN_STD, NAMES, ImageDataset, load_dataset
from sj_robust.data.foreign import as_dataset
from sj_robust.data.image import load_image
from sj_robust.data.loader import batches, calibration_batches, calibration_indices, steps_per_epoch

__all__ = [
    "MEAN_STD",
    "NAMES",
    "Augmentation",
    "ImageDataset",
    "as_dataset",
    "batches",
    "calibration_batches",
    "calibration_indices",
    "in_order_of",
    "load_dataset",
    "load_image",
    "steps_per_epoch",
]
