"""Memory and time at 224×224: conversion, one step of adversarial finetuning and one PGD step, each
in a process of its own.

    python scripts/large_images.py --data PATH --out build/large_images.json

PATH: images by class or parquet files, resized to 224×224 (a few are enough). Weights are random:
neither memory nor time depends on them. Memory is the peak of the whole process, torch and images
included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

NETWORKS = {"resnet50": {}, "mobilenetv2_100": {"replace_activation": "relu"}}
STAGES = ("convert", "finetune", "finetune, checkpointing", "PGD")
CLASSES = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--calibration", type=int, default=2, help="batches of calibration images")
    parser.add_argument("--calibration-timesteps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--stage", nargs=3, metavar=("NETWORK", "STAGE", "FOLDER"), help=argparse.SUPPRESS
    )
    chosen = parser.parse_args()
    if chosen.stage:
        print(json.dumps(measure(chosen, *chosen.stage)))
        return
    rows = []
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            for stage in STAGES:
                done = subprocess.run(
                    [sys.executable, *sys.argv, "--stage", network, stage, folder],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    sys.exit(done.stderr)
                rows.append(
                    {"network": network, "stage": stage, **json.loads(done.stdout.splitlines()[-1])}
                )
                print(rows[-1], flush=True)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(
            json.dumps(
                {"settings": vars(chosen) | {"out": str(chosen.out)}, "rows": rows}, indent=2
            )
            + "\n"
        )
    print("| network | stage | images | seconds | peak GiB |\n| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['network']} | {row['stage']} | {row['images']} | {row['seconds']:.0f} |"
            f" {row['gib']:.1f} |"
        )


def measure(chosen: argparse.Namespace, network: str, stage: str, folder: str) -> dict[str, Any]:
    """One stage; the first leaves the spiking network in `folder` for the others."""
    from sj_robust import load, save
    from sj_robust.attack import PGD
    from sj_robust.conversion import convert
    from sj_robust.data import calibration_batches, load_dataset
    from sj_robust.model import create_ann
    from sj_robust.training import finetune, preset

    size = chosen.batch_size
    dataset = load_dataset(chosen.data, "test", image_size=224).first(
        size * max(chosen.calibration, 3)
    )
    images = size
    if stage == "convert":
        torch.manual_seed(0)
        ann = create_ann(network, CLASSES).eval()
        for module in ann.modules():  # a zero there, timm's start, would leave branches silent
            if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
                torch.nn.init.ones_(module.weight)
        batches, images = (
            calibration_batches(dataset, chosen.calibration, size, seed=0),
            size * chosen.calibration,
        )
        started = time.monotonic()
        snn = convert(
            ann,
            batches,
            chosen.timesteps,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            calibration_timesteps=chosen.calibration_timesteps,
            **NETWORKS[network],
        )
        seconds = time.monotonic() - started
        save(snn, Path(folder) / "snn")
    else:
        snn = load(Path(folder) / "snn")
        started = time.monotonic()
        if stage == "PGD":
            PGD(eps=4 / 255, steps=1)(snn, dataset.floats(range(size)), dataset.labels[:size])
        else:
            config = preset(
                "finetune",
                "default",
                batch_size=size,
                epochs=size / (len(dataset) - size),
                validation=size,
                attack_steps=1,
                checkpointing="checkpointing" in stage,
            )
            finetune(snn, dataset, config, Path(folder) / stage, show_progress=False)
        seconds = time.monotonic() - started
    return {
        "images": images,
        "seconds": seconds,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
