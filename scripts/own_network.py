"""How far attacks through a SpikingJelly network's own surrogate overstate its robustness: train
one adversarially, then measure both ways.

    python scripts/own_network.py --data PATH_OF_CIFAR10 --out runs/own_network

Four convolutions of SpikingJelly's LIFNode (tau = 2, ATan, reset detached: what its tutorials use),
T = 4, trained from random weights by one-step PGD at 4/255 through that surrogate. Then the first
test images under PGD-10 through its own surrogate alone, which is how spiking networks are mostly
measured, and under the protocol strong. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_robust
from sj_robust.data import MEAN_STD
from sj_robust.files import write_atomic
from sj_robust.training import TrainConfig


def network(widths: tuple[int, ...] = (16, 32, 64, 64), classes: int = 10) -> nn.Sequential:
    """Images of 32×32, [T, N, 3, 32, 32] → [T, N, K]; every convolution but the first halves the
    size."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
        node = neuron.LIFNode(
            tau=2.0, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True
        )
        layers += [
            layer.Conv2d(inputs, outputs, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
            layer.BatchNorm2d(outputs),
            node,
        ]
    net = nn.Sequential(*layers, layer.Flatten(), layer.Linear(widths[-1] * 16, classes))
    functional.set_step_mode(net, "m")
    return net


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/own_network"))
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--images", type=int, default=250)
    options = parser.parse_args()
    torch.manual_seed(0)
    train, test = (sj_robust.load_dataset(options.data, split) for split in ("train", "test"))
    snn = sj_robust.from_spikingjelly(
        network(), timesteps=4, mean=MEAN_STD["cifar10"][0], std=MEAN_STD["cifar10"][1]
    )
    config = TrainConfig(
        method="pgd",
        eps=4 / 255,
        attack_steps=1,
        epochs=options.epochs,
        batch_size=128,
        lr=0.1,
        schedule="onecycle",
        validation=500,
        validation_steps=3,
        validate_every=1.0,
    )
    print(sj_robust.finetune(snn, train, config, options.out / "training", resume=True).best)
    for name, settings in {
        "own": {"attacks": ["pgd10"], "views": ["own"]},
        "strong": {"protocol": "strong"},
    }.items():
        path = options.out / f"{name}.json"
        report = sj_robust.evaluate(
            snn,
            test,
            eps=[4 / 255, 8 / 255],
            max_images=options.images,
            batch_size=50,
            journal=path.with_suffix(".partial"),
            **settings,
        )  # type: ignore[arg-type]
        write_atomic(path, report.to_json())
        print(report.summary())


if __name__ == "__main__":
    main()
