"""Ctrl-C, SIGTERM and SIGHUP at any moment: one line, the exit status, and nothing lost that was
known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sj_robust.benchmark import BenchReport

STATUS = {signal.SIGINT: 1, signal.SIGTERM: 143, signal.SIGHUP: 129}

# A network whose user sends signals from inside of threshold balancing, which runs it in threads.
BALANCED = """
import os, threading
from torch import nn

class Node(nn.ReLU):
    def forward(self, x):
        return super().forward(x)

class Network(nn.Sequential):
    def forward(self, x):
        if threading.current_thread() is not threading.main_thread():
            for number in os.environ["SIGNALS"].split():
                os.kill(os.getpid(), int(number))
        return super().forward(x)

def make():
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()]
    return Network(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""
TIMED = """
import os, sys, threading
from sj_robust.cli import main
threading.Timer(float(sys.argv.pop(1)), os.kill, (os.getpid(), int(sys.argv.pop(1)))).start()
main()
"""


def ended(process: subprocess.CompletedProcess[str], number: int) -> None:
    assert "Traceback" not in process.stderr
    assert process.returncode == STATUS[signal.Signals(number)], process.stderr
    assert process.stderr.count("\n") == 1
    assert (
        "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    ) in process.stderr


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGINT, signal.SIGINT)],
    ids=str,
)
def test_in_threshold_balancing(
    workplace: Path, environment: dict[str, str], tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    (tmp_path / "balanced.py").write_text(BALANCED, encoding="utf-8")
    command = [
        "convert",
        "--model",
        "balanced:make",
        "--data",
        workplace / "colours",
        "--batches",
        "4",
        "--batch-size",
        "4",
        "--out",
        "snn",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.2,0.2,0.2",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from sj_robust.cli import main; main()", *map(str, command)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=environment | {"SIGNALS": " ".join(str(int(number)) for number in numbers)},
    )
    ended(done, numbers[0])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "balanced.py"
    ]


@pytest.mark.parametrize(
    ("seconds", "number"),
    [(0.05, signal.SIGINT), (0.4, signal.SIGINT), (0.7, signal.SIGTERM), (1.2, signal.SIGINT)],
)
def test_while_it_imports(environment: dict[str, str], seconds: float, number: int) -> None:
    command = [sys.executable, "-c", TIMED, str(seconds), str(int(number)), "doctor"]
    ended(subprocess.run(command, text=True, capture_output=True, env=environment), number)


def test_a_signal_that_is_ignored_stays_so(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", TIMED, "0.1", str(int(signal.SIGHUP)), "list"]
    done = subprocess.run(
        ["nohup", *command],
        text=True,
        capture_output=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "resnet20" in done.stdout


@pytest.mark.slow
def test_a_stopped_benchmark_shows_and_writes_what_it_knows(
    environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    command = [
        "bench",
        "--timesteps",
        "2",
        "--batch-size",
        "2",
        "--repeats",
        "8",
        "--sides",
        "ann,torch",
        "--tasks",
        "train,pgd10",
    ]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from sj_robust.cli import main; main()",
            *command,
            "--out",
            str(out),
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("train  torch"):
            # as a terminal does, the benchmark's own processes too
            os.killpg(process.pid, signal.SIGINT)
            break
    table, rest = process.communicate()
    assert process.returncode == 1
    assert said[0].startswith("about ")
    assert "Traceback" not in rest
    assert rest.endswith("sj-robust: interrupted\n")
    assert "train" in table
    report = BenchReport.model_validate(json.loads(out.read_text(encoding="utf-8")))
    assert {
        (measured.side, len(measured.seconds))
        for measured in report.measurements
        if measured.task == "train"
    } == {("ann", 8), ("torch", 8)}


@pytest.mark.parametrize("number", STATUS, ids=str)
def test_during_an_import_within_the_work_nothing_is_left_half_written(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "late.py").write_text(
        f"import os\nos.kill(os.getpid(), {int(number)})\n", encoding="utf-8"
    )
    script = """
import os
from sj_robust.files import atomic_folder, atomic_path
from sj_robust.signals import ending_signals
with ending_signals(print), atomic_path("file") as file, atomic_folder("folder") as folder:
    for path in file, folder / "part":
        path.write_text("half")
    import late
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (STATUS[number], "")
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"late.py"}
