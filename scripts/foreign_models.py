"""Weights that nobody here made: opened, converted without finetuning, and attacked; one row each.

    python scripts/foreign_models.py --data PATH_OF_CIFAR10 --models FOLDER

FOLDER holds resnet20_cifar10_natural.th (resnet20-12fca82f.th of
github.com/akamaster/pytorch_resnet_cifar10) and cifar_cnn_a_mix_linf.pt (from the α,β-CROWN
distribution). The third, model_test.pt, is what AutoAttack's authors try their attacks on; it lies
in the installed pyautoattack. What is not there is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from sj_robust import evaluate, load_dataset
from sj_robust.recipes.network import open_ann
from sj_robust.recipes.spec import AnnSettings, CalibratedConversion
from sj_robust.recipes.steps import convert_with

FOREIGN: dict[str, dict[str, Any]] = {
    "cifar_cnn_a_mix_linf.pt": dict(
        model="foreign_models:robust_cnn",
        mean=[0.4914, 0.4822, 0.4465],
        std=[0.2023, 0.1994, 0.2010],
    ),
    "resnet20_cifar10_natural.th": dict(
        architecture="cifar_resnet20",
        args={"shortcut": "identity"},
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    ),
    "model_test.pt": dict(architecture="cifar_resnet18", mean=[0.0] * 3, std=[1.0] * 3),
}
# gradients of the spiking network; an image is robust if it survives them all
VIEWS = ("PCW:1", "ASSG", "activation")


def robust_cnn() -> nn.Sequential:
    """The network of cifar_cnn_a_mix_linf.pt: no batch norm, 0.21 M parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="CIFAR-10")
    parser.add_argument("--models", type=Path, required=True, help="the folder of the weight files")
    parser.add_argument("--only", choices=FOREIGN, action="append", help="this file; repeatable")
    parser.add_argument("--images", type=int, default=100, help="test images")
    parser.add_argument("--eps", type=lambda text: float(Fraction(text)), default=2 / 255)
    parser.add_argument(
        "--views", default=",".join(VIEWS), help="gradient views of the spiking network"
    )
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument("--reset", choices=("hard", "soft"), default="hard")
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="of calibration and evaluation")
    parser.add_argument("--calibration-timesteps", type=int, default=50)
    chosen = parser.parse_args()

    train, test = (
        load_dataset(chosen.data, "train"),
        load_dataset(chosen.data, "test").first(chosen.images),
    )
    conversion = CalibratedConversion(
        timesteps=chosen.timesteps,
        reset=chosen.reset,
        scale=chosen.scale,
        batches=chosen.batches,
        batch_size=chosen.batch_size,
        calibration_timesteps=chosen.calibration_timesteps,
    )
    rows = [
        ["file", "parameters", "ANN", "ANN, PGD-10", f"SNN, T={chosen.timesteps}", "SNN, PGD-10"]
    ]
    for name in chosen.only or FOREIGN:
        if (file := find(name, chosen.models)) is None:
            print(f"{name}: not there")
            continue
        ann = open_ann(AnnSettings(**FOREIGN[name], weights=str(file)), train)
        snn = convert_with(ann, train, conversion)
        cells = []
        for network, views in ((ann, None), (snn, chosen.views.split(","))):
            report = evaluate(
                network,
                test,
                eps=[chosen.eps],
                attacks=["pgd10"],
                views=views,
                check_images=0,
                batch_size=chosen.batch_size,
            )
            cells += [
                f"{100 * accuracy.value:.1f} %"
                for accuracy in (report.clean, report.joint[0].accuracy)
            ]
        rows.append([name, f"{sum(p.numel() for p in ann.parameters()) / 1e6:.2f} M", *cells])
        print(rows[-1], flush=True)
    print(
        f"\n{len(test)} test images, eps {Fraction(chosen.eps).limit_denominator(255)}; spiking"
        f" views {chosen.views}\n"
    )
    print(table(rows))


def find(name: str, folder: Path) -> Path | None:
    """The file in `folder`, else among the examples of pyautoattack, if it is in either."""
    package = importlib.util.find_spec("pyautoattack")
    places = [
        folder,
        *(
            Path(place) / "examples"
            for place in (package.submodule_search_locations if package else None) or []
        ),
    ]
    return next((place / name for place in places if (place / name).is_file()), None)


def table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
