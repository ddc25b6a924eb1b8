"""The options that training and conversion share."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sj_robust.cli.common import usage
from sj_robust.files import legible
from sj_robust.masking import masked

RESUME = "the same command with --resume goes on from the last saved state"

PresetOption = Annotated[
    Literal["default", "paper"],
    typer.Option("--preset", help="Settings that the other options change."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in OUT.training; start it where there is none."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--image-size", min=1, help="Cut out the centre square of so many pixels, after resizing."
    ),
]
Resize = Annotated[
    int | None,
    typer.Option(
        "--resize",
        min=1,
        help="Pixels of the short side before, such as 256 for 224; without it --image-size.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="A weight file (.safetensors, .pt, .pth) to load.")
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download timm's own weights.")]
Builder = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODULE:FUNCTION", help="A function of yours that returns the network."
    ),
]
Args = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="KEY=VALUE",
        help="An argument of the architecture or function, such as shortcut=identity; repeatable.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M,M,M",
        help=(
            "Channel means that the network was trained with; the default is the named data set's."
        ),
    ),
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="S,S,S", help="The same for standard deviations.")
]

SameClasses = Annotated[
    bool,
    typer.Option(
        "--same-classes",
        help="The classes of the data are the network's, in the same order, whatever their names.",
    ),
]


def under_its_names(dataset: Any, model: Any, same_classes: bool) -> Any:
    """The data set, under the class names of the network where --same-classes says so."""
    if not same_classes:
        return dataset
    if not getattr(model, "classes", None):
        usage("--same-classes compares names, and the network has none recorded: leave it out")
    return dataset.with_classes(model.classes)


def zoo_names(incomplete: str) -> list[str]:
    """The zoo models whose names begin so, for a shell that completes a CHECKPOINT; files and
    folders it completes by itself."""
    from sj_robust.errors import SJRobustError
    from sj_robust.files import zoo_root

    try:
        return sorted(
            path.stem for path in zoo_root().glob("*.yaml") if path.stem.startswith(incomplete)
        )
    except SJRobustError:
        return []


def arguments(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs as keyword arguments; a VALUE that is JSON (2, true, [1, 2]) is read as such,
    anything else as text."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals):
            usage(f"--arg {pair!r} is not KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def one_of(name: object, model: str | None) -> None:
    """Wrong usage unless one of the two was given."""
    if name is None and model is None:
        usage("give either a network by name or --model MODULE:FUNCTION")


def command_line() -> str:
    """The command as it was typed, for the record, without the secrets in it."""
    return masked("sj-robust " + legible(shlex.join(sys.argv[1:])))
