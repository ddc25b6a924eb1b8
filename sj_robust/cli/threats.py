"""threats: what a backdoored network does with its trigger, and what finds or removes it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sj_robust.cli.common import Data, Device, Json, command, pick_device, say, usage, words
from sj_robust.cli.measure import (
    BatchSize,
    MaxImages,
    MaybeCheckpointName,
    Model,
    Out,
    check_report_file,
    check_words,
    load_both,
    recorded_in,
    shown,
    write,
)
from sj_robust.cli.options import Args, Resize, SameClasses, Size, under_its_names

_OF: dict[str, tuple[str, ...]] = {  # the detectors that each setting is for
    "view": ("cleanse",),
    "steps": ("cleanse",),
    "most_lost": ("pruning",),
    "training_images": ("cleanse", "clustering", "pruning"),
}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "threats", "sj-robust threats runs/snn --data cifar10 --max-images 1000 --record")(
        threats
    )


def threats(
    checkpoint: MaybeCheckpointName = None,
    *,
    data: Data,
    poison: Annotated[
        str | None,
        typer.Option(
            "--poison",
            help=(
                "What the training set was poisoned with, as of train-ann, such as"
                " patch:3:rate=0.05:target=0; without it, and --seed, what the checkpoint records."
            ),
        ),
    ] = None,
    detect: Annotated[
        str,
        typer.Option(
            "--detect",
            metavar="D,D",
            help="cleanse, clustering, pruning, all or none; on training images.",
        ),
    ] = "all",
    view: Annotated[
        str | None,
        typer.Option("--view", help="The gradient view of Neural Cleanse; default: PCW:1."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Of Neural Cleanse, for each class; default: 300."),
    ] = None,
    most_lost: Annotated[
        float | None,
        typer.Option("--most-lost", help="Of the accuracy, by pruning; default: 0.04."),
    ] = None,
    training_images: Annotated[
        int | None,
        typer.Option(
            "--training-images",
            min=1,
            help="The first so many for the detectors; default: 2000.",
        ),
    ] = None,
    max_images: MaxImages = None,
    batch_size: BatchSize = 128,
    image_size: Size = None,
    resize: Resize = None,
    same_classes: SameClasses = False,
    model: Model = None,
    arg: Args = None,
    out: Out = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write it into the checkpoint folder, for its card.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            help="With which --poison chose the images, and of the detectors; default: 0.",
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a backdoor: clean accuracy and attack success after every time step.

    Then whether Neural Cleanse and activation clustering find it, and what pruning leaves of it.
    train-ann and finetune make a backdoored network with --poison.
    """
    from sj_robust.catalog import locate
    from sj_robust.data import load_dataset
    from sj_robust.errors import SJRobustError
    from sj_robust.recipes.network import poison_of
    from sj_robust.settings import checked
    from sj_robust.threats import DETECTORS, PoisonFacts, measure_threats
    from sj_robust.threats.measure import check_detectors
    from sj_robust.threats.poison import parse_poison

    named: dict[str, Any] = {"all": DETECTORS, "none": ()}
    detectors: Any = named[detect] if detect in named else words(detect)
    try:
        check_detectors(detectors)
        if poison is not None:
            parse_poison(poison)
    except SJRobustError as error:
        usage(str(error))
    given = {
        "view": view,
        "steps": steps,
        "most_lost": most_lost,
        "training_images": training_images,
    }
    typed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in typed:
        if not set(_OF[name]) & set(detectors):
            usage(
                f"--{name.replace('_', '-')} is for {' or '.join(_OF[name])}, which --detect"
                f" {detect} leaves out: leave one of them out"
            )
    check_words(views=None if view is None else [view])
    target = recorded_in(checkpoint, record)
    check_report_file(out)
    where = pick_device(device)
    found = target or (locate(checkpoint) if checkpoint else None)
    if poison is None:
        if found is None or found.config.poison is None:
            usage("no poison is recorded: name one, as --poison patch:3:target=0")
        if seed is not None:
            usage(f"--seed goes with --poison: the recorded one has seed {found.config.poison[1]}")
        poison, seed = found.config.poison
    classifier, dataset = load_both(
        found, data, "test", image_size, resize, model, arg, same_classes
    )
    facts = poison_of(found.config).get("poison_facts") if found else None
    recorded = checked(PoisonFacts, facts, f"the poison of {checkpoint}: ") if facts else None
    training = None
    if detectors:
        training = load_dataset(data, "train", image_size=image_size, resize=resize)
        training = under_its_names(training, classifier, same_classes)
        training = training.in_channels(dataset.images.shape[1])
    report = measure_threats(
        classifier,
        dataset,
        poison,
        training=training,
        recorded=recorded,
        detect=detectors,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed or 0,
        device=where,
        **typed,
    )
    with shown(report, as_json):
        write(report, out)
        if target:
            file = target.record(threats=report)[0]
            say(f"recorded: {file}; sj-robust card {target.folder} writes it into the card")
