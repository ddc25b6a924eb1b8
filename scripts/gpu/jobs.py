"""The tasks of scripts/on_gpu.py: what is run, in order of worth. Plain Python: it is read before
anything is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "scripts" / "gpu"


@dataclass
class Job:
    """`command` is for Python; {result} in it is the JSON file that it writes."""

    name: str
    command: Sequence[str]
    limit: float
    status: str = "not begun: no time left"
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


def proof(quick: bool, device: str) -> list[Job]:
    """What has to be the same as on the CPU. The pytest is of what is marked for GPUs."""
    marked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]
    tests = ["-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", *marked]
    longest, ours = ["sanitizer", "kernels"], ["zoo", "evaluation", "odd", "nccl"]
    # the machine may not know its own name
    launcher = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 1"
    words = "-m sj_robust train-ann cifar_resnet20 --data sample --epochs 0.1 --validation 16"
    trained = [*words.split(), "--batch-size", "16", "--device", device, "--out", "{result}.ann"]
    return [
        *(Job(name, task("proof", name, quick, device), 110) for name in longest),
        Job("tests", tests, 110),
        *(Job(name, task("proof", name, quick, device), 110) for name in ours),
        Job("torchrun", [*launcher.split(), *trained], 90),
        Job("doctor", ["-m", "sj_robust", "doctor"], 60),
    ]


def speed(quick: bool, device: str) -> list[Job]:
    """Of a training step and of PGD-10, the most telling first."""
    large = "--image-size", "224", "--sides"
    cases = [  # architecture, T, batch, precision, tasks, further words
        ("cifar_resnet20", 8, 128, "float32", "train,pgd10", ()),
        ("cifar_wrn16_4", 8, 128, "bf16", "train", ("--sides", "ann,torch,cupy")),
        ("cifar_resnet20", 8, 128, "bf16", "train", ()),
        ("cifar_wrn16_4", 8, 128, "float32", "train,pgd10", ("--sides", "ann,cupy")),
        ("cifar_vgg11", 8, 128, "bf16", "train", ()),
        # not all sides, whose memory together may be more than there is
        ("resnet50", 4, 32, "bf16", "train", (*large, "ann,spikingjelly,cupy")),
        ("resnet50", 4, 32, "float32", "train", (*large, "ann,cupy")),
    ]
    if quick:
        cases = [("cifar_vgg5", 2, 2, "bf16", "train", ("--sides", "ann,torch"))]
    jobs = []
    for architecture, steps, batch, precision, tasks, more in cases:
        words = f"-m sj_robust bench --arch {architecture} --timesteps {steps} --batch-size {batch}"
        words += f" --precision {precision} --tasks {tasks} --repeats {1 if quick else 5}"
        command = [*words.split(), "--device", device, "--out", "{result}", *more]
        jobs.append(Job(f"{architecture}-t{steps}-{precision}", command, 100))
    jobs.insert(1, Job("node", task("speed", "node", quick, device), 60))
    return jobs


def task(file: str, name: str, quick: bool, device: str) -> list[str]:
    words = [str(TASKS / f"{file}.py"), name, "--device", device, "--result", "{result}"]
    return words + ["--quick"] * quick
