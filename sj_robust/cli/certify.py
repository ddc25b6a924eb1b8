"""certify: radii within which nothing changes the answer of the smoothed classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sj_robust.cli.common import Data, Device, Json, Seed, command, fraction, pick_device, say
from sj_robust.cli.options import Args, arguments


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "certify", "sj-robust certify runs/snn --data cifar10 --sigma 0.25 --max-images 100")(certify)


def certify(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder or zoo name, spiking or not.")],
    *,
    data: Data,
    sigma: Annotated[
        float, typer.Option("--sigma", parser=fraction, metavar="SIGMA", help="Standard deviation of the noise, on images in [0,1].")
    ],
    n0: Annotated[int, typer.Option("--n0", min=1, help="Noisy copies of an image that choose its class.")] = 100,
    n: Annotated[int, typer.Option("--n", min=1, help="Fresh noisy copies that test it; more give larger radii.")] = 1000,
    alpha: Annotated[float, typer.Option("--alpha", help="Probability, per image, that its radius is wrong.")] = 0.001,
    max_images: Annotated[int | None, typer.Option("--max-images", min=1, help="The first so many images only.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 256,
    split: Annotated[str, typer.Option("--split", help="test or train.")] = "test",
    image_size: Annotated[int | None, typer.Option("--image-size", min=1)] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODULE:FUNCTION", help="Builds the network of a checkpoint that timm cannot.")
    ] = None,
    arg: Args = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the certificate, as JSON, to this file.")] = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Certify l2 radii by randomised smoothing (Cohen, Rosenfeld & Kolter, 2019).

    The radii hold for the smoothed classifier, which answers by a vote over noisy copies of an image, and not for the network
    itself. A network that was not trained with Gaussian noise gets small ones.
    """
    from sj_robust.data import load_dataset
    from sj_robust.evaluate.certificate import certify as measure
    from sj_robust.files import write_atomic
    from sj_robust.hub import load
    from sj_robust.source import call_builder

    where = pick_device(device)
    classifier = load(checkpoint, model=call_builder(model, arguments(arg)) if model else None)
    certificate = measure(
        classifier,
        load_dataset(data, split, image_size=image_size),  # type: ignore[arg-type]
        sigma=sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        device=where,
    )
    if out:
        write_atomic(out, certificate.to_json())
        say(f"certificate: {out}")
    print(certificate.to_json().rstrip() if as_json else certificate.summary())
