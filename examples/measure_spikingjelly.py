"""Measure a network of SpikingJelly's own nodes: through the surrogate that it was trained with, as
papers often do it, and then honestly.

    python examples/measure_spikingjelly.py

The network is trained here, on 2,000 images; yours comes with its weights.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_robust
from sj_robust.data import MEAN_STD
from sj_robust.evaluation import Protocol, Stage
from sj_robust.training import TrainConfig

EPS = 2 / 255


def network() -> nn.Module:
    """As SpikingJelly's tutorials make them: [T, N, 3, 32, 32] → [T, N, 10]."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            layer.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            layer.BatchNorm2d(outputs),
            neuron.LIFNode(detach_reset=True),  # its surrogate is the default, a sigmoid
        ]

    net = nn.Sequential(
        *block(3, 24), *block(24, 48), layer.Flatten(), layer.Linear(48 * 8 * 8, 10)
    )
    functional.set_step_mode(net, "m")
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description="A network of SpikingJelly's nodes, measured.")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--images", type=int, default=100, help="test images that are attacked")
    options = parser.parse_args()
    train = sj_robust.load_dataset(options.data, "train")
    test = sj_robust.load_dataset(options.data, "test").first(options.images)

    # Wrapped, it takes images in [0, 1], and starts from rest at every call.
    torch.manual_seed(0)
    mean, std = MEAN_STD.get(train.name, MEAN_STD["imagenet"])
    snn = sj_robust.from_spikingjelly(network(), timesteps=4, mean=mean, std=std)
    config = TrainConfig(
        method="natural", epochs=options.epochs, lr=0.1, batch_size=64, validation=100
    )
    with tempfile.TemporaryDirectory() as folder:
        sj_robust.finetune(snn, train, config, folder)

    naive = sj_robust.evaluate(snn, test, attacks=["pgd10"], views=["own"], eps=EPS, check_images=0)
    print(f"clean                               {naive.clean}")
    print(f"2/255, PGD-10 through its surrogate {naive.joint[0].accuracy}", flush=True)

    # The same images: other views of the gradient in turn, and queries from where these end. The
    # protocol "strong" does so at length.
    turns = ("PCW:1", "ASSG", "PCW:2", "rate-temporal", "rate")
    stages = (
        Stage("pgd10", ("own", "ASSG")),
        Stage("rotating30", turns, start="best"),
        Stage("square300", (), start="best"),
    )
    short = Protocol("short", 1, stages, "the stages of strong, few steps of each")
    honest = sj_robust.evaluate(
        snn, test, protocol=short, eps=EPS, check_images=0, roughness_images=0
    )
    for result in honest.robust:
        print(f"2/255, and after {result.attack:<18} {result.joint}")


if __name__ == "__main__":
    main()
