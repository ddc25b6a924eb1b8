"""train-ann and finetune: adversarial training of a network before and after its conversion."""

from __future__ import annotations

from pathlib import Path
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
    usage,
)
from sj_robust.cli.fields import takes
from sj_robust.cli.options import (
    RESUME,
    Args,
    Builder,
    Mean,
    PresetOption,
    Pretrained,
    Resize,
    Resume,
    SameClasses,
    Size,
    Std,
    arguments,
    command_line,
    one_of,
    under_its_names,
    zoo_names,
)
from sj_robust.evaluation.words import eps_name
from sj_robust.training.config import PRESETS, TrainConfig

# of a network that spikes alone
SPIKING = ("consistency", "learn_thresholds", "threshold_min")
FLAGS = {"learn_thresholds": ("--learn-thresholds/--fixed-thresholds",)}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(
        app,
        "train-ann",
        "sj-robust train-ann cifar_resnet20 --data cifar10 --method pgd --eps 8/255 --out runs/ann",
        again=RESUME,
    )(train_ann)
    command(
        app,
        "finetune",
        "sj-robust finetune runs/snn --data cifar10 --epochs 2 --out runs/robust-snn",
        again=RESUME,
    )(finetune)


@takes(TrainConfig, preset=PRESETS["ann"]["default"], leave_out=("seed", *SPIKING))
def train_ann(
    architecture: Annotated[
        str | None,
        typer.Argument(
            metavar="ARCH", help="A timm architecture, or the checkpoint of an ANN to go on from."
        ),
    ] = None,
    *,
    data: Data,
    out: Out,
    model: Builder = None,
    arg: Args = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="A weight file to start from.")
    ] = None,
    pretrained: Pretrained = False,
    mean: Mean = None,
    std: Std = None,
    preset: PresetOption = "default",
    settings: dict[str, Any],
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a ReLU network: natural, PGD, TRADES or MART adversarial training, or interval bounds.

    OUT becomes its checkpoint; the state to resume from, the log and the curves go to OUT.training.
    Under torchrun the processes share every batch.
    """
    one_of(architecture, model)
    from sj_robust.data import load_dataset
    from sj_robust.distributed import rank
    from sj_robust.recipes import steps
    from sj_robust.recipes.network import begun_from, from_text, open_ann
    from sj_robust.training import preset as named

    config = named("ann", preset, seed=seed, **settings)
    steps.check_out(out, resume=resume)
    where = pick_device(device)
    dataset = load_dataset(data, "train", image_size=image_size, resize=resize)
    source = from_text(
        architecture,
        model=model,
        args=arguments(arg),
        weights=init and str(init),
        pretrained=pretrained,
        mean=numbers(mean),
        std=numbers(std),
        train=config,
    )
    begun = begun_from(source)
    ann = open_ann(source, dataset, begun, seed=seed, same_classes=same_classes)
    dataset = under_its_names(dataset, ann, same_classes).in_channels(len(ann.mean))
    result = steps.make_ann(
        ann, source, dataset, out, begun, resume=resume, device=where, command=command_line()
    )
    if not rank():  # of several processes the first one speaks
        _report(out, result, as_json)


@takes(TrainConfig, preset=PRESETS["finetune"]["default"], leave_out=("seed",), flags=FLAGS)
def finetune(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A spiking checkpoint folder or zoo name.", autocompletion=zoo_names),
    ],
    *,
    data: Data,
    out: Out,
    preset: PresetOption = "default",
    settings: dict[str, Any],
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    model: Builder = None,
    arg: Args = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Finetune a converted network adversarially: its weights, batch norms and firing thresholds
    (--preset paper: the TMLR 2024 settings).

    OUT becomes its checkpoint; the state to resume from, the log and the curves go to OUT.training.
    Under torchrun the processes share every batch.
    """
    from sj_robust.catalog import locate
    from sj_robust.data import load_dataset
    from sj_robust.distributed import rank
    from sj_robust.errors import SJRobustError
    from sj_robust.model import SpikingModel
    from sj_robust.recipes import steps
    from sj_robust.recipes.network import load_with
    from sj_robust.training import preset as named

    config = named("finetune", preset, seed=seed, **settings)
    steps.check_out(out, resume=resume)
    where = pick_device(device)
    if arg and not model:
        usage("--arg is for the function of --model, and there is none: leave it out")
    found = locate(checkpoint)
    snn = load_with(found, model, arguments(arg))
    if not isinstance(snn, SpikingModel):
        raise SJRobustError(f"{checkpoint} is an ANN: convert it first with sj-robust convert")
    dataset = load_dataset(data, "train", image_size=image_size, resize=resize)
    dataset = under_its_names(dataset, snn, same_classes).in_channels(len(snn.mean))
    result = steps.make_finetuned(
        snn,
        config,
        dataset,
        out,
        found.config,
        resume=resume,
        builder=model,
        builder_args=arguments(arg) or found.config.model_args,
        device=where,
        command=command_line(),
    )
    if not rank():
        _report(out, result, as_json)


def _report(out: Path, result: Any, as_json: bool) -> None:
    if as_json:
        print_json({"checkpoint": str(out), **result.model_dump(mode="json")})
        return
    best = result.best
    at = eps_name(result.config.eps)
    robust = "" if best.robust is None else f", robust at {at} {100 * best.robust:.1f} %"
    say(
        f"{result.steps} steps in {result.seconds:.0f} s ({result.images_per_second:.0f} images/s);"
        f" best on {result.validation_images} held-out images at step {best.step}: clean"
        f" {100 * best.clean:.1f} %{robust}"
    )
    print(out)
