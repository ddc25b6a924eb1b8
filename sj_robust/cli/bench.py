"""bench: what a spiking network costs here, as ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sj_robust.cli.common import Json, command, print_table, say, words


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "bench", "sj-robust bench --arch cifar_resnet20 --timesteps 8 --tasks train,pgd10 --out bench.json")(bench)


def bench(
    *,
    arch: Annotated[str, typer.Option("--arch", help="A timm architecture for 3-channel images.")] = "cifar_resnet20",
    timesteps: Annotated[int, typer.Option("--timesteps", min=1)] = 8,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    tasks: Annotated[str, typer.Option("--tasks", metavar="T,T", help="Some of train, rfgsm, finetune, pgd10, balance.")] = (
        "train,rfgsm,finetune,pgd10,balance"
    ),
    sides: Annotated[
        str, typer.Option("--sides", metavar="S,S", help="Some of ann, spikingjelly, loop, torch, cpu, cupy; default all that work here.")
    ] = "",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed rounds, after one that warms up.")] = 5,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of torch; 0 is its own choice.")] = 0,
    contiguous: Annotated[bool, typer.Option("--contiguous", help="NCHW memory on all sides; the default is channels_last.")] = False,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Also write the report, as JSON, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Time training, attacks and threshold balancing of a spiking network against T times its ANN and against plainer nodes.

    The sides take turns, one process each. Leave the machine alone meanwhile.
    """
    from sj_robust.benchmark import SIDES
    from sj_robust.benchmark import bench as measure
    from sj_robust.files import write_atomic

    report = measure(
        architecture=arch,
        timesteps=timesteps,
        batch_size=batch_size,
        tasks=tuple(words(tasks)),
        sides=tuple(words(sides)),
        repeats=repeats,
        threads=threads,
        channels_last=not contiguous,
        device=device,
    )
    if out:
        write_atomic(out, report.to_json())
        say(f"report: {out}")
    if as_json:
        print(report.to_json().rstrip())
        return
    settings, machine = report.settings, report.machine
    what = f"{settings.architecture}, T={settings.timesteps}, batch {settings.batch_size}"
    columns = ["task", "side", "median", "range", "images/s", "× (T × ANN)", "faster than loop", "peak memory"]
    print_table(f"{what}, {machine['threads']} threads, {machine['processor']}", columns, report.rows())
    for side in settings.sides:
        print(f"{side}: {SIDES[side]}")
    if report.threshold_difference is not None:
        print(f"balance: the sides' thresholds differ by at most {report.threshold_difference:.1e}")
    print(f"median and range of {settings.repeats} interleaved rounds; torch {report.versions['torch']}, allocator {machine['allocator']}")
