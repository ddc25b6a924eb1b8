"""evaluate and card: what a checkpoint is worth, and saying so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sj_robust.cli.common import (
    Data,
    Device,
    Json,
    Seed,
    command,
    distance,
    pick_device,
    say,
    usage,
    within_linf,
    words,
)
from sj_robust.cli.fields import takes
from sj_robust.cli.measure import (
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
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.settings import EvaluationSettings
from sj_robust.files import check_within

if TYPE_CHECKING:
    from sj_robust.catalog import Checkpoint
    from sj_robust.evaluation.report import Report


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(
        app,
        "evaluate",
        "sj-robust evaluate runs/snn --data cifar10 --protocol strong --eps 8/255 --record",
        again=_again,
    )(evaluate)
    command(app, "card", "sj-robust card runs/snn")(card)


def _again(given: dict[str, Any]) -> str:
    if given.get("out") or given.get("record"):
        return "the same command goes on where it stopped"
    return "nothing was kept: with --out or --record the same command would go on where it stopped"


@takes(EvaluationSettings, leave_out=("eps", "protocol", "attacks", "views"))
def evaluate(
    checkpoint: MaybeCheckpointName = None,
    *,
    data: Data,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            "--eps",
            parser=distance,
            metavar="EPS",
            help="Radius, once or several times; without it 2/255 4/255 8/255 (l2: 0.25 0.5 1).",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="quick, paper, strong or autoattack, in place of --attacks and --views.",
        ),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attacks",
            metavar="A,A",
            help=(
                "fgsm, rfgsm, pgdN, sapgdN-ce|dlr, apgdN-ce|dlr|t, fab, fab-t, rotatingN, squareN,"
                " noiseN, or one+another; without it fgsm,pgd10."
            ),
        ),
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            "--views",
            metavar="V,V",
            help="Gradient views such as PCW:1,ASSG,rate,activation,own, or all (19).",
        ),
    ] = "all",
    transfer: Annotated[
        list[str] | None,
        typer.Option(
            "--transfer",
            metavar="CHECKPOINT",
            autocompletion=zoo_names,
            help="A model whose gradients are tried as well, once or several times.",
        ),
    ] = None,
    settings: dict[str, Any],
    grid: Annotated[
        Literal["8bit"] | None,
        typer.Option(
            "--grid",
            help="Adversarial images of 256 values, as files hold them: a figure beside the first.",
        ),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            min=0,
            metavar="SECONDS",
            help="Stop attacking then, with what is known.",
        ),
    ] = None,
    every_view: Annotated[
        bool,
        typer.Option(
            "--every-view",
            help="Attack all images through every view, not only those still standing.",
        ),
    ] = False,
    split: SplitName = "test",
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    model: Model = None,
    arg: Args = None,
    out: Out = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            "--extend",
            metavar="REPORT",
            help="Take over what this report found on fewer images; attack the others.",
        ),
    ] = None,
    save_adversarial: Annotated[
        Path | None,
        typer.Option(
            "--save-adversarial",
            metavar="FOLDER",
            help="Also keep the adversarial image of each image that falls, as EPS/INDEX.npy.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FOLDER", help="Also draw the figures into this folder."),
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Write it into the checkpoint folder, beside other protocols'."
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure clean accuracy, and robust accuracy against every attack through every gradient view.

    Without a protocol FGSM and PGD-10 run through all 19 views at each eps, which takes hours where
    --protocol quick takes minutes. Ends with checks for masked gradients and a verdict. Under
    torchrun the processes share the images.

    An image counts as robust only if it survives all of them, judged by the true spiking forward
    pass. With --out or --record what is done is kept beside the report, and the same command goes
    on there after an interruption. A report that is in the file of --out is not measured again, but
    extended where there are more images, and never replaced by another evaluation's.
    """
    from sj_robust import evaluate as measure
    from sj_robust import load
    from sj_robust.checkpoint.config import BESIDE, EVALUATION, GRID
    from sj_robust.distributed import rank
    from sj_robust.evaluation.figures import draw_figures
    from sj_robust.evaluation.journal import remove_journal
    from sj_robust.evaluation.judge import image_count
    from sj_robust.model import SpikingModel

    for value in (eps or ()) if settings["norm"] == "linf" else ():
        within_linf(value, f"--eps {value:g}")
    if protocol is not None and attacks is not None:
        usage(f"--protocol {protocol} says which attacks run: leave --attacks out")
    named_attacks = None if attacks is None else words(attacks)
    named_views = None if views == "all" else words(views)
    check_words(protocol, named_attacks, named_views, settings["norm"])
    check_report_file(out)
    if plot:
        check_within(plot)
    recorded = recorded_in(checkpoint, record)
    folder = recorded.folder if recorded else None
    kept = out or (folder and folder / (BESIDE[GRID] if grid else EVALUATION))
    if grid and folder and not (folder / EVALUATION).exists():
        raise SJRobustError(
            f"{folder} has no evaluation that one of 8-bit images could stand beside: record one"
            " without --grid first"
        )
    journal = kept and Path(f"{kept}.partial")
    earlier = _report(extend) if extend else None
    if out and out.exists():
        try:
            earlier = _report(out)
        except SJRobustError as error:
            raise SJRobustError(f"{error}, into another --out: this file is kept") from None
    where = pick_device(device)
    classifier, dataset = load_both(
        recorded or checkpoint, data, split, image_size, resize, model, arg, same_classes
    )
    if named_views is not None and not isinstance(classifier, SpikingModel):
        named_views = None
        say(
            "this is no spiking network of convert or from_spikingjelly, and so has its own"
            " gradient alone: --views is left aside"
        )
    if recorded:
        _check_not_fewer(recorded, protocol, grid, image_count(dataset, settings["max_images"]))
    report = measure(
        classifier,
        dataset,
        protocol=protocol,
        transfer={name: load(name) for name in transfer or ()},
        grid=grid,
        time_limit=time_limit,
        eps=eps or None,
        attacks=named_attacks,
        views=named_views,
        survivors_only=not every_view,
        seed=seed,
        journal=journal,
        extend=earlier,
        adversarial=save_adversarial,
        device=where,
        **settings,
    )
    if rank():
        return  # of several processes the first one speaks
    with shown(report, as_json):
        if report is not earlier:
            write(report, out and Path(os.path.realpath(out)))
        if recorded:
            file = recorded.record(report=report)[0]
            say(f"recorded: {file}; sj-robust card {folder} writes it into the card")
        if plot:
            for figure in draw_figures(report, plot):
                say(f"figure: {figure}")
        if journal and report.stopped:
            say("the same command goes on there, with another --time-limit or none")
        elif journal:
            remove_journal(journal)


def _check_not_fewer(recorded: Checkpoint, protocol: str | None, grid: str | None, n: int) -> None:
    """Raise SJRobustError, before the work, where it would take the place of one of more images."""
    from sj_robust.checkpoint.results import protocol_of

    for there in recorded.reports():
        same = protocol_of(there.settings.protocol) == protocol_of(protocol)
        if same and there.settings.grid == grid and there.dataset.evaluated > n:
            raise SJRobustError(
                f"{recorded.folder} records this for {there.dataset.evaluated} images, which {n}"
                " would take the place of: measure as many, or keep these with --out"
            )


def _report(path: Path) -> Report:
    from sj_robust.checkpoint.results import read_report

    report = read_report(path)
    if report is None:
        raise SJRobustError(
            f"{path} does not exist: --extend takes the JSON that --out or --record wrote"
        )
    return report


def card(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.")],
) -> None:
    """Write the model card README.md, and its plot, from what the checkpoint folder records; prints
    the card's path."""
    from sj_robust.card import write_card

    print(write_card(folder))
