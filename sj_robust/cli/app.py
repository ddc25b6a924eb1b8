"""The typer app: what its commands are."""

from __future__ import annotations

from typing import Annotated

import typer

from sj_robust import __version__
from sj_robust.cli import (
    bench,
    certify,
    compare,
    convert,
    corruptions,
    demo,
    doctor,
    energy,
    evaluate,
    export,
    hub,
    models,
    run,
    show,
    threats,
    train,
)

app = typer.Typer(
    name="sj-robust",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Adversarially robust spiking networks for SpikingJelly: convert a robust ANN, finetune,"
        " measure."
    ),
    epilog=(
        "Exit codes: 0 success, 1 a failure named in one line, 2 wrong usage. Results go to stdout,"
        " progress to stderr."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `sj-robust` itself."""


for _group in (
    models,
    hub,
    compare,
    train,
    convert,
    evaluate,
    energy,
    certify,
    corruptions,
    threats,
    show,
    export,
    run,
    bench,
    demo,
    doctor,
):
    _group.add_to(app)
