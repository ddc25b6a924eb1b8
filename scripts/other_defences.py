"""Other defences beside adversarial training, on the same networks and images.

    python scripts/other_defences.py --data PATH_OF_CIFAR10 --out runs/other-defences

A small CNN (three convolutions, cifar_vgg) is trained by natural, one-step PGD and interval bound
training at 2/255, and converted at T steps with soft reset. For each of the six networks OUT gets:
what strong leaves, alone and behind a purifier (a denoising autoencoder trained on that network's
own adversarial images, and inside of every attack); what interval bounds certify; and what
randomised smoothing does. The networks of natural and PGD training are finetuned after the
conversion, those of interval bounds are not. All on the first test images. OUT/table.md has the
tables; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from stages import add_precision, converted, finetuned, trained

from sj_robust import SJRobustError, evaluate, load_dataset
from sj_robust.data import ImageDataset
from sj_robust.evaluation import Report, certify, certify_intervals, eps_name
from sj_robust.evaluation.certificate import Certificate
from sj_robust.evaluation.facts import dataset_facts, weights_sha256
from sj_robust.evaluation.interval_certificate import IntervalCertificate
from sj_robust.evaluation.protocol import PROTOCOLS
from sj_robust.files import write_atomic
from sj_robust.model import (
    NormalizedClassifier,
    Purifier,
    SpikingClassifier,
    load_purifier,
    purified,
    save_purifier,
)
from sj_robust.training import preset, train_purifier

LAYERS = [32, "A", 64, "A", 128, "A"]
TRAINED = 2 / 255
EPS = [2 / 255, 8 / 255]
CERTIFIED = [1 / 255, 2 / 255, 4 / 255]
SIGMA = 0.1
Method = Literal["natural", "pgd", "ibp"]
METHODS: tuple[Method, ...] = get_args(Method)


def ann_of(
    folder: Path, method: Method, train: ImageDataset, options: argparse.Namespace
) -> NormalizedClassifier:
    """The trained CNN; interval bounds take twice the epochs."""
    epochs = options.epochs * (2 if method == "ibp" else 1)
    changes: dict[str, Any] = {
        "epochs": epochs, "method": method, "eps": TRAINED,
        "validate_every": max(1.0, epochs / 8),
    }  # fmt: skip
    if method == "pgd":
        changes["attack_steps"] = 1
    if method != "ibp":  # bounds want the last digits
        changes["precision"] = options.precision
    config = preset("ann", "default", **changes)
    return trained(folder / "ann", train, config, "cifar_vgg", {"layers": LAYERS})


def snn_of(
    folder: Path, method: Method, train: ImageDataset, options: argparse.Namespace
) -> SpikingClassifier:
    """Its spiking network."""
    steps, epochs = options.timesteps, options.finetune_epochs
    fields = {"timesteps": steps, "reset": "soft", "scale": "auto", "batches": options.batches}
    base = folder / f"t{steps}-converted"
    snn = converted(base, folder / "ann", train, fields)
    if method == "ibp" or not epochs:
        return snn
    changes: dict[str, Any] = {
        "epochs": epochs, "method": method, "eps": TRAINED, "attack_steps": 1,
        "precision": options.precision,
    }  # fmt: skip
    config = preset("finetune", "default", **changes)
    return finetuned(folder / f"t{steps}", base, train, config)


def purifier_of(path: Path, classifier: Any, train: ImageDataset, epochs: int) -> Purifier:
    """Trained on the adversarial images of `classifier`, from OUT where it is done."""
    if not path.exists():
        torch.manual_seed(0)
        purifier = Purifier()
        train_purifier(purifier, train, classifier, eps=EPS[-1], epochs=epochs)
        save_purifier(purifier, path)
    return load_purifier(path)


def kept(
    path: Path,
    model: Any,
    images: ImageDataset,
    read: Any,
    settings: dict[str, Any],
    make: Callable[[], Any],
) -> Any:
    """The measurement at `path` where it is of these weights, images and settings, else made and
    written there."""
    if path.exists():
        found = read(path.read_text(encoding="utf-8"))
        if (
            found.model.weights_sha256 == weights_sha256(model)
            and found.dataset == dataset_facts(images, len(images))
            and settings.items() <= found.settings.model_dump().items()
        ):
            return found
    made = make()
    write_atomic(path, made.to_json())
    return made


def strong(path: Path, model: Any, images: ImageDataset, others: dict[str, Any]) -> Report:
    """Under strong, also by transfer from `others`, from its report where that is done."""
    hashes = {name: weights_sha256(other) for name, other in others.items()}
    return kept(
        path,
        model,
        images,
        Report.from_json,
        {"protocol": str(PROTOCOLS["strong"]), "eps": EPS, "transfer": hashes},
        lambda: evaluate(
            model,
            images,
            protocol="strong",
            eps=EPS,
            transfer=others or None,
            journal=path.with_name(f"{path.stem}.{len(images)}.partial"),
            batch_size=50,
        ),
    )


def rows(options: argparse.Namespace) -> Iterator[tuple[list[str], list[str]]]:
    """A row of each table for every network, as soon as it is measured."""
    train = load_dataset(options.data, "train")
    train = train.first(options.training_images) if options.training_images else train
    images = load_dataset(options.data, "test").first(options.images)
    for method in options.only or METHODS:
        folder = options.out / method
        ann = ann_of(folder, method, train, options)
        snn = snn_of(folder, method, train, options)
        for name, model in (("ann", ann), (f"t{options.timesteps}", snn)):
            kind = "ANN" if model is ann else f"T={options.timesteps}"
            source = {} if model is ann else {"ann": ann}
            path = folder / f"purifier-{name}.safetensors"
            purifier = purifier_of(path, model, train, options.purifier_epochs)
            behind = purified(purifier, model)
            alone = strong(folder / f"{name}.strong.json", model, images, source)
            # what breaks the network by itself may break it behind the purifier, too
            others = {**source, "alone": model}
            both = strong(folder / f"{name}.purified.json", behind, images, others)
            bounds = kept(
                folder / f"{name}.bounds.json",
                model,
                images,
                IntervalCertificate.model_validate_json,
                {"eps": CERTIFIED, "attempts": 20},
                lambda model=model: certify_intervals(model, images, eps=CERTIFIED, batch_size=128),
            )
            smooth = kept(
                folder / f"{name}.smoothing.json",
                model,
                images,
                Certificate.model_validate_json,
                {"sigma": SIGMA, "n0": 20, "n": options.samples},
                lambda model=model: certify(model, images, sigma=SIGMA, n0=20, n=options.samples),
            )
            yield (
                [method, kind, *cells(alone), *cells(both)],
                [
                    method,
                    kind,
                    str(bounds.clean),
                    *(str(at.certified) for at in bounds.results),
                    str(bounds.results[1].surviving),
                    str(smooth.smoothed),
                    *(str(at.accuracy) for at in smooth.curve[2:5:2]),  # σ/4 apart
                ],
            )


def cells(report: Report) -> list[str]:
    """Clean and joint robust accuracies."""
    return [str(report.clean), *(str(joint.accuracy) for joint in report.joint)]


def table(header: list[str], lines: list[list[str]]) -> str:
    """Of Markdown."""
    text = ["| " + " | ".join(row) + " |" for row in (header, *lines)]
    return "\n".join([text[0], "|---" * len(header) + "|", *text[1:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/other-defences"))
    parser.add_argument("--only", nargs="*", choices=list(METHODS), help="default all")
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=8, help="of each ANN, of ibp twice as many")
    parser.add_argument("--finetune-epochs", type=float, default=0.3)
    parser.add_argument("--batches", type=int, default=4, help="of 64 images, for the thresholds")
    parser.add_argument("--purifier-epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=200, help="of smoothing, at least 60")
    add_precision(parser)
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--training-images", type=int, help="the first so many only")
    options = parser.parse_args()
    eps = [eps_name(value) for value in EPS]
    attacked = ["training", "network", "clean", *(f"{value}, strong" for value in eps)]
    attacked += ["purified: clean", *(f"purified: {value}, strong" for value in eps)]
    radii = [f"certified at {eps_name(value)}" for value in CERTIFIED]
    certified = ["training", "network", "clean", *radii, f"not broken at {eps_name(CERTIFIED[1])}"]
    certified += ["smoothed"]
    certified += [f"smoothed, certified at l2 {at * SIGMA / 4:g}" for at in (2, 4)]
    found: tuple[list[list[str]], list[list[str]]] = ([], [])
    try:
        for attack_row, certificate_row in rows(options):
            found[0].append(attack_row)
            found[1].append(certificate_row)
            text = table(attacked, found[0]) + "\n" + table(certified, found[1])
            write_atomic(options.out / "table.md", text)
        print(text, end="")
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
