"""show: one image, its adversarial one, and the spikes that both make, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sj_robust.cli import common
from sj_robust.cli.common import (
    Device,
    Json,
    Seed,
    budget,
    command,
    pick_device,
    print_json,
    say,
    usage,
)
from sj_robust.cli.measure import (
    MaybeCheckpointName,
    Model,
    SplitName,
    check_words,
    load_both,
    load_one,
    recorded_in,
)
from sj_robust.cli.options import Args, Resize, SameClasses, Size
from sj_robust.files import check_file, write_atomic
from sj_robust.text import visible

if TYPE_CHECKING:
    from torch import Tensor

    from sj_robust.evaluation.shown import Shown


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    example = "sj-robust show resnet20-snn-t4.cifar10_linf_pgd --label ship --out ship.png"
    command(app, "show", example)(show)


def show(
    checkpoint: MaybeCheckpointName = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="The picture to write, FILE.png.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Keep it in the checkpoint, for its card."),
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="A PNG, JPEG or WebP to attack, in place of --data."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="As of evaluate; without it sample, the embedded images."),
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(
            "--index",
            min=0,
            help="Which of its images; without it the first that is classified rightly.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="CLASS",
            help=(
                "Name or number: the class of --image (default: what the network takes it for), or"
                " of the image to look for in --data."
            ),
        ),
    ] = None,
    eps: Annotated[
        float, typer.Option("--eps", parser=budget, metavar="EPS", help="Radius of the attack.")
    ] = "8/255",  # type: ignore[assignment]  # parsed
    attack: Annotated[
        str,
        typer.Option("--attack", help="As in --attacks of evaluate, through the views of strong."),
    ] = "rotating50",
    split: SplitName = "test",
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    model: Model = None,
    arg: Args = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw an image, its adversarial one and what differs, with the logits, and the spikes and
    firing rates of a spiking network on both.

    An image that is wrong as it is is drawn without an attack.
    """
    from sj_robust.checkpoint.config import ATTACKED
    from sj_robust.evaluation.shown import show as attack_and_record

    if image and (data or index is not None or same_classes):
        usage("--image takes the place of data: leave --data, --index and --same-classes out")
    if index is not None and label is not None:
        usage("--index names an image, whose class is known: leave --label out")
    if not (out or record):
        usage("name the picture with --out FILE.png, or keep it in the checkpoint with --record")
    if out:
        check_file(out)
        if out.suffix.lower() != ".png":
            usage(f"--out {str(out)!r} is no FILE.png")
    check_words(attacks=[attack])
    if recorded := recorded_in(checkpoint, record):
        check_file(recorded.folder / ATTACKED)
    where = pick_device(device)
    if image:
        classifier, pixels = _of_file(checkpoint, image, image_size, resize, model, arg)
        place: dict[str, Any] = {"file": str(image)}
        known: dict[str, Any] = {"label": label}
    else:
        classifier, pixels, place, known = _of_data(
            *load_both(
                checkpoint, data or "sample", split, image_size, resize, model, arg, same_classes
            ),
            index,
            label,
            where,
        )
    found = attack_and_record(
        classifier, pixels, eps=eps, attack=attack, seed=seed, device=where, **known
    )
    name = checkpoint or str(model)
    told = " ".join(str(value) for value in place.values())
    # a card goes to strangers, who need no paths of this machine
    title = f"{Path(name).name} on {image.name if image else told}"
    try:
        if out:
            found.save(out, title)
            say(f"picture: {out}")
        if recorded:
            write_atomic(recorded.folder / ATTACKED, found.png(title, dpi=100))  # as wide as a card
            say(f"recorded: sj-robust card {recorded.folder} writes it into the card")
    finally:  # the disk may have filled up meanwhile
        if as_json:
            print_json({"model": name, "image": place, **_facts(found)})
        else:
            common.show(f"{visible(name, 100)} on {visible(told, 200)}: {found.summary()}")


def _of_file(
    checkpoint: str | None,
    image: Path,
    image_size: int | None,
    resize: int | None,
    model: str | None,
    arg: list[str] | None,
) -> tuple[Any, Tensor]:
    """The classifier, and the image in the size and channels that it takes."""
    from sj_robust.catalog import locate
    from sj_robust.data import load_image

    found = locate(checkpoint) if checkpoint else None
    classifier = load_one(found, model, arg)
    channels, height, width = (found and found.config.input_size) or (3, 0, 1)
    if image_size is None and height == width:
        image_size = height
    pixels = load_image(
        image, image_size=image_size, resize=resize, channels=1 if channels == 1 else 3
    )
    return classifier, pixels


def _of_data(
    classifier: Any, dataset: Any, index: int | None, label: str | None, device: Any
) -> tuple[Any, Tensor, dict[str, Any], dict[str, Any]]:
    """The classifier, one image of the data set, where it stands, and what is known of it."""
    from sj_robust.data import in_order_of
    from sj_robust.errors import SJRobustError
    from sj_robust.evaluation.shown import first_right

    dataset = in_order_of(classifier, dataset)
    if index is None:
        index = first_right(classifier.to(device), dataset, label)
    if index >= len(dataset):
        raise SJRobustError(
            f"--index is {index}: expected 0 to {len(dataset) - 1}, the images of {dataset.name}"
            f" {dataset.split}"
        )
    place = {"dataset": dataset.name, "split": dataset.split, "index": index}
    known = {
        "label": int(dataset.labels[index]),
        "index": index,
        "classes": dataset.classes,
    }
    return classifier, dataset.floats([index])[0], place, known


def _facts(found: Shown) -> dict[str, Any]:
    before, after = (
        {"label": label, "class": found.classes[label], "margin": margin}
        for label, margin in zip(found.predictions, found.margins, strict=True)
    )
    return {
        "label": found.label,
        "class": found.classes[found.label],
        "eps": found.eps,
        "attack": found.attack,
        "views": found.views,
        "seed": found.seed,
        "before": before,
        "after": after,
        "right": found.right,
        "broken": found.broken,
        "distance": found.distance,
        "rates": {name: list(rates) for name, rates in found.rates().items()},
    }
