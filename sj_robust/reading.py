"""Text, JSON and YAML of strangers, read without trusting them: regular files, of bounded size,
depth and number of values."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from typing import Any

from sj_robust.errors import SJRobustError


def read_text(path: str | os.PathLike[str], limit: int, needs: str = "") -> str:
    """The text of a regular file of at most `limit` bytes: UTF-8, with or without a byte order
    mark.

    A pipe or device, which may never end, is not opened for reading. `needs` ends the error where
    there is no such file. Raises SJRobustError where it is missing, of another kind, larger or not
    text.
    """
    try:
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise SJRobustError(
                    f"{path} cannot be read (a folder, pipe or device): expected a regular file"
                )
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise SJRobustError(
            f"{path} cannot be read ({reason}){': ' if needs else ''}{needs}"
        ) from None
    if len(content) > limit:
        raise SJRobustError(
            f"{path} is larger than {limit} bytes, no such file is written by sj-robust"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SJRobustError(f"{path} is not UTF-8 text: download or save it again") from None


def parse_json(text: str, origin: object) -> dict[str, Any]:
    """The object that `text` holds as JSON. NaN and infinities, which JSON does not have, and keys
    given twice, of which programs read one or the other, are refused. Raises SJRobustError naming
    `origin`."""

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (again := _given_twice(name for name, _ in pairs)) is not None:
            raise ValueError(f"{again[:80]!r} is given twice")
        return dict(pairs)

    try:
        content = json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SJRobustError(
            f"{origin} is not valid JSON ({reason}): download or save the checkpoint again"
        ) from None
    if not isinstance(content, dict):
        raise SJRobustError(
            f"{origin} holds a JSON {type(content).__name__}, expected an object: download or save"
            " the checkpoint again"
        )
    return content


MAX_RECIPE_BYTES = 1 << 18  # PyYAML reads some hundred kB a second


def parse_yaml(text: str, origin: object, advice: str = "correct it") -> Any:
    """What `text` holds as YAML: plain values, lists and mappings.

    Aliases count as often as they stand, because whatever reads the result meets them as often:
    nine lines can stand for 10⁹ values. Raises SJRobustError naming `origin` where it is not YAML,
    nested too deeply, too much, or has a key twice.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise SJRobustError(f"{origin} is not valid YAML (nested too deeply): {advice}") from None
    except Exception as error:  # PyYAML's constructors raise whatever the values led to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SJRobustError(f"{origin} is not valid YAML ({reason}): {advice}") from None


_MOST_VALUES, _DEEPEST = 100_000, 40


def _weigh(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(values, depth) of a YAML node with its aliases written out. Raises ValueError beyond any
    sensible file."""
    if id(node) in known:
        return known[id(node)]
    # until it is known: an alias inside of what it stands for never ends
    known[id(node)] = (_MOST_VALUES, 0)
    children: list[Any] = [] if isinstance(node.value, str) else node.value
    if node.id == "mapping":
        if (
            again := _given_twice(key.value for key, _ in node.value if isinstance(key.value, str))
        ) is not None:
            raise ValueError(f"{again[:80]!r} is given twice")
        children = [each for pair in node.value for each in pair]
    weights = [_weigh(child, known) for child in children]
    values, depth = (
        1 + sum(weight[0] for weight in weights),
        1 + max((weight[1] for weight in weights), default=0),
    )
    if values > _MOST_VALUES or depth > _DEEPEST:
        raise ValueError(
            f"more than {_MOST_VALUES} values with its aliases written out, or nested more than"
            f" {_DEEPEST} deep"
        )
    known[id(node)] = values, depth
    return values, depth


def _given_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
