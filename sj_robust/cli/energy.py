"""energy and latency: what a spiking network costs, and how fast it answers."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sj_robust.cli.common import Data, Device, Json, Seed, budget, command, pick_device, say
from sj_robust.cli.measure import (
    BatchSize,
    MaybeCheckpointName,
    Model,
    Out,
    SplitName,
    check_report_file,
    check_words,
    load_both,
    recorded_in,
    shown,
    write,
)
from sj_robust.cli.options import Args, Resize, SameClasses, Size, zoo_names

if TYPE_CHECKING:
    from sj_robust.catalog import Checkpoint
    from sj_robust.data import ImageDataset
    from sj_robust.evaluation.energy import Energy
    from sj_robust.evaluation.report import Report

Spiking = Annotated[
    str, typer.Argument(help="A spiking checkpoint folder or zoo name.", autocompletion=zoo_names)
]
Images = Annotated[
    int | None,
    typer.Option(
        "--max-images", min=1, help="The first so many images; by default 256, or all there are."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, "energy", "sj-robust energy runs/snn --data cifar10")(energy)
    command(app, "latency", "sj-robust latency runs/snn --data cifar10 --eps 8/255")(latency)


def energy(
    checkpoint: MaybeCheckpointName = None,
    *,
    data: Data,
    max_images: Images = None,
    batch_size: BatchSize = 64,
    split: SplitName = "test",
    image_size: Size = None,
    resize: Resize = None,
    model: Model = None,
    arg: Args = None,
    out: Out = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Put the estimate into the evaluation recorded in the checkpoint."
        ),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Count the additions and multiplications of one inference, and estimate their energy beside
    the ANN's.

    A layer that sees spikes adds (AC), one that sees anything else multiplies (MAC). The estimate
    is for 32-bit floats in 45 nm CMOS and leaves out memory traffic.
    """
    from sj_robust.evaluation.energy import measure_energy

    target = recorded_in(checkpoint, record)
    check_report_file(out)
    where = pick_device(device)
    classifier, dataset = load_both(
        target or checkpoint, data, split, image_size, resize, model, arg
    )
    report = _evaluation_on(dataset, classifier, target.folder) if target else None
    measured = measure_energy(
        classifier, dataset, max_images=max_images, batch_size=batch_size, device=where
    )
    with shown(measured, as_json):
        write(measured, out)
        if target and report:
            _record(target, report, measured)


def _evaluation_on(dataset: ImageDataset, model: Any, folder: Path) -> Report:
    """The evaluation recorded in `folder`, which has to be on the same data: asked before the work.

    It may have been made with the labels mapped to the network's, or under its names.
    """
    from sj_robust.checkpoint.config import EVALUATION
    from sj_robust.checkpoint.results import read_report
    from sj_robust.data import in_order_of
    from sj_robust.errors import SJRobustError

    report = read_report(folder / EVALUATION)
    same = {dataset.fingerprint}
    with warnings.catch_warnings(), suppress(SJRobustError):  # for other names: labels as they are
        warnings.simplefilter("ignore")  # energy asks for no labels
        same.add(in_order_of(model, dataset).fingerprint)
    if report is None or report.dataset.fingerprint not in same:
        found = (
            "no evaluation"
            if report is None
            else f"one on {report.dataset.name} {report.dataset.split}"
        )
        raise SJRobustError(
            f"{folder} holds {found}, expected one on {dataset.name} {dataset.split}: "
            "run sj-robust evaluate --record on the same data first"
        )
    return report


def _record(target: Checkpoint, report: Report, measured: Energy) -> None:
    file = target.record(report=report.model_copy(update={"energy": measured.estimate()}))[0]
    say(f"recorded: {file}; sj-robust card {target.folder} writes it into the card")


def latency(
    checkpoint: Spiking,
    *,
    data: Data,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            "--eps",
            parser=budget,
            metavar="EPS",
            help="Radius of attacks, once or several times; without it none.",
        ),
    ] = None,
    attack: Annotated[
        str | None, typer.Option("--attack", help="As in --attacks of evaluate; without it pgd10.")
    ] = None,
    view: Annotated[
        str | None,
        typer.Option("--view", help="The gradient view it runs through; without it PCW:1."),
    ] = None,
    max_images: Images = None,
    robust_images: Annotated[
        int | None,
        typer.Option(
            "--robust-images",
            min=1,
            help="The first so many of these are attacked; by default 64, or all.",
        ),
    ] = None,
    batch_size: BatchSize = 64,
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
    """Measure clean and robust accuracy after each time step.

    With --eps the network truncated to t steps is attacked for every t, each with its own
    gradients, and judged by its own spikes.
    """
    from sj_robust.evaluation.latency import measure_latency

    check_words(
        attacks=None if attack is None else [attack], views=None if view is None else [view]
    )
    check_report_file(out)
    where = pick_device(device)
    classifier, dataset = load_both(
        checkpoint, data, split, image_size, resize, model, arg, same_classes
    )
    measured = measure_latency(
        classifier,
        dataset,
        eps=eps or (),
        attack=attack,
        view=view,
        max_images=max_images,
        robust_images=robust_images,
        batch_size=batch_size,
        seed=seed,
        device=where,
    )
    with shown(measured, as_json):
        write(measured, out)
