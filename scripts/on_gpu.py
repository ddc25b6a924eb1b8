"""Prove, time and use the project on a machine with a GPU and no network, in a few minutes.

    python scripts/on_gpu.py pack --data cifar10 --to .gpu     # here: what that machine lacks
    python3 scripts/on_gpu.py run --parts proof speed --carry .gpu/1 --out OUT --seconds 300
    python3 scripts/on_gpu.py run --parts train --carry .gpu/2 --out OUT --seconds 400

`pack` says which folder to carry along with which call. `run` is for the other machine, in the root
of the repository. What it unpacks and makes lies outside of it (--state) and is there for the next
call. Each task is a process with a time limit of its own; what it found is in OUT/report.md and
report.json as soon as it ends, whatever becomes of the others. OUT gets the checkpoints ann.tar and
snn.tar too, and while a training goes on its state, every 45 s: at most eight files of at most 15
MiB, larger ones in pieces (name.0, name.1, …). state.txt has the command that puts the state
together again, for which the same `run` goes on with the training.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("gpu")))
from jobs import ROOT, TASKS, Job, proof, speed, task

PIECE = 15 * 2**20  # bytes of a file in OUT at most
PATIENCE = 8.0  # seconds to save and end in, before a process is killed
COPY_EVERY = 45.0
AT_ONCE = min(5, os.cpu_count() or 1)  # tasks of the proof
OWN = f"cp{sys.version_info.major}{sys.version_info.minor}"
PARTS = ("proof", "speed", "train")


class Run:
    """What all tasks share: folders, the environment, the end, and the report."""

    def __init__(
        self, state: Path, out: Path, seconds: float, only: Sequence[str] | None = None
    ) -> None:
        self.only = only
        self.state, self.out, self.end = state, out, time.monotonic() + seconds
        self.jobs: list[Job] = []
        self.lock = threading.RLock()
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), str(state / "site"), os.environ.get("PYTHONPATH", "")]
            ),
            "PYTHONUNBUFFERED": "1",
            "SJ_ROBUST_CACHE": str(state / "cache"),
            "SJ_ROBUST_DATA": str(state / "data"),
            "HF_HUB_OFFLINE": "1",
        }
        for folder in (out, state / "parts", state / "logs", state / "results", state / "work"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def do(self, jobs: Sequence[Job], until: float = 1e9, at_once: int = 1) -> None:
        """Run `jobs` in order; none goes on past `until`, seconds from now, or the end."""
        end = min(self.end, time.monotonic() + until)
        jobs = [job for job in jobs if not self.only or job.name in self.only]
        self.jobs += jobs
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda job: self._kept(job, end, at_once), jobs))

    def _kept(self, job: Job, end: float, at_once: int) -> None:
        try:
            self._one(job, end, at_once)
        except Exception as error:  # of one task, or of its report: the others go on
            job.status = f"failed ({type(error).__name__}: {error})"

    def _one(self, job: Job, end: float, at_once: int) -> None:
        began, limit = time.monotonic(), min(job.limit, end - time.monotonic() - PATIENCE)
        if limit < 1:
            return self.report()
        result = self.state / "results" / f"{job.name}.json"
        result.unlink(missing_ok=True)
        known = {
            "{result}": str(result),
            "{result}.ann": f"{result}.ann",
            "{seconds}": f"{limit:.0f}",
        }
        command = [known.get(word, word) for word in job.command]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
        with open(self.state / "logs" / f"{job.name}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=threads | self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                job.status = "ok" if code == 0 else f"failed ({code})"
            except subprocess.TimeoutExpired:
                job.status = f"stopped at its limit of {limit:.0f} s"
                self._stop(process)
        job.seconds = round(time.monotonic() - began, 1)
        with suppress(OSError, ValueError):
            job.result = json.loads(result.read_text(encoding="utf-8"))
        if not job.result:
            job.result = {"last lines": self._tail(job)}
        self.report()

    @staticmethod
    def _stop(process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE - 1)

    def _tail(self, job: Job) -> list[str]:
        text = (self.state / "logs" / f"{job.name}.log").read_text(
            encoding="utf-8", errors="replace"
        )
        return [line for line in text.splitlines() if line.strip()][-24:]

    def report(self) -> None:
        """Write all that is known into OUT."""
        with self.lock:
            known = {
                job.name: {"status": job.status, "seconds": job.seconds, **job.result}
                for job in self.jobs
            }
            self.deliver("report.json", json.dumps(known, indent=1).encode())
            self.deliver("report.md", self.text().encode())
            logs = io.BytesIO()
            with zipfile.ZipFile(logs, "w", zipfile.ZIP_DEFLATED) as archive:
                for folder in ("logs", "results", "work"):
                    for file in sorted((self.state / folder).rglob("*")):
                        if (
                            file.suffix in (".log", ".json", ".jsonl", ".png")
                            and "probe" not in file.parts
                        ):
                            with suppress(OSError):  # a task that begins removes its result
                                archive.write(file, file.relative_to(self.state))
            self.deliver("logs.zip", logs.getvalue())

    def text(self) -> str:
        lines = [
            "| task | outcome | seconds | compared | failed |",
            "| --- | --- | --- | --- | --- |",
        ]
        for job in self.jobs:
            counts = f"{job.result.get('compared', '')} | {job.result.get('failed', '')}"
            lines.append(f"| {job.name} | {job.status} | {job.seconds} | {counts} |")
        for job in self.jobs:
            lines += ["", f"**{job.name}**"]
            for key, value in job.result.items():
                if key == "measurements":
                    lines += [f"- {_timed(entry)}" for entry in value]
                elif (
                    key not in ("compared", "equal", "failed", "settings", "versions")
                    and value is not None
                ):
                    lines.append(f"- {key}: {json.dumps(value, ensure_ascii=False)[:1500]}")
        return "\n".join(lines) + "\n"

    def deliver(self, name: str, content: bytes) -> None:
        """Into OUT as one file, or in pieces name.0, name.1, …"""
        with self.lock:
            self._deliver(name, content)

    def _deliver(self, name: str, content: bytes) -> None:
        pieces = [content[at : at + PIECE] for at in range(0, len(content), PIECE)] or [b""]
        names = [name] if len(pieces) == 1 else [f"{name}.{n}" for n in range(len(pieces))]
        for old in self.out.glob(f"{name}*"):
            if old.name not in names:
                old.unlink()
        for piece_name, piece in zip(names, pieces, strict=True):
            whole = self.out / f".{piece_name}"
            whole.write_bytes(piece)
            os.replace(whole, self.out / piece_name)

    def save_models(self) -> None:
        """Checkpoints that are done, and the state of the training that is not."""
        work = self.state / "work"
        for name in ("ann", "snn"):
            if (work / name / "config.json").is_file() and not list(self.out.glob(f"{name}.tar*")):
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w") as archive:
                    archive.add(work / name, name)
                self.deliver(f"{name}.tar", packed.getvalue())
        if (work / "snn" / "config.json").is_file():
            for old in self.out.glob("state*"):
                old.unlink()
            return
        states = [work / f"{name}.training" / "state.safetensors" for name in ("snn", "ann")]
        if state := next((path for path in states if path.is_file()), None):
            self.deliver("state", state.read_bytes())
            self.deliver("state.txt", f"cat state.? > {state}\n".encode())

    def save_models_often(self, done: threading.Event) -> None:
        while not done.wait(COPY_EVERY):
            with suppress(OSError):
                self.save_models()


def _timed(entry: dict[str, Any]) -> str:
    """A measurement of `sj-robust bench` in words."""
    seconds, unit, peak = median(entry["seconds"]), entry["unit_seconds"], entry["peak_bytes"]
    return (
        f"{entry['task']} {entry['side']}: {1000 * seconds:.1f} ms, {entry['images'] / seconds:.0f}"
        f" images/s, {seconds / unit if unit else float('nan'):.2f} × (T × ANN),"
        f" {(peak or 0) / 2**30:.2f} GiB"
    )


def run(arguments: argparse.Namespace) -> None:
    state: Path = arguments.state
    here = Run(state, arguments.out, arguments.seconds - 5, arguments.only)
    quick, device = arguments.quick, arguments.device
    new = [
        carried
        for folder in arguments.carry
        for carried in sorted(folder.rglob("*"))
        if carried.is_file()
    ]
    for file in new:
        if file.suffix == ".whl" and any(f"-{tag}-" in file.name for tag in ("py3", OWN)):
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(state / "site")
        elif file.suffix == ".zip":
            shutil.copyfile(file, state / "parts" / f"{file.parent.name}.zip")
    # as a task of its own: what it imports may be in a wheel
    unpacking = [str(TASKS / "pack.py"), str(state / "parts"), str(state / "data")]
    if list((state / "parts").glob("*.zip")):
        here.do([Job("unpack", unpacking, 120)])
    if "proof" in arguments.parts:
        here.do(proof(quick, device), until=120, at_once=AT_ONCE)
    if "speed" in arguments.parts:
        until = 120 if "train" in arguments.parts else here.left
        here.do(speed(quick, device), until=until)
    if "train" in arguments.parts:
        found = [str(path.parent) for path in (state / "data").glob("*/train.parquet")]
        data = arguments.data or next(iter(found), "sample")
        if arguments.carry and not found:  # rather than train on the sample for minutes
            raise SystemExit("no images were unpacked, and wheels lack: carry .gpu/1, not .gpu/2")
        words = ["--data", data, "--work", str(state / "work"), "--seconds", "{seconds}"]
        done = threading.Event()
        copying = threading.Thread(target=here.save_models_often, args=(done,))
        copying.start()
        try:
            here.do([Job("train", task("train", "train", quick, device) + words, 1e9)])
        finally:
            done.set()
            copying.join()
            here.save_models()
    here.report()
    print(here.text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write what the other machine lacks")
    packing.add_argument("--data", default="cifar10", help="what load_dataset reads")
    packing.add_argument("--to", type=Path, default=Path(".gpu"))
    packing.add_argument("--tests", type=int, default=1000, help="test images")
    packing.add_argument("--no-wheels", action="store_true")
    running = commands.add_parser("run", help="on the machine with a GPU")
    running.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    running.add_argument("--carry", nargs="*", type=Path, default=[])
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--seconds", type=float, required=True, help="for all of it")
    running.add_argument(
        "--state", type=Path, default=Path(tempfile.gettempdir()) / "sj-robust-gpu"
    )
    running.add_argument("--only", nargs="+", help="these tasks of the parts alone")
    running.add_argument("--data", help="default: what was carried, else the sample")
    running.add_argument("--device", default="cuda")
    running.add_argument("--quick", action="store_true", help="toy sizes, to try it on a CPU")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run(arguments)
    import pack

    folders = pack.pack(
        arguments.data, arguments.to, tests=arguments.tests, wheels=not arguments.no_wheels
    )
    tree = pack.repository_bytes()
    print(f"the repository itself: {tree / 2**20:.1f} MiB")
    for number, folder in enumerate(folders, 1):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(
            f"call {number}: carry {folder} ({size / 2**20:.1f} MiB, with the repository"
            f" {(size + tree) / 2**20:.1f} of {pack.LIMIT / 2**20:.0f})"
        )


if __name__ == "__main__":
    main()
