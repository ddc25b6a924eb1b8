"""Runs that were killed, interrupted or tampered with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier
from sj_robust.training import train_ann
from sj_robust.training.state import load_state, save_state

STATE = "state.safetensors"
TIMING = ("seconds", "images_per_second")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without its timings; a line still being written is left out."""
    text = (folder / "log.jsonl").read_text() if (folder / "log.jsonl").exists() else ""
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMING}
        for line in text.split("\n")[:-1]
    ]


def start_and_signal(
    folder: Path, case: str, number: signal.Signals, after: int
) -> subprocess.Popen[str]:
    """Run the case in a process of its own and send it `number` once it has logged step `after`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("toy.py"), folder, case],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not any(line["step"] >= after for line in lines(folder)):
        time.sleep(0.002)
    process.send_signal(number)
    process.wait(timeout=600)
    return process


def same_outcome(one: Path, other: Path) -> None:
    """Everything that was saved, to the bit, and every line that was logged."""
    (progress, groups), (twin, twins) = load_state(one), load_state(other)
    assert groups.keys() == twins.keys()
    for group in groups:
        assert groups[group].keys() == twins[group].keys()
        for name, tensor in groups[group].items():
            assert torch.equal(tensor, twins[group][name]), f"{group}/{name}"
    assert progress.validations == twin.validations
    assert progress.best == twin.best
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory) -> dict[str, Path]:
    """The same cases run through in this process."""
    torch.set_num_threads(1)
    folders = {}
    for case in toy.CASES:
        folders[case] = tmp_path_factory.mktemp("uninterrupted") / case
        toy.run_case(case, folders[case])
    return folders


@pytest.mark.parametrize(
    ("case", "after"), [("ann-saved-each-step", 21), ("snn-saved-each-epoch", 13)]
)
def test_a_killed_run_resumes_to_the_same_bits(toy, tmp_path, uninterrupted, case, after):
    process = start_and_signal(tmp_path, case, signal.SIGKILL, after)
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    stopped, _ = load_state(tmp_path)
    assert 0 < stopped.step < stopped.total_steps
    if case == "snn-saved-each-epoch":  # the log ran ahead of the state: those lines must not stay
        assert stopped.step % 8 == 0
        assert len((tmp_path / "log.jsonl").read_bytes()) > stopped.log_bytes
    toy.run_case(case, tmp_path, resume=True)
    same_outcome(tmp_path, uninterrupted[case])


def test_ctrl_c_saves_and_the_run_goes_on(toy, tmp_path, uninterrupted):
    case = "snn-saved-each-epoch"
    process = start_and_signal(tmp_path, case, signal.SIGINT, 14)
    assert process.returncode == 130, process.stderr.read()
    assert process.stdout.read() == "interrupted\n"
    stopped, _ = load_state(tmp_path)
    assert 14 <= stopped.step < stopped.total_steps
    assert [line["step"] for line in lines(tmp_path) if line["event"] == "train"] == list(
        range(1, stopped.step + 1)
    )
    toy.run_case(case, tmp_path, resume=True)
    same_outcome(tmp_path, uninterrupted[case])


@pytest.mark.parametrize("moment", ["training", "validation"])
def test_an_interrupt_waits_for_a_whole_state(toy, tmp_path, moment):
    class Interrupting(NormalizedClassifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # training: in the forward pass of step 12; validation: in that after step 8, before any
            # attack (and not in the pass of one or two images before the training that shows what
            # the network takes)
            if (
                len(x) > 2
                and self.training == (moment == "training")
                and torch.is_grad_enabled() == self.training
            ):
                calls.append(0)
                if len(calls) == (13 if self.training else 2):
                    signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    calls: list[int] = []
    handler, config = signal.getsignal(signal.SIGINT), toy.config(epochs=3)
    train_ann(toy.ann(), toy.patterns(), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_ann(
            Interrupting(toy.ann().backbone, (0.5,) * 3, (0.25,) * 3),
            toy.patterns(),
            config,
            tmp_path / "cut",
        )
    assert signal.getsignal(signal.SIGINT) is handler
    stopped, _ = load_state(tmp_path / "cut")
    assert (stopped.step, len(stopped.validations)) == ((13, 1) if moment == "training" else (8, 0))
    train_ann(toy.ann(), toy.patterns(), config, tmp_path / "cut", resume=True)
    same_outcome(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_returns_at_once_with_its_weights(toy, tmp_path):
    model, other = toy.ann(), toy.ann(seed=3)
    result = train_ann(model, toy.patterns(), toy.config(epochs=1), tmp_path)
    before = (tmp_path / STATE).read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    again = train_ann(other, toy.patterns(), toy.config(epochs=1), tmp_path, resume=True)
    assert again == result
    assert before == ((tmp_path / STATE).read_bytes(), (tmp_path / "log.jsonl").read_bytes())
    assert not other.training
    assert all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items()
    )


def test_resume_without_a_state_starts(toy, tmp_path):
    assert (
        train_ann(
            toy.ann(), toy.patterns(), toy.config(epochs=0.5), tmp_path / "new", resume=True
        ).steps
        == 4
    )


@pytest.fixture
def finished(toy, tmp_path) -> Path:
    train_ann(toy.ann(), toy.patterns(), toy.config(epochs=0.5), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_never_overwritten_unasked(toy, finished):
    with pytest.raises(SJRobustError, match="--resume"):
        train_ann(toy.ann(), toy.patterns(), toy.config(epochs=0.5), finished)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.01), ("epochs", 1), ("method", "trades"), ("ema", 0.5), ("seed", 3), ("eps", 0.1)],
)
def test_a_changed_setting_is_named(toy, finished, field, value):
    with pytest.raises(SJRobustError, match=rf"cannot resume .*{field}="):
        train_ann(
            toy.ann(),
            toy.patterns(),
            toy.config(**{"epochs": 0.5, field: value}),
            finished,
            resume=True,
        )


def test_how_often_it_saves_may_change(toy, finished):
    train_ann(
        toy.ann(),
        toy.patterns(),
        toy.config(epochs=0.5, checkpoint_minutes=3),
        finished,
        resume=True,
    )


def test_other_data_and_other_networks_are_refused(toy, finished):
    with pytest.raises(SJRobustError, match="dataset"):
        train_ann(toy.ann(), toy.patterns(seed=1), toy.config(epochs=0.5), finished, resume=True)
    wider = toy.ann()
    wider.backbone[6] = torch.nn.Linear(32, 5)
    with pytest.raises(SJRobustError, match=r"another network .*backbone\.6"):
        train_ann(wider, toy.patterns(), toy.config(epochs=0.5), finished, resume=True)


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a state",
        lambda data: data[: len(data) // 2],
        lambda data: flip(data, len(data) - 1),
        lambda data: data.replace(b'\\"step\\":4', b'\\"step\\":3', 1),
        lambda data: data.replace(b"digest", b"digesx", 1),
    ],
    ids=["empty", "foreign", "cut", "flipped bit", "edited", "no digest"],
)
def test_a_damaged_state_is_a_clear_error(toy, finished, damage):
    path = finished / STATE
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(SJRobustError, match="damaged or from another version") as caught:
        train_ann(toy.ann(), toy.patterns(), toy.config(epochs=0.5), finished, resume=True)
    assert "\n" not in str(caught.value)


def test_the_state_is_plain_safetensors_with_batch_norm_buffers(finished):
    names = load_file(finished / STATE).keys()
    assert {
        "model/backbone.1.running_mean",
        "model/backbone.1.num_batches_tracked",
        "momentum/backbone.0.weight",
        "best/backbone.6.bias",
    } <= names
    assert [path.name for path in sorted(finished.iterdir())] == ["curves.png", "log.jsonl", STATE]


def test_curves_that_a_kill_after_the_last_state_left_out_are_drawn(toy, finished):
    (finished / "curves.png").unlink()
    train_ann(toy.ann(), toy.patterns(), toy.config(epochs=0.5), finished, resume=True)
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_s_signal_ends_the_process_once_the_state_is_saved(
    toy, tmp_path, uninterrupted, number
):
    case = "snn-saved-each-epoch"
    process = start_and_signal(tmp_path, case, number, 14)
    assert process.returncode == -number, process.stderr.read()  # nobody asked for another end
    stopped, _ = load_state(tmp_path)
    assert 14 <= stopped.step < stopped.total_steps
    toy.run_case(case, tmp_path, resume=True)
    same_outcome(tmp_path, uninterrupted[case])


def test_ctrl_c_twice_while_the_state_is_saved(toy, tmp_path, monkeypatch):
    def fsync(file: int) -> None:
        if calls == [13]:  # the first came in step 12, in the forward pass
            signal.raise_signal(signal.SIGINT)
        real(file)

    class Interrupting(NormalizedClassifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and torch.is_grad_enabled():
                calls[0] += 1
                if calls == [13]:
                    signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    calls, real = [0], os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        train_ann(
            Interrupting(toy.ann().backbone, (0.5,) * 3, (0.25,) * 3),
            toy.patterns(),
            toy.config(epochs=3),
            tmp_path,
        )
    assert load_state(tmp_path)[0].step == 13


def test_ctrl_c_while_the_last_curves_are_drawn_is_not_dropped(toy, tmp_path, monkeypatch):
    def savefig(figure: Figure, *args: object, **settings: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(figure, *args, **settings)

    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(KeyboardInterrupt):
        train_ann(toy.ann(), toy.patterns(), toy.config(epochs=1), tmp_path)
    assert load_state(tmp_path)[0].finished
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_full_disk_is_told_and_the_last_state_stays(finished):
    resource = pytest.importorskip("resource")
    progress, groups = load_state(finished)
    files, before = sorted(finished.iterdir()), (finished / STATE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(SJRobustError, match=r"state.safetensors cannot be written .*make room"):
            save_state(finished, progress, groups)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(finished.iterdir()) == files
    assert (finished / STATE).read_bytes() == before
