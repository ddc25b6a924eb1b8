"""corruptions: accuracy on noisy, blurred, foggy and otherwise corrupted images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sj_robust.cli.common import Data, Device, Json, Seed, command, pick_device, say, usage, words
from sj_robust.cli.options import Args, arguments


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "corruptions", "sj-robust corruptions runs/snn --data cifar10 --severities 1,3,5 --max-images 1000")(corruptions)


def corruptions(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder or zoo name, spiking or not.")],
    *,
    data: Data,
    names: Annotated[
        str, typer.Option("--names", metavar="N,N", help="Corruptions such as gaussian_noise,fog,jpeg_compression, or all (14).")
    ] = "all",
    severities: Annotated[str, typer.Option("--severities", metavar="S,S", help="1 (mild) to 5.")] = "1,2,3,4,5",
    max_images: Annotated[int | None, typer.Option("--max-images", min=1, help="The first so many images only.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 128,
    split: Annotated[str, typer.Option("--split", help="test or train.")] = "test",
    image_size: Annotated[int | None, typer.Option("--image-size", min=1)] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODULE:FUNCTION", help="Builds the network of a checkpoint that timm cannot.")
    ] = None,
    arg: Args = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the report, as JSON, to this file.")] = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy under common corruptions at five severities (Hendrycks & Dietterich, 2019).

    The images are made from the clean ones as CIFAR-10-C was, with its constants; they are not its published files. Frost,
    which needs photographs, is left out.
    """
    from sj_robust.data import load_dataset
    from sj_robust.evaluate.corrupted import evaluate_corruptions
    from sj_robust.files import write_atomic
    from sj_robust.hub import load
    from sj_robust.source import call_builder

    where = pick_device(device)
    levels = [int(word) if word.isdecimal() else usage(f"--severities {word!r} is not a whole number") for word in words(severities)]
    classifier = load(checkpoint, model=call_builder(model, arguments(arg)) if model else None)
    report = evaluate_corruptions(
        classifier,
        load_dataset(data, split, image_size=image_size),  # type: ignore[arg-type]
        names=None if names == "all" else words(names),
        severities=levels,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        device=where,
    )
    if out:
        write_atomic(out, report.to_json())
        say(f"report: {out}")
    print(report.to_json().rstrip() if as_json else report.summary())
