"""certify: radii within which nothing changes the answer, of the network itself or of one smoothed
from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from sj_robust.cli.common import (
    Data,
    Device,
    Json,
    Seed,
    budget,
    command,
    distance,
    pick_device,
    say,
    usage,
)
from sj_robust.cli.measure import (
    BatchSize,
    MaxImages,
    MaybeCheckpointName,
    Model,
    Out,
    SplitName,
    check_report_file,
    load_both,
    recorded_in,
    shown,
    write,
)
from sj_robust.cli.options import Args, Resize, SameClasses, Size

# the options that one method alone takes
_OF = {"smoothing": ("sigma", "n0", "n", "alpha"), "ibp": ("eps", "attempts")}
_NEEDED = {"smoothing": "sigma", "ibp": "eps"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app, "certify", "sj-robust certify runs/snn --data cifar10 --sigma 0.25 --max-images 100"
    )(certify)


def certify(
    checkpoint: MaybeCheckpointName = None,
    *,
    data: Data,
    method: Annotated[
        Literal["smoothing", "ibp"],
        typer.Option(
            "--method",
            help=(
                "smoothing: l2 radii of the classifier that votes over noisy copies; ibp: interval"
                " bounds on the network itself, l∞."
            ),
        ),
    ] = "smoothing",
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            parser=distance,
            metavar="SIGMA",
            help="Smoothing needs it: standard deviation of the noise, on images in [0,1].",
        ),
    ] = None,
    n0: Annotated[
        int | None,
        typer.Option(
            "--n0", min=1, help="Noisy copies of an image that choose its class; by default 100."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            help="Fresh noisy copies that test it, by default 1000; more give larger radii.",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha", help="Probability, per image, that its radius is wrong; by default 0.001."
        ),
    ] = None,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            "--eps",
            parser=budget,
            metavar="EPS",
            help="Ibp needs it: radius, once or several times.",
        ),
    ] = None,
    attempts: Annotated[
        int | None,
        typer.Option(
            "--attempts",
            min=0,
            help="Of ibp: random points, and PGD steps, that try to contradict it; by default 20.",
        ),
    ] = None,
    max_images: MaxImages = None,
    batch_size: BatchSize = 256,
    split: SplitName = "test",
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    model: Model = None,
    arg: Args = None,
    out: Out = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Write the accuracies to certificates.json in the checkpoint folder."
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Certify l2 radii by randomised smoothing (Cohen, Rosenfeld & Kolter, 2019), or l∞ ones by
    interval bounds (Gowal et al., 2018).

    The radii of smoothing hold for the smoothed classifier, which answers by a vote over noisy
    copies of an image, and not for the network itself; a network that was not trained with Gaussian
    noise gets small ones. Interval bounds hold for the network itself; of one that was not trained
    for them (train-ann --method ibp) they show next to nothing.
    """
    given = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "eps": eps, "attempts": attempts}
    typed = {name: value for name, value in given.items() if value is not None}
    if odd := next((name for name in typed if name not in _OF[method]), None):
        usage(f"--{odd} is not of --method {method}: leave one of them out")
    if _NEEDED[method] not in typed:
        usage(f"--method {method} needs --{_NEEDED[method]}")
    from sj_robust.evaluation import certify as certify_smoothed
    from sj_robust.evaluation import certify_intervals

    target = recorded_in(checkpoint, record)
    check_report_file(out)
    where = pick_device(device)
    classifier, dataset = load_both(
        target or checkpoint, data, split, image_size, resize, model, arg, same_classes
    )
    measure: Any = certify_smoothed if method == "smoothing" else certify_intervals
    certificate = measure(
        classifier,
        dataset,
        **typed,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        device=where,
    )
    with shown(certificate, as_json):
        write(certificate, out)
        if target:
            file = target.record(certified=certificate.certified())[0]
            say(f"recorded: {file}; sj-robust card {target.folder} writes it into the card")
