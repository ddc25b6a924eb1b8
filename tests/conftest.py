"""What a test needs that a machine may lack: such a test is skipped with the reason."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest_plugins = ["hub_server.fixtures"]  # found through pythonpath in pyproject.toml

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure() -> None:
    # under nohup the processes that tests start would ignore what is sent to end them
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    if item.get_closest_marker("network") and not os.environ.get("SJ_ROBUST_NETWORK"):
        pytest.skip("set SJ_ROBUST_NETWORK=1 to run the tests that need the network")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
