"""convert: an ANN becomes a spiking checkpoint."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from sj_robust.cli.common import (
    Data,
    Device,
    Json,
    Out,
    Seed,
    command,
    numbers,
    pick_device,
    print_json,
    say,
)
from sj_robust.cli.options import (
    Args,
    Builder,
    Mean,
    Norm,
    Pretrained,
    Reset,
    Resize,
    SameClasses,
    Size,
    Std,
    Weights,
    arguments,
    command_line,
    one_of,
    under_its_names,
)

INSPECTED = 64  # images the report looks at


class Replace(StrEnum):
    relu = "relu"


class Pooling(StrEnum):
    max = "max"
    average = "average"


def factor(text: str) -> float | str:
    """A number, or auto; anything else is wrong usage."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number: expected a factor, or auto") from None


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app, "convert", "sj-robust convert runs/ann --data cifar10 --timesteps 4 --out runs/snn"
    )(convert)


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, zoo name, owner/name of the Hub, or timm name.",
        ),
    ] = None,
    *,
    data: Data,
    out: Out,
    model: Builder = None,
    arg: Args = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    mean: Mean = None,
    std: Std = None,
    timesteps: Annotated[
        int, typer.Option("--timesteps", "-T", min=1, help="T, the steps of one inference.")
    ] = 8,
    percentile: Annotated[
        float,
        typer.Option(
            "--percentile", min=0, max=100, help="Of a node's input, becomes its threshold."
        ),
    ] = 99.7,
    scale: Annotated[
        Any,
        typer.Option(
            "--scale",
            parser=factor,
            metavar="FACTOR",
            help="On all thresholds, or auto: each layer's own.",
        ),
    ] = "0.3",
    calibration_timesteps: Annotated[int, typer.Option("--calibration-timesteps", min=1)] = 100,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Calibration batches.")] = 11,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images in each.")] = 64,
    norm: Annotated[
        Norm,
        typer.Option(
            "--norm", help="Batch norm: kept as a layer, folded into the layer before, or left out."
        ),
    ] = Norm.integrate,
    reset: Annotated[
        Reset, typer.Option("--reset", help="To zero, or by subtracting the threshold.")
    ] = Reset.hard,
    leak: Annotated[
        float,
        typer.Option(
            "--leak", min=0, max=1, help="Factor on the potential from step to step; 1 is no leak."
        ),
    ] = 1.0,
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="One threshold per channel.")
    ] = False,
    replace_activation: Annotated[
        Replace | None,
        typer.Option(
            "--replace-activation",
            help=(
                "Convert activations other than ReLU (ReLU6, SiLU, GELU, ...) as if they were ReLU."
            ),
        ),
    ] = None,
    pooling: Annotated[
        Pooling,
        typer.Option(
            "--pooling", help="Max pooling: kept (an OR of spikes), or made average pooling."
        ),
    ] = Pooling.max,
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Convert an ANN into a spiking network: its weights, batch norms and calibrated firing
    thresholds. OUT becomes the checkpoint.

    A report tells which layers spike and how much, what stays analogue, and how far the logits are
    from the ANN's.
    """
    one_of(source, model)
    from sj_robust.conversion import inspect_conversion
    from sj_robust.data import calibration_indices, in_order_of, load_dataset
    from sj_robust.recipes import steps
    from sj_robust.recipes.network import begun_from, facts_of, from_text, open_ann
    from sj_robust.recipes.spec import CalibratedConversion, checked

    settings = checked(
        CalibratedConversion,
        {
            "timesteps": timesteps,
            "percentile": percentile,
            "scale": scale,
            "calibration_timesteps": calibration_timesteps,
            "batches": batches,
            "batch_size": batch_size,
            "norm": norm.value,
            "reset": reset.value,
            "leak": leak,
            "per_channel": per_channel,
            "replace_activation": replace_activation and replace_activation.value,
            "pooling": pooling.value,
        },
    )
    ann_settings = from_text(
        source,
        model=model,
        args=arguments(arg),
        weights=weights and str(weights),
        pretrained=pretrained,
        mean=numbers(mean),
        std=numbers(std),
    )
    steps.check_out(out)
    where = pick_device(device)
    dataset = load_dataset(data, "train", image_size=image_size, resize=resize)
    begun = begun_from(ann_settings)
    ann = open_ann(ann_settings, dataset, begun, seed=seed, same_classes=same_classes)
    dataset = in_order_of(ann, under_its_names(dataset, ann, same_classes)).in_channels(
        len(ann.mean)
    )
    facts: dict[str, Any] = (
        facts_of(begun.config)
        if begun
        else {
            key: value
            for key, value in ann_settings.model_dump(
                include={"architecture", "model", "weights"}
            ).items()
            if value
        }
    )
    snn = steps.make_converted(
        ann,
        settings,
        dataset,
        out,
        seed=seed,
        source={**facts, "command": command_line()},
        builder=model,
        device=where,
    )
    some = calibration_indices(dataset, settings.batches, settings.batch_size, seed=seed)[
        :INSPECTED
    ]
    report = inspect_conversion(snn, dataset.floats(some).to(where), ann, dataset.labels[some])
    if json:
        print_json({"checkpoint": str(out), "report": report.model_dump(mode="json")})
        return
    say(report.summary())
    say(
        f"{out}: spiking, T={snn.timesteps}, thresholds {min(snn.thresholds().values()):.3g} to"
        f" {max(snn.thresholds().values()):.3g}"
    )
    print(out)
