"""The state of a training run as one safetensors file: tensors, and everything else as JSON in the
header. No pickle."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sj_robust.errors import SJRobustError, first_line
from sj_robust.files import atomic_path
from sj_robust.training.config import FREE_FIELDS, Kind, TrainConfig

STATE_FILE = "state.safetensors"


class Validation(BaseModel):
    """Accuracies on the held-out training images after `step` steps.

    Attributes:
        robust: under PGD at the training eps (None: not attacked); certified there, with ibp.
    """

    step: int
    clean: float
    robust: float | None = None

    @property
    def score(self) -> tuple[float, float]:
        """What selects the best step: robust accuracy, then clean accuracy."""
        return (self.clean if self.robust is None else self.robust, self.clean)


class Progress(BaseModel):
    """Where a run stands. Together with the tensors this continues it bit for bit: data order,
    augmentation, attack noise and dropout are functions of (seed, step), so that no generator state
    is needed."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    kind: Kind
    config: TrainConfig
    fingerprint: str
    total_steps: int
    step: int = 0
    validations: list[Validation] = []
    best: Validation | None = None
    seconds: float = 0
    training_seconds: float = 0
    log_bytes: int = 0
    window: dict[str, float] = {}  # sums of the facts since the last log line
    window_steps: int = 0
    scaler: dict[str, int | float] = {}  # of the loss, in fp16

    @property
    def validated(self) -> bool:
        return bool(self.validations) and self.validations[-1].step == self.step

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps and self.validated

    @property
    def images_per_second(self) -> float:
        """Training images over the seconds of training steps alone."""
        return (
            self.step * self.config.batch_size / self.training_seconds
            if self.training_seconds
            else 0.0
        )

    def add(self, result: Validation) -> bool:
        """Note a validation; whether it is the best yet (of equals the later: it was trained
        longer)."""
        self.validations.append(result)
        if self.best and result.score < self.best.score:
            return False
        self.best = result
        return True

    def collect(self, facts: dict[str, float]) -> None:
        """Add one step's numbers to those awaiting a log line."""
        self.window = {name: self.window.get(name, 0.0) + value for name, value in facts.items()}
        self.window_steps += 1

    def means(self) -> dict[str, float]:
        """Means of the numbers collected since the last call."""
        means = {name: total / self.window_steps for name, total in self.window.items()}
        self.window, self.window_steps = {}, 0
        return means


Groups = dict[str, dict[str, Tensor]]  # "model", "momentum", "ema", "best" → tensors by name


def save_state(folder: Path, progress: Progress, groups: Groups) -> None:
    """Write the state atomically: whatever happens meanwhile, the old or the new one is there,
    whole.

    Raises SJRobustError where a weight is not finite: such a state must not replace the last good
    one.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    broken = next(
        (name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None
    )
    if broken:
        raise SJRobustError(
            f"training diverged: {broken} is not finite after step {progress.step}; the state in"
            f" {folder} is the last good one. Lower lr and start again in another folder"
        )
    text = progress.model_dump_json()
    metadata = {"progress": text, "digest": _digest(text, tensors)}
    try:
        with atomic_path(folder / STATE_FILE) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except SafetensorError as error:  # in place of an OSError
        raise SJRobustError(
            f"{folder / STATE_FILE} cannot be written ({first_line(error)}): make room, and resume"
            " from the last state saved there"
        ) from error


def load_state(folder: Path) -> tuple[Progress, Groups]:
    """Read what `save_state` wrote. Raises SJRobustError where the file is damaged or of another
    version."""
    path = folder / STATE_FILE
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict, not iterable)
        text, digest = header["progress"], header["digest"]
        if digest != _digest(text, tensors):
            raise ValueError("its content does not match its checksum")
        progress = Progress.model_validate_json(text)
    except (SafetensorError, KeyError, ValueError, ValidationError, OSError) as error:
        reason = first_line(error)
        raise SJRobustError(
            f"cannot resume: {path} is damaged or from another version ({reason}); "
            "delete it to start this run again"
        ) from error
    groups: Groups = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    return progress, groups


def check_same_run(saved: Progress, wanted: Progress, folder: Path) -> None:
    """Raise SJRobustError naming the first thing in which the run in `folder` differs from the one
    asked for."""

    def differ(what: str, old: Any, new: Any) -> None:
        if old != new:
            raise SJRobustError(
                f"cannot resume {folder}: it was started with {what}={old}, now {what}={new}; "
                "use the same value or another folder"
            )

    differ("kind", saved.kind, wanted.kind)
    for field in TrainConfig.model_fields:
        if field not in FREE_FIELDS:
            differ(field, getattr(saved.config, field), getattr(wanted.config, field))
    differ("dataset", saved.fingerprint[:12], wanted.fingerprint[:12])
    differ("total steps", saved.total_steps, wanted.total_steps)


def restore(current: dict[str, Tensor], saved: dict[str, Tensor], folder: Path) -> None:
    """Copy `saved` into `current` in place (which keeps memory formats). Raises SJRobustError where
    they are not the same network's."""
    if {name: t.shape for name, t in current.items()} != {
        name: t.shape for name, t in saved.items()
    }:
        odd = sorted(current.keys() ^ saved.keys()) or [
            name for name in current if current[name].shape != saved[name].shape
        ]
        raise SJRobustError(
            f"cannot resume {folder}: its state is of another network (first difference: {odd[0]});"
            " use another folder"
        )
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(saved[name])


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds the state of a run."""
    return (Path(folder) / STATE_FILE).exists()


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    # safetensors checks its layout but not its bytes: a flipped bit would otherwise resume silently
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
