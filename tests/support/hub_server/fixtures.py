"""The fixture `hub` around the server, for all tests, and what goes with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hub import TestHub
from .store import Repository

ZOO = Path(__file__).resolve().parents[3] / "zoo" / "checkpoints"
SNN, ANN = ZOO / "resnet20-snn-t4.cifar10_linf_pgd", ZOO / "resnet20.cifar10_linf_pgd"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestHub]:
    """A running Hub that this process and its children ask instead of huggingface.co, as alice,
    with an empty cache."""
    from huggingface_hub import constants

    home = tmp_path / "hf"
    with TestHub() as server:
        server.store.tokens.update(hf_alice="alice", hf_bob="bob")
        server.store.organisations["alice"] = {"lab"}
        for key, value in {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_alice",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SJ_ROBUST_CACHE": str(tmp_path / "sj_robust"),
        }.items():
            monkeypatch.setenv(key, value)
        for key in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(key, raising=False)
        # huggingface_hub read its environment when it was imported, before this test; ENDPOINT
        # stays, our code passes its own
        for key, found in {
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DOWNLOAD_TIMEOUT": 1,
        }.items():
            monkeypatch.setattr(constants, key, found)
        yield server


def upload(hub: TestHub, folder: Path, name: str, **how: bool) -> Repository:
    """A repository that holds a checkpoint folder, without a client in between."""
    repository = hub.create(name, **how)
    repository.put(
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    )
    return repository


def child(code: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a process that runs `code` against the Hub of the test."""
    return [sys.executable, "-c", code], {**os.environ, "OMP_NUM_THREADS": "1", **environment}
