"""What a name that leads nowhere may have meant: the nearest names in the places where it was
looked for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sj_robust.files import zoo_root
from sj_robust.phrases import did_you_mean


def suggestion(text: str | Path) -> str:
    """The same with the zoo's names and the folders that lie where `text` was looked for; it begins
    with a colon where it says anything."""
    path = Path(text)
    candidates = (
        [str(path.with_name(sibling)) for sibling in _folders(path.parent)] if path.name else []
    )
    hint = did_you_mean(str(path), candidates) or did_you_mean(
        path.name, (entry.stem for entry in zoo_root().glob("*.yaml"))
    )
    return f": {hint}" if hint else ""


def missing_folder(text: str | Path) -> str:
    """One line on a path that is no folder: how far it leads, and what may have been meant."""
    path = Path(text)
    try:
        if os.path.isfile(path):
            return (
                f"{str(text)!r} is not a folder but a file: expected a checkpoint folder, a zoo"
                " model's name or owner/name on the Hub"
            )
        above = next(parent for parent in path.absolute().parents if os.path.isdir(parent))
        lacks = path.absolute().relative_to(above).parts[:1]
    except (OSError, ValueError):  # a name that no file can have
        above, lacks = Path.cwd(), ()
    hint = (
        suggestion(text)
        or ": expected a checkpoint folder, a zoo model's name or owner/name on the Hub"
    )
    return (
        f"{str(text)!r} is not a folder ({above} has no"
        f" {lacks[0] if lacks else 'such folder'!r}){hint}"
    )


def _folders(folder: Path) -> list[str]:
    with suppress(OSError, ValueError):
        return [
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        ]
    return []
