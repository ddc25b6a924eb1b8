"""pull and push: checkpoints from the Hugging Face Hub and to it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sj_robust.checkpoint.config import EVALUATION
from sj_robust.cli.common import Json, command, print_json, say, usage
from sj_robust.cli.options import zoo_names

if TYPE_CHECKING:
    from sj_robust.hub.upload import PushResult


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    again = "run it again: what arrived is not fetched twice"
    command(
        app,
        "pull",
        "sj-robust pull owner/resnet20-snn-t4.cifar10_linf_pgd --to my-model",
        again=again,
    )(pull)
    command(
        app,
        "push",
        "sj-robust push my-model owner/my-model --dry-run",
        again="run it again: what arrived is not sent twice",
    )(push)


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="owner/name[@revision] on the Hub, a zoo model, or a folder.",
            metavar="NAME",
            autocompletion=zoo_names,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Write the checkpoint to this folder, whole or not at all."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, a tag or a full commit hash.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a checkpoint, compare every file with the hash the repository lists, and print its
    folder."""
    from sj_robust import pull as fetch
    from sj_robust.checkpoint.config import read_config

    calm()
    folder = fetch(name, to, revision)
    if as_json:
        config = read_config(folder)
        print_json(
            {
                "folder": str(folder),
                "name": name,
                "kind": config.kind,
                "weights_sha256": config.weights.sha256,
            }
        )
    else:
        print(folder)


def push(
    folder: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint folder, or the name of a zoo model.",
            metavar="FOLDER",
            autocompletion=zoo_names,
        ),
    ] = None,
    repo: Annotated[
        str | None, typer.Argument(help="owner/name on the Hub.", metavar="OWNER/NAME")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            "--all", help="Push the whole zoo to this namespace instead.", metavar="NAMESPACE"
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The branch to push to; made if it is missing.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", help="owner/name of the ANN that a spiking network came from."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything and show what would go up; nothing is sent."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what this folder does not come from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a checkpoint on the Hub in one commit, after loading it and checking its card and
    evaluation.

    It needs a login: `hf auth login`, or HF_TOKEN. An ANN's repository can be read by timm as well.
    """
    from sj_robust import push as send
    from sj_robust.hub import push_all

    if every is not None and (folder or repo or revision or base_model):
        usage(
            "--all takes the whole zoo: no FOLDER, OWNER/NAME, --revision or --base-model goes"
            " with it"
        )
    if every is None and not (folder and repo):
        usage("expected FOLDER OWNER/NAME, or --all NAMESPACE")
    calm()
    results = []
    if every is not None:
        pushed = push_all(every, private, dry_run, force)
    else:
        pushed = iter(
            [send(str(folder), str(repo), private, revision, dry_run, force, base_model=base_model)]
        )
    for result in pushed:
        results.append(result)
        if not as_json:
            _show(result)
    if as_json:
        facts = [dataclasses.asdict(result) for result in results]
        print_json(facts if every is not None else facts[0])


def _show(result: PushResult) -> None:
    if not any(change.path == EVALUATION for change in result.changes):
        say("it has no evaluation, which its card says: sj-robust evaluate --record makes one")
    for change in result.changes:
        say(f"{change.state:<8} {change.bytes:>12,}  {change.path}")
    if result.dry_run:
        new = "a new repository, " if result.created else ""
        would = f"would go to {result.url}: {new}branch {result.revision}, tag {result.tag}"
        say(would if result.changed else f"{result.url} holds all of it already")
    print(f"{result.repo}@{result.commit}" if result.commit else result.repo)


def calm() -> None:
    """No progress bars where nobody watches, and of the client's own messages only errors: failures
    are one line."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
