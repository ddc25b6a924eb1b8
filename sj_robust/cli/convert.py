"""convert: an ANN becomes a spiking checkpoint."""

from __future__ import annotations

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
from sj_robust.cli.fields import takes
from sj_robust.cli.options import (
    Args,
    Builder,
    Mean,
    Pretrained,
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
from sj_robust.recipes.spec import CalibratedConversion

INSPECTED = 64  # images the report looks at


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app, "convert", "sj-robust convert runs/ann --data cifar10 --timesteps 4 --out runs/snn"
    )(convert)


@takes(CalibratedConversion, flags={"timesteps": ("--timesteps", "-T")})
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
    settings: dict[str, Any],
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
    from sj_robust.settings import checked

    conversion = checked(CalibratedConversion, settings)
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
        conversion,
        dataset,
        out,
        seed=seed,
        source={**facts, "command": command_line()},
        builder=model,
        builder_args=ann_settings.args or (begun.config.model_args if begun else {}),
        device=where,
    )
    some = calibration_indices(dataset, conversion.batches, conversion.batch_size, seed=seed)[
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
