"""Depth: a network of more than 100 layers is trained, converted, finetuned and measured, beside a
shallow one, with what each of it takes.

    python scripts/depth.py --data PATH_OF_CIFAR10 --out runs/depth

ResNet-110 (He et al. 2016: 109 convolutions and a linear layer) and ResNet-20, alike: one-step PGD
training at 2/255, conversion at T steps, finetuning, and the first test images under --protocol at
2/255. Each stage runs in a process of its own, whose peak of memory is that of the whole process,
torch and images included; one that is done is not run again. OUT/table.md has the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages import add_precision, converted, finetuned, trained

from sj_robust import SJRobustError, evaluate, load, load_dataset
from sj_robust.evaluation import Report, measure_latency
from sj_robust.files import write_atomic
from sj_robust.training import preset

EPS = 2 / 255
NETWORKS = ("cifar_resnet20", "cifar_resnet110")


def train(folder: Path, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ANN."""
    changes: dict[str, Any] = {
        "epochs": options.epochs, "eps": EPS, "validate_every": options.epochs,
        "precision": options.precision,
    }  # fmt: skip
    config = preset("ann", "default", **changes)
    trained(folder / "ann", training_images(options), config, network)
    return {}


def convert(folder: Path, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """The spiking network, and whether every layer of it fires."""
    images = training_images(options)
    fields = {
        "timesteps": options.timesteps,
        "reset": "soft",
        "batches": options.batches,
        "batch_size": 32,
        "calibration_timesteps": options.calibration_timesteps,
    }
    snn = converted(folder / "snn", folder / "ann", images, fields)
    report = evaluate(snn, images.first(32), attacks=[], check_images=0, batch_size=32)
    assert report.activity is not None
    rates = [layer.rate for layer in report.activity.layers.values()]
    return {
        "nodes": len(rates),
        "silent": sum(rate == 0 for rate in rates),
        "thresholds": [min(snn.thresholds().values()), max(snn.thresholds().values())],
    }


def tune(folder: Path, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Finetuned as the ANN was trained."""
    changes: dict[str, Any] = {
        "epochs": options.finetune_epochs, "eps": EPS, "batch_size": 32, "validation": 200,
        "validate_every": options.finetune_epochs, "checkpointing": options.checkpointing,
        "precision": options.precision,
    }  # fmt: skip
    config = preset("finetune", "default", **changes)
    finetuned(folder / "finetuned", folder / "snn", training_images(options), config)
    return {}


def measure(folder: Path, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """All three networks, clean and attacked; accuracy over the steps."""
    images = load_dataset(options.data, "test").first(options.images)
    ann = load(folder / "ann")
    found: dict[str, Any] = {}
    for name in ("ann", "snn", "finetuned"):
        model = load(folder / name)
        path = folder / f"{name}.json"
        protocol = options.protocol if name != "snn" else "quick"
        report = evaluate(
            model,
            images,
            protocol=protocol,
            eps=EPS,
            transfer={"ann": ann} if name == "finetuned" and protocol == "strong" else None,
            check_images=0,
            roughness_images=0,
            batch_size=25,
            journal=path.with_suffix(".partial"),
        )
        write_atomic(path, report.to_json())
        if name != "ann":
            at = measure_latency(model, images, max_images=min(256, len(images))).clean
            found[f"{name} over steps"] = [str(accuracy) for accuracy in at]
    return found


STAGES: dict[str, Callable[[Path, str, argparse.Namespace], dict[str, Any]]] = {
    "train": train,
    "convert": convert,
    "finetune": tune,
    "measure": measure,
}


def training_images(options: argparse.Namespace) -> Any:
    """All, or the first --training-images."""
    images = load_dataset(options.data, "train")
    return images.first(options.training_images) if options.training_images else images


def in_its_own_process(network: str, stage: str, folder: Path) -> dict[str, Any]:
    """What the stage found and took, from OUT where it is done."""
    path = folder / f"{stage}.json.done"
    if not path.exists():
        done = subprocess.run([sys.executable, *sys.argv, "--stage", network, stage])
        if done.returncode:
            sys.exit(done.returncode)
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def run_stage(network: str, stage: str, options: argparse.Namespace) -> None:
    """One stage, and its cost beside it."""
    folder = options.out / network
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found = STAGES[stage](folder, network, options)
    found["seconds"] = round(time.monotonic() - started, 1)
    found["mebibytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    write_atomic(folder / f"{stage}.json.done", json.dumps(found, indent=1))


def row(network: str, folder: Path, found: dict[str, dict[str, Any]]) -> str:
    """Of the table."""
    reports = [
        Report.from_json((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("ann", "snn", "finetuned")
    ]
    accuracies = [
        cell for report in reports for cell in (str(report.clean), str(report.joint[0].accuracy))
    ]
    facts = found["convert"]
    costs = [f"{one['seconds']:.0f} s, {one['mebibytes']} MiB" for one in found.values()]
    spiking = f"{facts['nodes']} ({facts['silent']} silent)"
    return "| " + " | ".join([network, spiking, *accuracies, *costs]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/depth"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--finetune-epochs", type=float, default=0.1)
    parser.add_argument("--checkpointing", action="store_true", help="of the finetuning")
    parser.add_argument("--batches", type=int, default=4, help="of 32 images, for the thresholds")
    parser.add_argument("--calibration-timesteps", type=int, default=16)
    add_precision(parser)
    parser.add_argument("--protocol", default="strong", help="of the ANN and the finetuned network")
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--training-images", type=int, help="the first so many only")
    parser.add_argument("--stage", nargs=2, metavar=("NETWORK", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.stage:
            run_stage(*options.stage, options)
            return
        named = [f"{name}, {what}" for name in ("ANN", "converted", "finetuned") for what in CELLS]
        header = ["network", "nodes", *named, *STAGES]
        lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for network in options.networks:
            folder = options.out / network
            found = {stage: in_its_own_process(network, stage, folder) for stage in STAGES}
            lines.append(row(network, folder, found))
            write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
        print("\n".join(lines))
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


CELLS = ("clean", "2/255")


if __name__ == "__main__":
    main()
