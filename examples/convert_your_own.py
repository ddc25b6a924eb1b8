"""Turn a timm network into a spiking one: train it (or bring your weights), convert it, finetune it
adversarially, and see after each step what is left.

    python examples/convert_your_own.py
    python examples/convert_your_own.py --architecture resnet18 --weights mine.pth --data cifar10

Minutes of training on 2,000 images make no good network; the zoo holds better ones.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import sj_robust
from sj_robust.data import MEAN_STD, ImageDataset, calibration_batches
from sj_robust.model import NormalizedClassifier, create_ann, load_weights
from sj_robust.training import TrainConfig

EPS = 2 / 255


def tell(what: str, model: nn.Module, test: ImageDataset) -> None:
    """Clean accuracy and what survives PGD-10, of a spiking network through one gradient view."""
    views = ["ASSG"] if isinstance(model, sj_robust.SpikingClassifier) else None
    report = sj_robust.evaluate(
        model, test, attacks=["pgd10"], views=views, eps=EPS, check_images=0
    )
    print(f"{what:<22} clean {report.clean}   2/255 {report.joint[0].accuracy}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="From a timm network to a spiking one.")
    parser.add_argument("--architecture", default="test_resnet", help="any name of timm's")
    parser.add_argument("--weights", help="a file of yours; without it the network is trained")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--images", type=int, default=128, help="test images that are attacked")
    options = parser.parse_args()
    train = sj_robust.load_dataset(options.data, "train")
    test = sj_robust.load_dataset(options.data, "test").first(options.images)

    # Normalisation moves inside, so that eps is one of images in [0, 1].
    torch.manual_seed(0)
    backbone = create_ann(options.architecture, num_classes=len(train.classes))
    ann = NormalizedClassifier(backbone, *MEAN_STD.get(train.name, MEAN_STD["imagenet"]))
    short = TrainConfig(method="pgd", eps=EPS, batch_size=64, validation=100)
    with tempfile.TemporaryDirectory() as folder:
        if options.weights:
            load_weights(ann, options.weights)
        else:
            config = short.model_copy(update={"epochs": options.epochs, "lr": 0.1})
            sj_robust.train_ann(ann, train, config, Path(folder) / "ann.training")
        tell("the ANN", ann.eval(), test)

        # Each ReLU becomes a node with a threshold of its own, found on training images.
        snn = sj_robust.convert(
            ann,
            calibration_batches(train, batches=2, seed=0),
            timesteps=4,
            scale="auto",
            calibration_timesteps=32,
        )
        tell("spiking, as converted", snn.eval(), test)

        # Trained on, through a surrogate of its spikes; thresholds are learned as well.
        config = short.model_copy(update={"epochs": 1})
        sj_robust.finetune(snn, train, config, Path(folder) / "snn.training")
        tell("spiking, finetuned", snn.eval(), test)

        sj_robust.save(snn, Path(folder) / "mine", classes=train.classes)
        again = sj_robust.load(Path(folder) / "mine")
        assert torch.equal(again(test.floats([0])), snn(test.floats([0])))


if __name__ == "__main__":
    main()
