"""model.safetensors: tensors to bytes, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from sj_robust.checkpoint.build import not_finite
from sj_robust.checkpoint.config import CONFIG, WEIGHTS, Config
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.facts import state_sha256
from sj_robust.phrases import few


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of model.safetensors: numbers as float16 where that holds every one of them
    exactly, which takes half the bytes. Where some are float16 by themselves, all stay as they
    are: nothing in the file tells the two apart."""
    floats = {key: tensor for key, tensor in tensors.items() if tensor.dtype == torch.float32}
    halves = {key: tensor.half() for key, tensor in floats.items()}
    exact = all(torch.equal(halves[key].float(), tensor) for key, tensor in floats.items())
    own = any(tensor.dtype == torch.float16 for tensor in tensors.values())
    stored = {**tensors, **halves} if exact and not own else dict(tensors)
    return safetensors.torch.save(stored, metadata={"format": "pt"})


def read_tensors(path: Path, config: Config) -> dict[str, Tensor]:
    """The tensors of model.safetensors. Those of float16 as float32, unless the network that was
    saved had them.

    Raises:
        SJRobustError: size or hash are not the expected ones, or a value is not finite.
    """
    expected = config.weights
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size == expected.bytes else b""
    except OSError as error:
        raise SJRobustError(
            f"{path} cannot be read ({error.strerror}): a checkpoint folder needs {CONFIG} and"
            f" {WEIGHTS}"
        ) from None
    except MemoryError:
        raise SJRobustError(f"{path} has {size} bytes, for which there is no memory") from None
    if size != expected.bytes:
        raise SJRobustError(
            f"{path} has {size} bytes, config.json records {expected.bytes}: truncated or another"
            " file, get it again"
        )
    if (found := hashlib.sha256(content).hexdigest()) != expected.sha256:
        raise SJRobustError(
            f"{path} has sha256 {found[:12]}…, config.json records {expected.sha256[:12]}…: it was"
            " altered, get it again"
        )
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # a header may lie about anything
        raise SJRobustError(
            f"{path} is not a valid safetensors file ({error}): save or download the checkpoint"
            " again"
        ) from None
    if bad := not_finite(tensors):
        raise SJRobustError(
            f"{path} has NaN or infinite weights ({few(bad, 5, '; ')}), expected finite"
            " ones: do not use this checkpoint"
        )
    halves = {key: tensor for key, tensor in tensors.items() if tensor.dtype == torch.float16}
    if halves and state_sha256(as_state(tensors, config)) != expected.state_sha256:
        tensors |= {key: tensor.float() for key, tensor in halves.items()}
    return tensors


def as_state(tensors: Mapping[str, Tensor], config: Config) -> Mapping[str, Tensor]:
    """The stored tensors under the names of the classifier's own state."""
    if config.kind == "snn":
        return tensors
    return {f"backbone.{key}": tensor for key, tensor in tensors.items()}
