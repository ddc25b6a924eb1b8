"""What the exports share: the file, whole or not at all, what is said about it, and the image size
they are traced with."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_path, sha256
from sj_robust.model import NormalizedClassifier, SpikingJellyClassifier, expose
from sj_robust.model.unwrap import bare


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        nodes: how many of each kind its graph has.
        dt: the time step (in the file's unit of time) for which a NIR graph computes what the
            network does; None for other formats.
        input: what it takes.
        output: what it gives.
        not_included: what the network does and the file does not.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    nodes: Mapping[str, int]
    timesteps: int | None
    dt: float | None
    input: str
    output: str
    not_included: tuple[str, ...]

    def to_json(self) -> str:
        """All of it, as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def summary(self) -> str:
        """A few lines of text."""
        nodes = ", ".join(f"{count} {kind}" for kind, count in self.nodes.items())
        lines = [
            f"{self.file}  ({self.format}, {self.bytes} bytes, sha256 {self.sha256[:16]}…)",
            f"nodes   {nodes}",
        ]
        lines += [f"dt      {self.dt:g}"] if self.dt is not None else []
        lines += [
            f"input   {self.input}",
            f"output  {self.output}",
            *(f"not included: {what}" for what in self.not_included),
        ]
        return "\n".join(lines)


def described(path: str | os.PathLike[str], format: str, **facts: Any) -> Exported:
    """What is known of the file just written to `path`."""
    return Exported(
        file=str(path), format=format, bytes=Path(path).stat().st_size, sha256=sha256(path), **facts
    )


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block succeeds. SJRobustError where that
    cannot be written."""
    target = Path(path)
    if target.is_dir():
        raise SJRobustError(f"{target} is a folder: give the name of a file to write")
    try:
        with atomic_path(target) as temporary:
            yield temporary
    except OSError as error:
        raise SJRobustError(f"{target} cannot be written ({error.strerror or error})") from None


def needs(package: str, extra: str) -> Any:
    """The module `package`. SJRobustError that names the extra where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SJRobustError(
            f"this export needs {package} ({error}): pip install 'sj-robust[{extra}]'"
        ) from None


def classifier(model: nn.Module) -> NormalizedClassifier:
    """`model` itself, or what it wraps. SJRobustError unless it is a SpikingClassifier or
    NormalizedClassifier."""
    model = bare(expose(model))
    if not isinstance(model, NormalizedClassifier):
        expected = "a SpikingClassifier or NormalizedClassifier(network, mean, std)"
        raise SJRobustError(f"cannot export a {type(model).__name__}: expected {expected}")
    if isinstance(model, SpikingJellyClassifier):
        raise SJRobustError(
            "a network of SpikingJelly's own nodes is exported by SpikingJelly:"
            " spikingjelly.activation_based.nir_exchange"
        )
    return model


def image_size(model: NormalizedClassifier, size: Sequence[int] | None) -> tuple[int, int, int]:
    """[C,H,W] as given, else as the backbone's pretrained_cfg has it. SJRobustError where it is not
    known or does not fit."""
    known = size or (getattr(model.backbone, "pretrained_cfg", None) or {}).get("input_size")
    if known is None:
        raise SJRobustError(
            f"the image size of this {type(model.backbone).__name__} is not recorded: pass"
            " input_size=(C, H, W)"
        )
    channels = len(model.mean)
    if len(known) != 3 or min(known) < 1 or known[0] != channels:
        raise SJRobustError(f"input_size is {list(known)}: expected [{channels}, H, W]")
    return int(known[0]), int(known[1]), int(known[2])
