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
    fraction,
    numbers,
    pick_device,
    print_json,
    say,
    usage,
)
from sj_robust.cli.options import (
    RESUME,
    Args,
    AttackLossOption,
    AugmentOption,
    BatchSize,
    Beta,
    Budget,
    Builder,
    CropScale,
    Ema,
    Epochs,
    GradientPenalty,
    Held,
    Mean,
    MethodOption,
    PrecisionOption,
    Preset,
    PresetOption,
    Pretrained,
    Rate,
    Resize,
    Resume,
    SameClasses,
    Size,
    Std,
    Steps,
    arguments,
    command_line,
    one_of,
    under_its_names,
    zoo_names,
)


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
    preset: PresetOption = Preset.default,
    method: MethodOption = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    eps: Budget = None,
    attack_steps: Steps = None,
    attack_loss: AttackLossOption = None,
    beta: Beta = None,
    gradient_penalty: GradientPenalty = None,
    augmentation: AugmentOption = None,
    crop_scale: CropScale = None,
    ema: Ema = None,
    precision: PrecisionOption = None,
    validation: Held = None,
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a ReLU network: natural, PGD, TRADES or MART adversarial training.

    OUT becomes its checkpoint; the state to resume from, the log and the curves go to OUT.training.
    Under torchrun the processes share every batch.
    """
    one_of(architecture, model)
    from sj_robust.data import load_dataset
    from sj_robust.distributed import rank
    from sj_robust.recipes import steps
    from sj_robust.recipes.network import begun_from, from_text, open_ann
    from sj_robust.training import preset as named

    config = named(
        "ann",
        preset.value,
        method=method and method.value,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        eps=eps,
        attack_steps=attack_steps,
        attack_loss=attack_loss and attack_loss.value,
        beta=beta,
        gradient_penalty=gradient_penalty,
        augmentation=augmentation and augmentation.value,
        crop_scale=crop_scale,
        ema=ema,
        precision=precision and precision.value,
        validation=validation,
        seed=seed,
    )
    steps.check_out(out)
    where = pick_device(device)
    dataset = load_dataset(data, "train", image_size=image_size, resize=resize)
    settings = from_text(
        architecture,
        model=model,
        args=arguments(arg),
        weights=init and str(init),
        pretrained=pretrained,
        mean=numbers(mean),
        std=numbers(std),
        train=config,
    )
    begun = begun_from(settings)
    ann = open_ann(settings, dataset, begun, seed=seed, same_classes=same_classes)
    dataset = under_its_names(dataset, ann, same_classes).in_channels(len(ann.mean))
    result = steps.make_ann(
        ann, settings, dataset, out, begun, resume=resume, device=where, command=command_line()
    )
    if not rank():  # of several processes the first one speaks
        _report(out, result, as_json)


def finetune(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A spiking checkpoint folder or zoo name.", autocompletion=zoo_names),
    ],
    *,
    data: Data,
    out: Out,
    preset: PresetOption = Preset.default,
    method: MethodOption = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    eps: Budget = None,
    attack_steps: Steps = None,
    attack_loss: AttackLossOption = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            parser=fraction,
            metavar="EPS",
            help="RFGSM's random step; the default is eps/2.",
        ),
    ] = None,
    beta: Beta = None,
    gradient_penalty: GradientPenalty = None,
    consistency: Annotated[
        float | None,
        typer.Option(
            "--consistency",
            min=0,
            help="Weight of the divergence of each time step's prediction from that of all.",
        ),
    ] = None,
    fixed_thresholds: Annotated[
        bool, typer.Option("--fixed-thresholds", help="Keep the firing thresholds as converted.")
    ] = False,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing", help="Recompute blocks in the backward pass, to save memory."
        ),
    ] = False,
    augmentation: AugmentOption = None,
    crop_scale: CropScale = None,
    ema: Ema = None,
    precision: PrecisionOption = None,
    validation: Held = None,
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
    from sj_robust import load
    from sj_robust.data import load_dataset
    from sj_robust.distributed import rank
    from sj_robust.errors import SJRobustError
    from sj_robust.model import SpikingModel
    from sj_robust.recipes import steps
    from sj_robust.recipes.network import call_builder
    from sj_robust.training import preset as named

    config = named(
        "finetune",
        preset.value,
        method=method and method.value,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        eps=eps,
        attack_steps=attack_steps,
        attack_loss=attack_loss and attack_loss.value,
        alpha=alpha,
        beta=beta,
        gradient_penalty=gradient_penalty,
        consistency=consistency,
        learn_thresholds=False if fixed_thresholds else None,
        checkpointing=checkpointing or None,
        augmentation=augmentation and augmentation.value,
        crop_scale=crop_scale,
        ema=ema,
        precision=precision and precision.value,
        validation=validation,
        seed=seed,
    )
    steps.check_out(out)
    where = pick_device(device)
    if arg and not model:
        usage("--arg is for the function of --model, and there is none: leave it out")
    snn = load(checkpoint, model=call_builder(model, arguments(arg)) if model else None)
    if not isinstance(snn, SpikingModel):
        raise SJRobustError(f"{checkpoint} is an ANN: convert it first with sj-robust convert")
    dataset = load_dataset(data, "train", image_size=image_size, resize=resize)
    dataset = under_its_names(dataset, snn, same_classes).in_channels(len(snn.mean))
    result = steps.make_finetuned(
        snn,
        config,
        dataset,
        out,
        resume=resume,
        builder=model,
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
    robust = "" if best.robust is None else f", robust {100 * best.robust:.1f} %"
    say(
        f"{result.steps} steps in {result.seconds:.0f} s ({result.images_per_second:.0f} images/s);"
        f" best on {result.validation_images} held-out images at step {best.step}: clean"
        f" {100 * best.clean:.1f} %{robust}"
    )
    print(out)
