"""Backdoors and poisons in an ANN, in the spiking networks converted from it, and what conversion,
finetuning on clean images, fewer time steps and pruning leave of them.

    python scripts/backdoors.py --data PATH_OF_CIFAR10 --out runs/backdoors

For each poison a narrow VGG is trained naturally on the poisoned images, converted at each T, and
finetuned on the clean images, naturally and adversarially. All are measured on the same test
images, with Neural Cleanse, activation clustering and pruning on training images. Then, for each of
--brew test images, poisons are made by gradient matching on a clean network, another network is
trained on them, converted at the last T, and finetuned on the clean images. What is done stays in
OUT: the same command goes on where it was; a network that is there, but of other settings or made
from another one, is refused, and measured again where only the measurement is another. Writes
OUT/table.md after each network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from stages import add_precision, converted, finetuned, trained, weights

from sj_robust import SJRobustError, load_dataset
from sj_robust.data import ImageDataset
from sj_robust.evaluation import Accuracy
from sj_robust.evaluation.facts import model_facts
from sj_robust.files import write_atomic
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.threats import ThreatReport, match_gradients, measure_threats, poisoned
from sj_robust.training import preset

LAYERS = [24, "A", 48, "A", 96, 96, "A"]
POISONS = (
    "patch:3:rate=0.05:target=0",
    "blended:0.1:rate=0.05:target=0",
    "sine:6:0.08:rate=0.05:target=0:labels=clean",
    "flip:rate=0.1",
)
FINETUNED = {"natural": "finetuned", "pgd": "finetuned adversarially"}


def trained_on(
    folder: Path,
    train: ImageDataset,
    options: argparse.Namespace,
    poison: str | None,
    seed: int,
    images: str | None = None,
) -> NormalizedClassifier:
    """The ANN, trained naturally."""
    changes: dict[str, Any] = {
        "method": "natural", "epochs": options.epochs, "lr": 0.1, "poison": poison,
        "validation": options.validation, "validate_every": options.epochs, "seed": seed,
        "precision": options.precision,
    }  # fmt: skip
    config = preset("ann", "default", **changes)
    return trained(folder, train, config, "cifar_vgg", {"layers": LAYERS}, images)


def spiking_of(
    folder: Path, source: Path, train: ImageDataset, timesteps: int, images: str | None = None
) -> SpikingClassifier:
    """The ANN at `source` with so many time steps."""
    fields = {"timesteps": timesteps, "reset": "soft", "scale": "auto", "batches": 4}
    return converted(folder, source, train, fields, images)


def finetuned_by(
    method: str, folder: Path, source: Path, train: ImageDataset, options: argparse.Namespace
) -> SpikingClassifier:
    """The network at `source` after finetuning on `train`."""
    changes: dict[str, Any] = {
        "method": method, "epochs": options.finetune_epochs, "lr": 0.01, "eps": 4 / 255,
        "validation": options.validation, "validate_every": options.finetune_epochs,
        "precision": options.precision,
    }  # fmt: skip
    return finetuned(folder, source, train, preset("finetune", "default", **changes))


def measured(
    folder: Path,
    model: Any,
    poison: str,
    train: ImageDataset,
    test: ImageDataset,
    options: argparse.Namespace,
) -> ThreatReport:
    """From OUT where it is of this network, these images and settings."""
    path = folder.with_name(f"{folder.name}.json")
    if path.exists():
        now = model_facts(model, len(test.classes))
        made, detectors = poisoned(train, poison), min(options.detector_images, len(train))
        report = ThreatReport.from_json(path.read_text(encoding="utf-8"))
        cleanse, pruning, settings = report.cleanse, report.pruning, report.settings
        if (
            (report.model.weights_sha256, report.model.timesteps, report.dataset.fingerprint)
            == (now.weights_sha256, now.timesteps, test.fingerprint)
            and settings.training == made.facts
            and cleanse is not None
            and (cleanse.steps, cleanse.images) == (options.cleanse_steps, detectors)
            and pruning is not None
        ):
            return report
    report = measure_threats(
        model, test, poison, training=train, steps=options.cleanse_steps,
        training_images=options.detector_images,
    )  # fmt: skip
    write_atomic(path, report.to_json())
    return report


def brewed(
    folder: Path, train: ImageDataset, test: ImageDataset, options: argparse.Namespace
) -> dict[str, list[bool]]:
    """By network: which of the images are taken for the class that they were poisoned for."""
    clean = trained_on(folder / "clean", train, options, None, seed=1)
    with torch.no_grad():
        right = (clean(test.floats()).argmax(1) == test.labels).nonzero().flatten().tolist()
    timesteps = options.timesteps[-1]
    found: dict[str, list[bool]] = {}
    for number in right[: options.brew]:
        image, home = test.floats([number]), folder / f"image-{number}"
        target = (int(test.labels[number]) + 1) % len(test.classes)
        made_for = f"{test.subset([number]).fingerprint} in {options.brew_steps} steps"
        images = f"{train.fingerprint} for {made_for} on {weights(folder / 'clean')}"
        data = train
        if not (home / "finetuned").exists():
            data = match_gradients(clean, train, image, target, steps=options.brew_steps).dataset
        ann = trained_on(home / "ann", data, options, None, seed=2, images=images)
        networks = {
            "ANN": ann,
            f"T={timesteps}, converted": spiking_of(
                home / "snn", home / "ann", data, timesteps, images
            ),
            f"T={timesteps}, {FINETUNED['natural']}": finetuned_by(
                "natural", home / "finetuned", home / "snn", train, options
            ),
        }
        for name, model in networks.items():
            with torch.no_grad():
                found.setdefault(name, []).append(int(model(image).argmax(1)) == target)
    return found


def row(name: str, report: ThreatReport) -> str:
    """Of a poison's table."""
    last, fewer = report.last, report.rates[: -1 or None]
    cleanse, clusters, pruning = report.cleanse, report.clustering, report.pruning
    assert cleanse and clusters and pruning
    target = report.settings.poison.partition("target=")[2].partition(":")[0]
    index = f"; {cleanse.classes[int(target)].index:.1f}" if target else ""
    poisons, apart = (sum(getattr(one, key) for one in clusters.classes) for key in KEYS)
    half = fewer[len(report.rates) // 2 - 1] if len(report.rates) > 1 else None
    cells = [
        name,
        str(last.clean),
        str(last.success or "–"),
        str(last.before or "–"),
        "–" if half is None else f"{half.clean}; {half.success or '–'}",
        f"{_list(cleanse.flagged)}{index}",
        f"{_list(clusters.flagged)}; {apart}/{poisons}",
        f"{pruning.rates.clean}; {pruning.rates.success or '–'}",
    ]
    return f"| {' | '.join(cells)} |"


KEYS = ("poisoned", "found")
HEADER = [
    "network", "clean", "attack success", "without trigger",
    "clean; success at half the steps", "Neural Cleanse: flagged; index of the target",
    "clustering: flagged; poisons apart", "pruned: clean; success",
]  # fmt: skip


def _list(labels: list[int]) -> str:
    return ", ".join(map(str, labels)) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/backdoors"))
    parser.add_argument("--poisons", nargs="*", default=list(POISONS), help="as of --poison")
    parser.add_argument("--timesteps", nargs="+", type=int, default=[8, 4])
    parser.add_argument("--train-images", type=int, default=20_000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=12, help="of each ANN")
    parser.add_argument("--finetune-epochs", type=float, default=1)
    parser.add_argument("--validation", type=int, default=500, help="training images held out")
    parser.add_argument("--detector-images", type=int, default=2000, help="of the training images")
    parser.add_argument("--cleanse-steps", type=int, default=100, help="for each class")
    add_precision(parser)
    parser.add_argument("--brew", type=int, default=10, help="images to poison for, one by one")
    parser.add_argument("--brew-steps", type=int, default=60, help="of gradient matching")
    options = parser.parse_args()
    try:
        train = load_dataset(options.data, "train").first(options.train_images)
        test = load_dataset(options.data, "test").first(options.test_images)
        lines: list[str] = []

        def add(poison: str, name: str, folder: Path, model: Any) -> None:
            lines.append(row(name, measured(folder, model, poison, train, test, options)))
            write_atomic(options.out / "table.md", "\n".join(lines) + "\n")

        for poison in options.poisons:
            title = ["", f"`{poison}`", ""] if lines else [f"`{poison}`", ""]
            lines += [*title, f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
            home = options.out / poison.replace(":", "_").replace("=", "")
            ann = trained_on(home / "ann", train, options, poison, seed=0)
            add(poison, "ANN", home / "ann", ann)
            for timesteps in options.timesteps:
                base = home / f"t{timesteps}"
                snn = spiking_of(base, home / "ann", train, timesteps)
                add(poison, f"T={timesteps}, converted", base, snn)
                for method, said in FINETUNED.items():
                    folder = home / f"t{timesteps}-{method}"
                    snn = finetuned_by(method, folder, base, train, options)
                    add(poison, f"T={timesteps}, {said}", folder, snn)
        if options.brew:
            lines += ["", "| gradient matching, network | misclassified as meant |", "|---|---|"]
            for name, hits in brewed(options.out / "brew", train, test, options).items():
                lines.append(f"| {name} | {Accuracy.of(sum(hits), len(hits))} of {len(hits)} |")
            write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
        print("\n".join(lines))
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
