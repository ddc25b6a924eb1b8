"""What the commands share: options, failures in one line, results on stdout. Imports no torch."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sj_robust.budget import number
from sj_robust.errors import SJRobustError, first_line
from sj_robust.files import legible
from sj_robust.signals import Ended
from sj_robust.text import LONGEST, visible, visible_json, visible_lines


def fraction(text: str) -> float:
    """A number or a fraction such as 8/255; anything else is wrong usage (exit code 2)."""
    try:
        return number(text)
    except ValueError as error:
        several = ": for several, give the option once for each" if "," in text else ""
        raise typer.BadParameter(f"{error}{several}") from None


def budget(text: str) -> float:
    """An l-infinity distance on images in [0,1]: above 0, at most 1."""
    value = distance(text)
    within_linf(value, text)
    return value


def distance(text: str) -> float:
    """A distance on images in [0,1] whatever the norm: above 0, finite."""
    value = fraction(text)
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{text!r} is not above 0: write 8/255 or 0.031")
    return value


def within_linf(value: float, text: str) -> None:
    """Wrong usage where an l-infinity distance is above 1."""
    if value > 1:
        raise typer.BadParameter(
            f"{text!r} is not at most 1: images lie in [0,1], so write 8/255, not 8"
        )


def words(text: str) -> list[str]:
    """The parts of a comma-separated list; none at all is wrong usage."""
    parts = [word.strip() for word in text.split(",") if word.strip()]
    if not parts:
        raise typer.BadParameter(f"{text!r} names nothing: name one, or leave the option out")
    return parts


def numbers(text: str | None) -> list[float] | None:
    """The numbers of a comma-separated list; None stays None."""
    return None if text is None else [fraction(word) for word in words(text)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:1; the default is cuda where there is one."),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help=(
            "cifar10, cifar100, svhn, tiny-imagenet, imagenet, sample, or the path of parquet files"
            " or of a folder of images by class."
        ),
    ),
]
Out = Annotated[Path, typer.Option("--out", help="The folder to write.")]


def command(
    app: typer.Typer,
    name: str,
    example: str,
    *,
    again: str | Callable[[dict[str, Any]], str] = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the command `name`, with `example` under its help.

    Its failures, and Ctrl-C with what to do then (`again`, which may depend on the options given),
    are one line on stderr and exit code 1; so is SIGTERM, with 143.
    """

    def advice(given: dict[str, Any]) -> str:
        text = again if isinstance(again, str) else again(given)
        return text and f"; {text}"

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                _check_endpoint()
                function(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except KeyboardInterrupt:
                fail(f"interrupted{advice(kwargs)}")
            except Ended as end:
                fail(f"ended by {end.signal}{advice(kwargs)}", code=int(end.code or 1))
            except SJRobustError as error:
                fail(str(error), error)
            except OSError as error:
                if (
                    error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)
                    and error.filename is None
                ):
                    raise  # of stdout, which main gives up
                fail(_system(error), error)
            except Exception as error:
                fail(_unexpected(error), error)

        return app.command(name, epilog=f"Example: {example}")(guarded)

    return register


def _check_endpoint() -> None:
    """Raise SJRobustError for a Hub's address that huggingface_hub cannot even be imported with: a
    slash in a password ends the host."""
    try:
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    except ValueError:
        raise SJRobustError(
            "HF_ENDPOINT (not shown) is not an address, as its host or port cannot be read: set it"
            " to one such as https://huggingface.co, with %2F, %3F, %23 and %40 for / ? # @ in a"
            " password, or unset it"
        ) from None


def _unexpected(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {' '.join(str(error).split())} (unexpected; set SJ_ROBUST_DEBUG=1"
        " for the traceback)"
    )


def _system(error: OSError) -> str:
    """What the system said, about which file: a full disk, a missing permission."""
    # of a renaming: what it should have become
    file = error.filename if error.filename2 is None else error.filename2
    if error.errno and (error.errno == errno.ENOSPC or isinstance(file, str | bytes | os.PathLike)):
        where = "" if file is None else f"{legible(os.fsdecode(file))}: "
        return f"{where}{os.strerror(error.errno)}"
    return _unexpected(error)


def fail(message: str, error: BaseException | None = None, code: int = 1) -> NoReturn:
    """End with `message` on one line of stderr and this exit code; with SJ_ROBUST_DEBUG set, after
    the traceback of `error`.

    Of several processes that end together, the first one to fail speaks.
    """
    if several_processes():
        from sj_robust.distributed import first_to_fail

        if not first_to_fail():
            raise typer.Exit(code)
    if error is not None and os.environ.get("SJ_ROBUST_DEBUG"):
        print(
            visible_lines("".join(traceback.format_exception(error)).rstrip("\n")), file=sys.stderr
        )
    print(f"sj-robust: {visible(message)}", file=sys.stderr)
    raise typer.Exit(code)


def several_processes() -> bool:
    """Whether torchrun or its like has started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def usage(message: str) -> NoReturn:
    """End as wrong usage: `message` on stderr, exit code 2."""
    raise typer.BadParameter(visible(message))


def say(text: str) -> None:
    """News on stderr, where it does not mix with results."""
    print(visible_lines(text), file=sys.stderr, flush=True)


def show(line: str, longest: int = LONGEST) -> None:
    """One line of a result on stdout, whatever names of others stand in it."""
    print(visible(line, longest))


def show_text(text: str) -> None:
    """A result of several lines on stdout; its text is laid out by us, names of others in it are
    one line already."""
    print(visible_lines(text))


def print_json(value: Any) -> None:
    """JSON on stdout, indented (no wrapping, no colour)."""
    show_json(json.dumps(value, indent=2, ensure_ascii=False))


def show_json(text: str) -> None:
    """JSON on stdout; what a terminal would not simply print, or has no sign for, is escaped in
    it."""
    narrow = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
    sys.stdout.write(visible_json(text.rstrip(), ascii_only=narrow) + "\n")


def print_table(title: str | None, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; wide enough for its content where stdout is not a terminal. Cells are
    plain text, no markup."""
    table = Table(
        title=None if title is None else Text(visible(title), "table.title"), title_justify="left"
    )
    for column in columns:
        table.add_column(Text(visible(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible_lines(cell)) for cell in row))
    console().print(table)


def console() -> Console:
    """A console on stdout that does not cut lines when its output goes into a file or pipe."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)


def pick_device(device: str | None) -> Any:
    """The torch device named, or the default. Raises SJRobustError where it cannot be used."""
    import torch

    from sj_robust.distributed import own_device

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = own_device(torch.device(device))
        if chosen.type == "meta":
            raise RuntimeError("its tensors hold no numbers")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SJRobustError(
            f"device {device!r} cannot be used here ({first_line(error)}): try --device cpu"
        ) from None
    return chosen
