"""certify: radii within which nothing changes the answer of the smoothed classifier."""

from __future__ import annotations

from typing import Annotated

import typer

from sj_robust.cli.common import Data, Device, Json, Seed, command, fraction, pick_device
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
        app, "certify", "sj-robust certify runs/snn --data cifar10 --sigma 0.25 --max-images 100"
    )(certify)


def certify(
    checkpoint: MaybeCheckpointName = None,
    *,
    data: Data,
    sigma: Annotated[
        float,
        typer.Option(
            "--sigma",
            parser=fraction,
            metavar="SIGMA",
            help="Standard deviation of the noise, on images in [0,1].",
        ),
    ],
    n0: Annotated[
        int, typer.Option("--n0", min=1, help="Noisy copies of an image that choose its class.")
    ] = 100,
    n: Annotated[
        int,
        typer.Option("--n", min=1, help="Fresh noisy copies that test it; more give larger radii."),
    ] = 1000,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Probability, per image, that its radius is wrong.")
    ] = 0.001,
    max_images: MaxImages = None,
    batch_size: BatchSize = 256,
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
    """Certify l2 radii by randomised smoothing (Cohen, Rosenfeld & Kolter, 2019).

    The radii hold for the smoothed classifier, which answers by a vote over noisy copies of an
    image, and not for the network itself. A network that was not trained with Gaussian noise gets
    small ones.
    """
    from sj_robust.evaluation.certificate import certify as measure

    check_report_file(out)
    where = pick_device(device)
    classifier, dataset = load_both(
        checkpoint, data, split, image_size, resize, model, arg, same_classes
    )
    certificate = measure(
        classifier,
        dataset,
        sigma=sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        device=where,
    )
    with shown(certificate, as_json):
        write(certificate, out)
