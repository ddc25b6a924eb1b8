"""Train a purifier: a denoising autoencoder to put in front of a classifier.

    python scripts/purifier.py --data PATH_OF_CIFAR10 --classifier resnet20.cifar10_linf_pgd \
        --out runs/purifier.safetensors

It learns to take noise off, and the adversarial images of --classifier back to the clean ones; that
classifier stays as it is. `sj_robust.model.purified(load_purifier(FILE), classifier)` is both in
one, which is what has to be attacked (scripts/other_defences.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sj_robust import SJRobustError, load, load_dataset
from sj_robust.files import check_file
from sj_robust.model import Purifier, save_purifier
from sj_robust.training import train_purifier


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--classifier", help="a checkpoint; without it noise alone is taken off")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--images", type=int, help="the first so many of the training images")
    options = parser.parse_args()
    try:
        check_file(options.out)
        train = load_dataset(options.data, "train")
        train = train.first(options.images) if options.images else train
        classifier = load(options.classifier) if options.classifier else None
        torch.manual_seed(0)
        purifier = Purifier(train.images.shape[1], options.width)
        errors = train_purifier(purifier, train, classifier, eps=options.eps, epochs=options.epochs)
        save_purifier(purifier, options.out)
        print("mean squared error by epoch:", ", ".join(f"{error:.6f}" for error in errors))
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
