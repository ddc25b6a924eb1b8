"""export: a checkpoint for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sj_robust.cli.common import Json, command, usage
from sj_robust.cli.measure import CheckpointName, Model, show
from sj_robust.cli.options import Args, Size, arguments
from sj_robust.files import check_file


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "export",
        "sj-robust export resnet20-snn-t4.cifar10_linf_pgd --format nir --out resnet20.nir",
    )(export)


def export(
    checkpoint: CheckpointName,
    *,
    format: Annotated[
        Literal["nir", "onnx", "torch"],
        typer.Option(
            "--format",
            help=(
                "nir: one step, for spiking simulators and chips. onnx, torch: all steps in one"
                " plain network."
            ),
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The file to write; one that exists is replaced.")
    ],
    dt: Annotated[
        float | None,
        typer.Option("--dt", help="nir: the time step of whoever runs it, by default 1."),
    ] = None,
    image_size: Size = None,
    model: Model = None,
    arg: Args = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a NIR graph, an ONNX file or a torch.export program.

    A NIR graph (extra nir) holds one time step, with batch norms folded: feed it the image in [0,1]
    at each of T steps, and take the mean of the logits. What NIR cannot say (soft reset, max
    pooling, gates) is refused. An ONNX file (extra export) and a torch.export program map images in
    [0,1] to logits in one pass.
    """
    from sj_robust.catalog import locate
    from sj_robust.export import export_nir, export_onnx, export_torch
    from sj_robust.recipes.network import load_with

    if dt is not None and format != "nir":
        usage(f"--dt is for --format nir: a file in the format {format} has no time step")
    check_file(out)
    found = locate(checkpoint)
    network = load_with(found, model, arguments(arg))
    size = found.config.input_size
    if image_size is not None:
        size = [len(network.mean), image_size, image_size]
    if format == "nir":
        done = export_nir(network, out, input_size=size, dt=1.0 if dt is None else dt)  # type: ignore[arg-type]
    else:
        done = (export_onnx if format == "onnx" else export_torch)(network, out, input_size=size)
    show(done, as_json)
