"""corruptions: accuracy on noisy, blurred, foggy and otherwise corrupted images."""

from __future__ import annotations

from typing import Annotated

import typer

from sj_robust.cli.common import Data, Device, Json, Seed, command, pick_device, usage, words
from sj_robust.cli.measure import (
    BatchSize,
    MaxImages,
    MaybeCheckpointName,
    Model,
    Out,
    SplitName,
    check_report_file,
    load_both,
    shown,
    write,
)
from sj_robust.cli.options import Args, Resize, SameClasses, Size


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "corruptions",
        "sj-robust corruptions runs/snn --data cifar10 --severities 1,3,5 --max-images 1000",
    )(corruptions)


def corruptions(
    checkpoint: MaybeCheckpointName = None,
    *,
    data: Data,
    names: Annotated[
        str,
        typer.Option(
            "--names",
            metavar="N,N",
            help="Corruptions such as gaussian_noise,fog,jpeg_compression, or all (14).",
        ),
    ] = "all",
    severities: Annotated[
        str, typer.Option("--severities", metavar="S,S", help="1 (mild) to 5.")
    ] = "1,2,3,4,5",
    max_images: MaxImages = None,
    batch_size: BatchSize = 128,
    split: SplitName = "test",
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    model: Model = None,
    arg: Args = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy under common corruptions at five severities (Hendrycks & Dietterich, 2019).

    The images are made from the clean ones as CIFAR-10-C was, with its constants; they are not its
    published files. Frost, which needs photographs, is left out.
    """
    from sj_robust.evaluation.corrupted import evaluate_corruptions

    check_report_file(out)
    where = pick_device(device)
    levels = [
        int(word) if word.isdecimal() else usage(f"--severities {word!r} is not a whole number")
        for word in words(severities)
    ]
    classifier, dataset = load_both(
        checkpoint, data, split, image_size, resize, model, arg, same_classes
    )
    report = evaluate_corruptions(
        classifier,
        dataset,
        names=None if names == "all" else words(names),
        severities=levels,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        device=where,
    )
    with shown(report, as_json):
        write(report, out)
