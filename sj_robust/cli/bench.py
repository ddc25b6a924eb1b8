"""bench: what a spiking network costs here, as ratios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sj_robust.cli.common import Json, command, print_json, print_table, say, words
from sj_robust.files import check_file, write_atomic

if TYPE_CHECKING:
    from sj_robust.benchmark import BenchReport


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "bench",
        "sj-robust bench --arch cifar_resnet20 --timesteps 8 --tasks train,pgd10 --out bench.json",
    )(bench)


def bench(
    *,
    arch: Annotated[
        str, typer.Option("--arch", help="A timm architecture for 3-channel images.")
    ] = "cifar_resnet20",
    timesteps: Annotated[int, typer.Option("--timesteps", min=1)] = 8,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", metavar="T,T", help="Some of train, rfgsm, finetune, pgd10, balance."
        ),
    ] = "train,rfgsm,finetune,pgd10,balance",
    sides: Annotated[
        str,
        typer.Option(
            "--sides",
            metavar="S,S",
            help="Some of ann, spikingjelly, loop, torch, cpu, cupy; default all that work here.",
        ),
    ] = "",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed rounds, after one that warms up.")
    ] = 5,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Of torch; 0 is its own choice.")
    ] = 0,
    contiguous: Annotated[
        bool,
        typer.Option(
            "--contiguous", help="NCHW memory on all sides; the default is channels_last."
        ),
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", min=1, help="Bring the images, of 32 pixels, to this size."),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="float32, bf16 or fp16, of train, rfgsm and finetune; not of pgd10."
        ),
    ] = "float32",
    device: Annotated[str, typer.Option("--device")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the report, as JSON, to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time training, attacks and threshold balancing of a spiking network against T times its ANN
    and against plainer nodes.

    The sides take turns, one process each. Leave the machine alone meanwhile. It says how long it
    will take, and each row as it comes; stopped before the end, it shows and writes what is known.
    """
    from sj_robust.benchmark import bench as measure

    if out:
        check_file(out)
    known: list[BenchReport] = []

    def keep(report: BenchReport) -> None:
        known[:] = [report]
        if out:
            write_atomic(out, report.to_json())

    try:
        measure(
            architecture=arch,
            timesteps=timesteps,
            batch_size=batch_size,
            tasks=tuple(words(tasks)),
            sides=tuple(words(sides)),
            repeats=repeats,
            threads=threads,
            channels_last=not contiguous,
            image_size=image_size,
            precision=precision,
            device=device,
            say=say,
            so_far=keep,
        )
    finally:
        if known:  # all, or what was known when it was stopped
            _show(known[0], out, as_json)


def _show(report: BenchReport, out: Path | None, as_json: bool) -> None:
    from sj_robust.benchmark import SIDES

    if out:
        say(f"report: {out}")
    if as_json:
        print_json(json.loads(report.to_json()))
        return
    settings, machine = report.settings, report.machine
    what = f"{settings.architecture}, T={settings.timesteps}, batch {settings.batch_size}"
    if settings.image_size:
        what += f", {settings.image_size} pixels"
    if settings.precision != "float32":
        what += f", {settings.precision}"
    columns = [
        "task",
        "side",
        "median",
        "range",
        "images/s",
        "× (T × ANN)",
        "faster than loop",
        "peak memory",
    ]
    print_table(
        f"{what}, {machine['threads']} threads, {machine['processor']}", columns, report.rows()
    )
    for side in settings.sides:
        print(f"{side}: {SIDES[side]}")
    if report.threshold_difference is not None:
        print(f"balance: the sides' thresholds differ by at most {report.threshold_difference:.1e}")
    rounds = min(len(measured.seconds) for measured in report.measurements)
    stopped = "" if rounds == settings.repeats else f" (stopped: {rounds} at least)"
    print(
        f"median and range of {settings.repeats} interleaved rounds{stopped}; "
        f"torch {report.versions['torch']}, allocator {machine['allocator']}"
    )
