"""What the robust ANN, batch norm and learned thresholds are worth: variants of one recipe on the
same small budget.

    python scripts/ablation.py --data PATH_OF_CIFAR10 --ann runs/zoo-t4/ann --natural
    resnet20_cifar10_natural.th --out runs/ablation

Every variant starts from the robust or from the natural ResNet-20, is converted at the same T,
finetuned on the same number of training images (none for the test set), and measured on the same
test images, eps, attacks and views. A variant that is finished is kept; run the script again to go
on. Prints a Markdown table and writes it to OUT/table.md and OUT/table.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sj_robust.evaluation import Report, eps_name
from sj_robust.files import write_atomic
from sj_robust.recipes.run import run
from sj_robust.recipes.spec import make_recipe

NATURAL = {
    "architecture": "cifar_resnet20",
    "args": {"shortcut": "identity"},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "robust ANN": {},
    "robust ANN, thresholds fixed": {"finetune": {"learn_thresholds": False}},
    "robust ANN, batch norm omitted": {"convert": {"norm": "omit"}},
    "natural ANN, adversarial finetuning": {"natural": True},
    "natural ANN, natural finetuning": {"natural": True, "finetune": {"method": "natural"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or cifar10")
    parser.add_argument(
        "--ann", required=True, help="checkpoint folder or zoo name of the robust ANN"
    )
    parser.add_argument(
        "--natural", required=True, help="weights of the naturally trained ResNet-20"
    )
    parser.add_argument("--out", default="runs/ablation", type=Path)
    parser.add_argument("--timesteps", default=4, type=int)
    parser.add_argument(
        "--epochs", default=0.08, type=float, help="of finetuning, for every variant"
    )
    parser.add_argument("--batches", default=11, type=int, help="calibration batches")
    parser.add_argument("--batch-size", default=64, type=int, help="images in each")
    parser.add_argument("--images", default=500, type=int, help="test images")
    parser.add_argument("--eps", default=["2/255", "4/255", "8/255"], nargs="+")
    parser.add_argument("--views", default=["PCW:1", "activation", "PCW:2", "PCW:0.5"], nargs="+")
    parser.add_argument("--only", nargs="*", help="names of variants; default all")
    options = parser.parse_args()
    rows = []
    for name, changes in VARIANTS.items():
        if options.only and name not in options.only:
            continue
        slug = name.replace(" ", "-").replace(",", "").lower()
        recipe = make_recipe(
            {
                "name": f"resnet20-snn-t{options.timesteps}.{slug}",
                "dataset": "cifar10",
                "ann": (
                    {**NATURAL, "weights": options.natural}
                    if changes.get("natural")
                    else {"checkpoint": options.ann}
                ),
                "convert": {
                    "timesteps": options.timesteps,
                    "batches": options.batches,
                    "batch_size": options.batch_size,
                    **changes.get("convert", {}),
                },
                "finetune": {
                    "epochs": options.epochs,
                    "validate_every": options.epochs,
                    "validation": 100,
                    **changes.get("finetune", {}),
                },
                "evaluate": {
                    "eps": options.eps,
                    "max_images": options.images,
                    "views": options.views,
                    "check_images": 0,
                },
            }
        )
        result = run(
            recipe,
            options.out / slug,
            data=options.data,
            say=lambda line, slug=slug: print(f"{slug}: {line}", flush=True),
        )
        rows.append(row(name, result.ann_report, result.snn_report))
    table = markdown(rows)
    write_atomic(options.out / "table.json", json.dumps(rows, indent=2) + "\n")
    write_atomic(options.out / "table.md", table)
    print(table)


def row(name: str, ann: Report, snn: Report) -> dict[str, Any]:
    accuracies = {"ANN clean": ann.clean, "SNN clean": snn.clean}
    for kind, report in (("ANN", ann), ("SNN", snn)):
        accuracies |= {f"{kind} at {eps_name(joint.eps)}": joint.accuracy for joint in report.joint}
    return {"variant": name} | {key: str(value) for key, value in accuracies.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *(list(map(str, line.values())) for line in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
