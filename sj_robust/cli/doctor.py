"""doctor: what is installed here and what it can do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from sj_robust.cli.common import Json, command, print_json, show
from sj_robust.errors import SJRobustError
from sj_robust.masking import masked

PACKAGES = (
    "sj-robust",
    "torch",
    "torchvision",
    "timm",
    "spikingjelly",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "pyautoattack",
    "pyarrow",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nir",
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "doctor", "sj-robust doctor --json")(doctor)


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, neuron backends, zoo, caches, and whether the Hub answers and as
    whom: what a bug report needs.

    It never shows a token, and never fails: what cannot be found out is said in its line.
    """
    facts = json.loads(masked(json.dumps(_facts())))
    if as_json:
        print_json(facts)
        return
    flat = {
        **{key: value for key, value in facts.items() if key != "packages"},
        **facts["packages"],
    }
    width = max(map(len, flat))
    for key, value in flat.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        show(f"{key:<{width}}  {'not installed' if shown is None else shown}")


def _facts() -> dict[str, Any]:
    import torch
    from huggingface_hub import constants

    from sj_robust.files import cache_folder, zoo_root
    from sj_robust.hub.search import identity
    from sj_robust.neuron.compiler import cpu_kernel_status
    from sj_robust.neuron.cupy_backend import cupy_status

    hub = identity()
    devices = [
        "cpu",
        *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())),
    ]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "not in this torch",
        "devices": devices,
        "neuron backend torch": "always there",
        "neuron backend cpu": cpu_kernel_status(),
        "neuron backend cupy": cupy_status(),
        "zoo": _place(zoo_root),
        "cache": _place(lambda: cache_folder(make=False)),
        "hub cache": _place(lambda: Path(constants.HF_HUB_CACHE)),
        "hub": hub["state"]
        if hub["endpoint"] in hub["state"]
        else ": ".join((hub["endpoint"], hub["state"])),
        "hub login": hub["login"],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _place(folder: Callable[[], Path]) -> str:
    """A folder, and whether it is there and can be written to."""
    try:
        path = folder()
    except (SJRobustError, RuntimeError) as error:
        return f"none: {error}"
    if not path.is_dir():
        return f"{path} (not there yet)"
    return str(path) if os.access(path, os.W_OK) else f"{path} (read only)"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
