"""One factor on all thresholds, or each layer's own: what a conversion keeps of its ANN, and what a
short finetuning makes of it.

    python scripts/scale_choice.py resnet20.cifar10_linf_pgd --data PATH_OF_CIFAR10
        --timesteps 4 --eps 2/255 --scales 0.2 0.3 0.4 auto --epochs 0.1

ANN is a checkpoint or a zoo name. Accuracies are of TRAINING images that neither calibration nor
finetuning saw: clean, and under PGD-10 through PCW:1 and ASSG. With --epochs 0 nothing is
finetuned. One row per factor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

from sj_robust import load
from sj_robust.attack import parse_attack
from sj_robust.budget import radius
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import evaluate
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.recipes.spec import CalibratedConversion, checked
from sj_robust.recipes.steps import convert_with
from sj_robust.training import finetune, preset


def measured(
    model: NormalizedClassifier | SpikingClassifier, images: ImageDataset, eps: float
) -> str:
    views = ("PCW:1", "ASSG") if isinstance(model, SpikingClassifier) else None
    report = evaluate(
        model, images, eps=eps, attacks=["pgd10"], views=views, batch_size=64, check_images=0
    )
    return f"{report.clean} | {report.joint[0].accuracy}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ann")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--reset", default="hard")
    parser.add_argument("--scales", nargs="+", default=["0.2", "0.3", "0.4", "0.55", "0.7", "auto"])
    parser.add_argument("--images", type=int, default=200, help="held-out training images")
    parser.add_argument("--epochs", type=float, default=0.1, help="of finetuning")
    parser.add_argument("--train-eps", default="4/255")
    parser.add_argument("--lr", type=float, default=0.02)
    options = parser.parse_args()
    try:
        eps = radius(options.eps, "linf")
        parse_attack("pgd10", eps)
        dataset, held_out = load_dataset(options.data, "train").split_off(options.images, 0)
        ann = load(options.ann)
        assert isinstance(ann, NormalizedClassifier)
        print(f"{options.ann}, T={options.timesteps}, {options.reset} reset, eps {options.eps}, ")
        print(f"{options.images} held-out training images of {dataset.name}\n")
        print("| factor | seconds | clean | PGD-10 | clean, finetuned | PGD-10, finetuned |")
        print("| --- | --- | --- | --- | --- | --- |")
        print(f"| ANN | | {measured(ann, held_out, eps)} | | |", flush=True)
        for scale in options.scales:
            fields = {"timesteps": options.timesteps, "reset": options.reset, "scale": scale}
            fields |= {"batches": 4, "calibration_timesteps": 32}  # a minute each, not ten
            begun = time.monotonic()
            snn = convert_with(
                ann, dataset, checked(CalibratedConversion, fields), show_progress=False
            )
            row = f"| {scale} | {time.monotonic() - begun:.0f} | {measured(snn, held_out, eps)}"
            if options.epochs:
                changes = {"eps": options.train_eps, "lr": options.lr, "epochs": options.epochs}
                config = preset("finetune", "default", validate_every=options.epochs, **changes)
                with tempfile.TemporaryDirectory() as folder:
                    finetune(snn, dataset, config, folder, show_progress=False)
                row += f" | {measured(snn.eval(), held_out, eps)}"
            else:
                row += " | | "
            print(f"{row} |", flush=True)
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
