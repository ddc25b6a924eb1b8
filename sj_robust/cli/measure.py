"""What the commands that measure a checkpoint share: options, loading, and showing the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sj_robust.cli.common import say, show_json, show_text, usage
from sj_robust.cli.options import arguments, one_of, under_its_names, zoo_names
from sj_robust.files import check_file, check_within, write_atomic

if TYPE_CHECKING:
    from sj_robust.catalog import Checkpoint
    from sj_robust.evaluation.report import Measurement

CheckpointName = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder or zoo name, spiking or not.", autocompletion=zoo_names
    ),
]
MaybeCheckpointName = Annotated[
    str | None,
    typer.Argument(
        help="A checkpoint folder or zoo name, spiking or not; none where --model builds all.",
        autocompletion=zoo_names,
        metavar="CHECKPOINT",
        show_default=False,
    ),
]
MaxImages = Annotated[
    int | None, typer.Option("--max-images", min=1, help="The first so many images only.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1)]
SplitName = Annotated[str, typer.Option("--split", help="test or train.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FUNCTION",
        help=(
            "Builds the network of a checkpoint that timm cannot; without CHECKPOINT a classifier"
            " of images in [0,1], weights and all."
        ),
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Also write the result, as JSON, to this file.")
]


def check_words(
    protocol: str | None = None,
    attacks: list[str] | None = None,
    views: list[str] | None = None,
    norm: Literal["linf", "l2"] = "linf",
) -> None:
    """Wrong usage, before anything is loaded, where one of them is none."""
    from sj_robust.errors import SJRobustError
    from sj_robust.evaluation.plan import check_names

    try:
        check_names(protocol, attacks or (), views, norm)
    except SJRobustError as error:
        usage(str(error))


def load_one(checkpoint: str | Checkpoint | None, model: str | None, arg: list[str] | None) -> Any:
    """The classifier of a checkpoint, or what the user's function returns."""
    from sj_robust.catalog import locate
    from sj_robust.model import expose
    from sj_robust.recipes.network import call_builder, load_with

    one_of(checkpoint, model)
    if arg and not model:
        usage("--arg is for the function of --model, and there is none: leave it out")
    found = locate(checkpoint) if isinstance(checkpoint, str) else checkpoint
    if found is None:
        return expose(call_builder(model or "", arguments(arg)))
    return expose(load_with(found, model, arguments(arg)))


def load_both(
    checkpoint: str | Checkpoint | None,
    data: str,
    split: str,
    image_size: int | None,
    resize: int | None,
    model: str | None,
    arg: list[str] | None,
    same_classes: bool = False,
) -> tuple[Any, Any]:
    """The classifier and the data set: of a checkpoint, or what the user's function returns."""
    from sj_robust.data import load_dataset
    from sj_robust.model import NormalizedClassifier
    from sj_robust.recipes.normalisation import look_at

    classifier = load_one(checkpoint, model, arg)
    dataset = load_dataset(data, split, image_size=image_size, resize=resize)  # type: ignore[arg-type]
    dataset = under_its_names(dataset, classifier, same_classes)
    if isinstance(classifier, NormalizedClassifier):
        return classifier, dataset.in_channels(len(classifier.mean))
    return classifier, look_at(classifier, dataset).dataset


def recorded_in(checkpoint: str | None, record: bool) -> Checkpoint | None:
    """The checkpoint that --record writes into, None without it; wrong usage where there is none.

    Raises SJRobustError, before the work, where nothing can be written there.
    """
    if not record:
        return None
    if not checkpoint:
        usage("--record writes into a CHECKPOINT, and there is none: keep the result with --out")
    from sj_robust.catalog import locate
    from sj_robust.checkpoint import zoo

    found = locate(checkpoint)
    check_within(found.folder)
    if zoo.holds(found.folder):
        say(
            f"{checkpoint} is the zoo's own, whose table changes with it; sj-robust pull"
            f" {checkpoint} --to FOLDER makes a copy to record in"
        )
    return found


def check_report_file(out: Path | None) -> None:
    """Raise SJRobustError, before the work, where the result could not be written."""
    if out:
        check_file(out)


def write(measured: Measurement, out: Path | None) -> None:
    """The result into the file, if one is named."""
    if out:
        write_atomic(out, measured.to_json())
        say(f"result: {out}")


def show(measured: Any, as_json: bool) -> None:
    """The result on stdout, as text or as JSON."""
    if as_json:
        show_json(measured.to_json())
    else:
        show_text(measured.summary())


@contextmanager
def shown(measured: Any, as_json: bool) -> Iterator[None]:
    """Show the result after the block that writes it, and also where that fails: the disk may have
    filled up meanwhile."""
    try:
        yield
    finally:
        show(measured, as_json)
