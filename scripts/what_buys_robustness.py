"""What buys robustness: spiking layers, width, pooling before or after the node, and time steps,
against energy, with each ANN in the same picture.

    python scripts/what_buys_robustness.py --data PATH_OF_CIFAR10 --out runs/what-buys

Every ANN is trained from random weights against 8/255 for as many epochs, converted at each T and
finetuned alike, and measured under `strong` on TRAINING images that nothing of this saw. What is
done stays in OUT: the same command goes on where it was, also with more --timesteps, --only or
--images. Writes OUT/table.md and OUT/figure.png after each network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from stages import add_precision, converted, finetuned, trained

from sj_robust import SJRobustError, evaluate, load_dataset
from sj_robust.checkpoint.results import kept, results
from sj_robust.data import ImageDataset
from sj_robust.evaluation import Report
from sj_robust.evaluation.facts import weights_sha256
from sj_robust.files import write_atomic
from sj_robust.training import TrainConfig, preset
from sj_robust.training.config import Kind

HELD_OUT = 1000
EPS = (2 / 255, 8 / 255)
VGG5 = [48, "A", 96, "A", 192, 192, "A"]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "3 layers": ("cifar_vgg", {"layers": [48, "A", 96, "A", 192, "A"]}),
    "4 layers": ("cifar_vgg", {"layers": VGG5}),
    "4 layers, half as wide": ("cifar_vgg", {"layers": [24, "A", 48, "A", 96, 96, "A"]}),
    "4 layers, twice as wide": ("cifar_vgg", {"layers": [96, "A", 192, "A", 384, 384, "A"]}),
    "4 layers, pools before nodes": ("cifar_vgg", {"layers": VGG5, "pool_first": True}),
    "5 layers": ("cifar_vgg", {"layers": [48, "A", 96, 96, "A", 192, 192, "A"]}),
    "9 layers": (
        "cifar_vgg",
        {"layers": [48, 48, "A", 96, 96, 96, "A", 192, 192, 192, 192, "A"]},
    ),
    "19 layers (ResNet-20)": ("cifar_resnet20", {}),
}


def training(kind: Kind, epochs: float, lr: float, options: argparse.Namespace) -> TrainConfig:
    """One-step PGD at 8/255."""
    changes: dict[str, Any] = {
        "method": "pgd", "eps": 8 / 255, "attack_steps": 1, "schedule": "onecycle", "lr": lr,
        "epochs": epochs, "validate_every": epochs, "precision": options.precision,
    }  # fmt: skip
    return preset(kind, "default", **changes)


def measured(path: Path, images: ImageDataset, model: Any, ann: Any = None) -> Report:
    """Under strong, from the report at `path` where it is of these weights and as many images."""
    if path.exists():
        report = Report.from_json(path.read_text(encoding="utf-8"))
        found = report.model.weights_sha256, report.dataset.evaluated
        if found == (weights_sha256(model), len(images)):
            return report
    transfer = {"ann": ann} if ann is not None else None
    journal = path.with_name(f"{path.stem}.{len(images)}.partial")
    report = evaluate(
        model, images, protocol="strong", eps=EPS, transfer=transfer, journal=journal,
        check_images=0, batch_size=32,
    )  # fmt: skip
    write_atomic(path, report.to_json())
    return report


def table(found: dict[str, dict[int, Report]]) -> str:
    """One row for each ANN (T = 0) and spiking network."""
    lines = [
        "| network | T | clean | 2/255 | 8/255 | kept of the ANN | energy, µJ |",
        "|---" * 7 + "|",
    ]
    for name, by_timesteps in found.items():
        for timesteps, report in by_timesteps.items():
            one, shares = results(report), kept(report, by_timesteps[0]) if timesteps else {}
            share = ", ".join(f"{100 * value:.0f} %" for value in shares.values())
            robust = " | ".join(map(str, one.robust))
            steps = timesteps or "ANN"
            lines.append(
                f"| {name} | {steps} | {one.clean} | {robust} | {share} | {one.microjoules:.1f} |"
            )
    return "\n".join(lines) + "\n"


def draw(found: dict[str, dict[int, Report]], path: Path) -> None:
    """Robust accuracy at the largest eps against energy; the stars are the ANNs."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, by_timesteps in found.items():
        ordered = [(steps, results(report)) for steps, report in sorted(by_timesteps.items())]
        spots = [(one.microjoules or 0.0, 100 * one.robust[-1].value) for _, one in ordered]
        colour = axes.plot(*zip(*spots[1:], strict=True), "o-", label=name)[0].get_color()
        axes.plot(*spots[0], "*", color=colour, markersize=11)
        for (timesteps, _), spot in zip(ordered[1:], spots[1:], strict=True):
            axes.annotate(f"T={timesteps}", spot, textcoords="offset points", xytext=(4, 4))
    axes.set(xscale="log", xlabel="energy, µJ per image", ylabel="robust at 8/255, %")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/what-buys"))
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), help="default all")
    parser.add_argument("--timesteps", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--epochs", type=float, default=8, help="of each ANN")
    parser.add_argument("--finetune-epochs", type=float, default=0.4)
    add_precision(parser)
    parser.add_argument("--images", type=int, default=100, help="held-out training images")
    options = parser.parse_args()
    try:
        train, held_out = load_dataset(options.data, "train").split_off(HELD_OUT, 0)
        images = held_out.first(options.images)
        found: dict[str, dict[int, Report]] = {}
        for name in options.only or NETWORKS:
            folder = options.out / name.replace(",", "").replace(" ", "-")
            config = training("ann", options.epochs, 0.1, options)
            ann = trained(folder / "ann", train, config, *NETWORKS[name])
            found[name] = {0: measured(folder / "ann.json", images, ann)}
            for timesteps in options.timesteps:
                base, tuned = folder / f"t{timesteps}-converted", folder / f"t{timesteps}"
                fields = {"timesteps": timesteps, "reset": "soft", "scale": "auto", "batches": 4}
                converted(base, folder / "ann", train, fields)
                config = training("finetune", options.finetune_epochs, 0.01, options)
                snn = finetuned(tuned, base, train, config)
                found[name][timesteps] = measured(folder / f"t{timesteps}.json", images, snn, ann)
            write_atomic(options.out / "table.md", table(found))
            draw(found, options.out / "figure.png")
        print(table(found), end="")
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
