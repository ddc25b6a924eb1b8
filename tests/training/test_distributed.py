"""Several processes train as one: real ones, started by torchrun or by hand, over gloo on this
machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sj_robust.errors import SJRobustError
from sj_robust.training import train_ann
from sj_robust.training.state import load_state

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory) -> dict[str, Path]:
    """The shared cases by one process."""
    torch.set_num_threads(1)
    folders = {
        case: tmp_path_factory.mktemp("alone") / case for case in ("snn-shared", "ann-shared")
    }
    for case, folder in folders.items():
        toy.run_case(case, folder)
    return folders


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def numbers(folder: Path) -> list[dict[str, float | str]]:
    """The log without its timings."""
    return [
        {
            key: value
            for key, value in json.loads(line).items()
            if key not in ("seconds", "images_per_second")
        }
        for line in (folder / "log.jsonl").read_text().splitlines()
    ]


def same_up_to_rounding(one: Path, other: Path) -> None:
    """What was saved, and the whole loss curve."""
    (progress, groups), (twin, twins) = load_state(one), load_state(other)
    assert [(group, list(tensors)) for group, tensors in groups.items()] == [
        (group, list(tensors)) for group, tensors in twins.items()
    ]
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            tolerance = (
                {"rtol": 1e-5, "atol": 0.0} if "running" in name else {"rtol": 1e-3, "atol": 1e-5}
            )
            torch.testing.assert_close(
                tensor, twins[group][name], **tolerance, msg=f"{group}/{name}"
            )
    assert (progress.step, progress.validations, progress.best) == (
        twin.step,
        twin.validations,
        twin.best,
    )
    lines, others = numbers(one), numbers(other)
    assert len(lines) == len(others)
    for line, expected in zip(lines, others, strict=True):
        assert line.pop("event") == expected.pop("event")
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_two_processes_train_as_one_and_go_on_with_its_run(toy, tmp_path, alone):
    with pytest.raises(KeyboardInterrupt):
        # mart makes two passes in a step
        toy.run_case("ann-shared", tmp_path / "ann-shared", stop_at=2 * 3)
    stopped, _ = load_state(tmp_path / "ann-shared")
    assert stopped.step == 4
    process = start(
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        free_port(),
        TOY,
        tmp_path,
        "snn-shared",
        "ann-shared",
    )
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    for case, folder in alone.items():
        same_up_to_rounding(tmp_path / case, folder)


def test_a_killed_process_ends_the_others_and_one_alone_goes_on(toy, tmp_path, alone):
    port = free_port()
    first, second = (
        start(
            TOY,
            tmp_path,
            "snn-shared",
            "--kill",
            "1:5",
            RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    )
    _, messages = first.communicate(timeout=300)
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 1
    assert [
        line
        for line in messages.splitlines()
        if "another process has ended" in line and "resume" in line
    ], messages
    assert "Traceback" not in messages
    stopped, _ = load_state(tmp_path)
    assert stopped.step == 5
    toy.run_case("snn-shared", tmp_path, resume=True)
    same_up_to_rounding(tmp_path, alone["snn-shared"])


@pytest.mark.slow
def test_two_machines_train_as_one(toy, tmp_path, alone):
    """Two agents of one process each, meeting over the loopback."""
    port = free_port()
    agents = [
        start(
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--node-rank",
            str(rank),
            "--nproc-per-node",
            "1",
            "--master-addr",
            "127.0.0.1",
            "--master-port",
            port,
            TOY,
            tmp_path,
            "snn-shared",
        )
        for rank in range(2)
    ]
    messages = [agent.communicate(timeout=300)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], messages
    same_up_to_rounding(tmp_path, alone["snn-shared"])


@pytest.mark.slow
def test_the_command_under_torchrun_writes_one_checkpoint(tmp_path):
    """As a user starts it."""
    process = start(
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        free_port(),
        "-m",
        "sj_robust",
        "train-ann",
        "cifar_resnet20",
        "--data",
        "sample",
        "--epochs",
        "0.1",
        "--validation",
        "20",
        "--batch-size",
        "32",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "ann"),
    )
    output, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    assert output.splitlines() == [str(tmp_path / "ann")]
    assert (tmp_path / "ann" / "model.safetensors").is_file()


def test_a_batch_that_cannot_be_shared_equally_is_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        SJRobustError, match="batch_size=32 cannot be shared equally by 3 processes"
    ):
        train_ann(toy.ann(), toy.patterns(), toy.config(), tmp_path)
