"""From a name to a checkpoint: a folder, a model of the zoo, or owner/name[@revision] on the Hub.
Nothing here imports torch before it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sj_robust.checkpoint import zoo
from sj_robust.checkpoint.config import ORIGIN, Config, read_config
from sj_robust.checkpoint.files import check_record, check_replaceable, copy_own_files
from sj_robust.checkpoint.results import read_reports
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.report import Report  # no torch
from sj_robust.files import atomic_folder, check_folder
from sj_robust.hub.origin import Origin, write_origin
from sj_robust.hub.remote import HubName, parse_name

if TYPE_CHECKING:
    from torch import nn

    from sj_robust.checkpoint.build import Classifier


@dataclass(frozen=True)
class Checkpoint:
    """What a name led to when it was asked for: everything about it is read from one `folder`.

    Attributes:
        config: its validated config.json.
        origin: where on the Hub it lies, at which commit; None for a folder or a model of the zoo.
    """

    folder: Path
    config: Config
    origin: Origin | None = None

    def load(self, model: nn.Module | Callable[..., nn.Module] | None = None) -> Classifier:
        """The classifier.

        Args:
            model: as of `sj_robust.load`.

        Raises:
            SJRobustError: as of `sj_robust.load`.
        """
        from sj_robust.checkpoint.folder import load_folder

        return load_folder(self.folder, self.config, model=model)

    def reports(self) -> list[Report]:
        """What was measured, that of the strongest protocol first.

        Raises:
            SJRobustError: a damaged evaluation, or one of another network.
        """
        found = read_reports(self.folder)
        zoo.check_evaluations(found, self.config, str(self.folder))
        return found

    def record(self, **known: Any) -> list[Path]:
        """`checkpoint.record` into the folder, and into the index of the zoo where it is of it."""
        from sj_robust.checkpoint.folder import record

        written = record(self.folder, **known)
        if zoo.holds(self.folder):
            zoo.add(self.folder, self.folder.resolve().name)  # its index knows every file's hash
        return written


def locate(name: str | Path, revision: str | None = None, token: str | None = None) -> Checkpoint:
    """The checkpoint that `name` means.

    A zoo model's files are verified against the index, the Hub's against what the repository lists
    (see `pull`).

    Args:
        name: a folder first, then owner/name[@revision] on the Hub, then the zoo.

    Raises:
        SJRobustError: there is no such checkpoint, or a revision of one that is not on the Hub.
    """
    local = os.path.exists(name) or not isinstance(name, str)
    on_hub = None if local else parse_name(str(name), revision)
    if on_hub:
        return _fetched(on_hub, token)
    if revision is not None:
        raise SJRobustError(
            f"{name} is not on the Hub and has no revision {revision!r}: only owner/name has"
            " revisions"
        )
    folder = zoo.resolve(name)
    return Checkpoint(folder, read_config(folder))


def locate_evaluation(name: str, token: str | None = None) -> Checkpoint:
    """What owner/name[@revision] on the Hub records of its evaluations, without its weights.

    These stay where they are: for who only reads what was measured. A folder of that name is passed
    over.

    Raises:
        SJRobustError: as `pull`, and a name of another form.
    """
    on_hub = parse_name(name)
    if on_hub is None:
        raise SJRobustError(
            f"{name!r} is not a repository on the Hub: expected owner/name[@revision]"
        )
    return _fetched(on_hub, token, weights=False)


def _fetched(name: HubName, token: str | None, *, weights: bool = True) -> Checkpoint:
    from sj_robust.hub.download import fetch  # and with it huggingface_hub, which is slow

    folder, origin = fetch(name, token, weights=weights)
    return Checkpoint(folder, read_config(folder), origin)


def load(
    folder_or_name: str | Path, *, model: nn.Module | Callable[..., nn.Module] | None = None
) -> Classifier:
    """The classifier that was saved under a name, with the same logits bit for bit.

    That is so in eval mode, on the CPU. Nothing is unpickled or imported on a checkpoint's word.

    Args:
        folder_or_name: a folder, a zoo model, or `owner/name[@revision]` of the Hub (see `pull`).
        model: for a user's own network, a freshly built backbone or a function that builds one,
            called with the recorded arguments where it takes them; a timm network is built by its
            name.

    Raises:
        SJRobustError: anything missing, damaged, altered since it was written, newer than this
            version, or not fitting the network, in one line.
    """
    return locate(folder_or_name).load(model)


def pull(
    name: str | Path,
    to: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The verified checkpoint folder that `name` means, fetched from the Hub if need be.

    What comes from the Hub is pinned to a commit: its hash is the name of the returned folder of
    the Hub's cache, and stands in `.sj_robust.json` of `to`. Only a checkpoint's own files are
    fetched, and the content of each, also of one found in the cache, is compared with the hash that
    the repository lists; the weights with config.json, too. A file that differs is fetched once
    more. With HF_HUB_OFFLINE=1, and with a warning where the Hub cannot be reached, what is in the
    cache is used.

    Args:
        name: `owner/name[@revision]` on the Hub, the name of a zoo model (which needs no network),
            or a folder; a folder comes first.
        to: a folder, or a link to one, to write the checkpoint to, whole or not at all; an older
            checkpoint there is replaced.
        revision: a branch, tag or full commit hash, the main branch by default.
        token: for a private or gated repository, by default $HF_TOKEN or the stored login.

    Returns:
        `to`, or the folder the files lie in.

    Raises:
        SJRobustError: whatever keeps a correct checkpoint from being returned, in one line.
    """
    target = None if to is None else Path(to)
    if target is not None:
        check_folder(target)
        check_replaceable(target)
    found = locate(name, revision, token)
    if found.origin is None:
        check_record(found.folder, str(found.folder))
    if target is None:
        return found.folder
    if target.resolve() == found.folder.resolve():
        return target
    try:
        with atomic_folder(target) as temporary:
            copy_own_files(found.folder, temporary, leave=True)
            if found.origin is not None:
                write_origin(temporary / ORIGIN, found.origin)
    except OSError as error:
        raise SJRobustError(
            f"{target} cannot be written ({error.strerror}): choose another folder"
        ) from None
    return target
