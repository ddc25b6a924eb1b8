"""run: all stages of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sj_robust.cli.common import Device, Json, command, pick_device, print_json, say, show_text


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "run",
        "sj-robust run recipes/resnet20-snn-t4.cifar10_linf_pgd.yaml --out runs/resnet20-snn-t4",
        again="the same command goes on from the last saved state",
    )(run)


def run(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A YAML file; recipe.yaml of a checkpoint it made is one."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of all stages; without it runs/NAME.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A name or path in place of the recipe's data set.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODULE:FUNCTION",
            help="Consent to the code that the recipe names as ann.model: the same name.",
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Do all stages of one model: ANN, conversion, finetuning, evaluation of both, card.

    What is there and unchanged is skipped, so that after an interruption the same command goes on.
    Under torchrun the processes share training and evaluation, and the first one converts and
    writes.
    """
    from sj_robust.distributed import rank
    from sj_robust.recipes.run import run as run_recipe
    from sj_robust.recipes.spec import read_recipe

    read = read_recipe(recipe)
    result = run_recipe(
        read,
        out or Path("runs") / read.name,
        data=data,
        model=model,
        device=pick_device(device),
        say=say,
    )
    if rank():
        return  # of several processes the first one speaks
    if as_json:
        print_json(
            {"checkpoint": str(result.checkpoint), "ann": str(result.ann), "stages": result.stages}
        )
        return
    show_text(f"{result.ann_report.summary()}\n\n{result.snn_report.summary()}")
    print(f"\n{result.checkpoint}")
