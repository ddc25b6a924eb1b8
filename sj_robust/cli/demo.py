"""demo: the main job on embedded images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sj_robust.cli.common import Device, Seed, command, console, pick_device, say
from sj_robust.files import check_within


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "demo",
        "sj-robust demo --out /tmp/demo",
        again="the same command goes on from the last saved state",
    )(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="The folder to write; delete it to do everything again.")
    ] = Path("runs/demo"),
    ann: Annotated[
        str | None,
        typer.Option(
            "--ann", help="Another CIFAR-10 ANN to start from: a checkpoint folder or zoo name."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Convert the embedded robust ANN, finetune it briefly on the embedded images and measure all
    of it: a few minutes on 2 cores."""
    check_within(out)
    say("loading torch ...")
    from sj_robust import demo as it

    result = it.demo(out, ann=ann or it.ANN, seed=seed, device=pick_device(device), say=say)
    shown = console()
    shown.print(it.table(result))
    shown.print(it.explain(result.snn_report), markup=False, highlight=False)
    for what, path in (
        ("checkpoint", result.checkpoint),
        ("card", result.checkpoint / "README.md"),
        ("plot", result.checkpoint / "figures" / "accuracy.png"),
    ):
        shown.print(f"{what:<10}  {path}", markup=False, soft_wrap=True)
    if all(state == "kept" for state in result.stages.values()):
        say(
            f"nothing had changed since the last run, so all of it was kept; delete {out} to do it"
            " again"
        )
