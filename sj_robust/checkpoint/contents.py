"""Whether the files of a checkpoint are what their names say, before anything is sent. Nothing here
imports torch."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from sj_robust.checkpoint.config import EVALUATIONS, RECIPE, SOURCE_EVALUATION, read_bounded
from sj_robust.checkpoint.files import own_files
from sj_robust.checkpoint.results import read_report
from sj_robust.errors import SJRobustError
from sj_robust.reading import MAX_RECIPE_BYTES, parse_yaml

MAX_PIXELS = 1 << 24
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SVG = "{http://www.w3.org/2000/svg}"


def check_contents(folder: Path) -> None:
    """Raise SJRobustError for the first file that is not what it is called: evaluations and recipe
    have to parse, figures to be figures."""
    for path in own_files(folder):
        if path in (*EVALUATIONS, SOURCE_EVALUATION):
            read_report(folder / path)
        elif path == RECIPE:
            _check_recipe(folder / path)
        elif path.endswith(".png"):
            _check_figure(folder / path, "a PNG", _check_png)
        elif path.endswith(".svg"):
            _check_figure(folder / path, "an SVG", _check_svg)


def _check_recipe(path: Path) -> None:
    content = parse_yaml(
        read_bounded(path, MAX_RECIPE_BYTES), path, "save the checkpoint again, or remove the file"
    )
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise SJRobustError(
            f"{path} is not a recipe, which is a mapping with a name: save the checkpoint again, or"
            " remove the file"
        )


def _check_figure(path: Path, kind: str, check: Callable[[bytes], None]) -> None:
    try:
        check(path.read_bytes())
    except ValueError as error:
        raise SJRobustError(
            f"{path} is not {kind} ({error}): write it again with `sj-robust card FOLDER`, or"
            " remove the file"
        ) from None


def _check_png(content: bytes) -> None:
    """Raises ValueError unless `content` is one whole image of a sensible size, with nothing behind
    it."""
    if not content.startswith(_SIGNATURE):
        raise ValueError("it does not begin as one")
    kinds: list[bytes] = []
    at, pixels, image = len(_SIGNATURE), 0, zlib.decompressobj()
    while not kinds or kinds[-1] != b"IEND":
        length = int.from_bytes(content[at : at + 4])
        kind, data, checksum = (
            content[at + 4 : at + 8],
            content[at + 8 : at + 8 + length],
            content[at + 8 + length : at + 12 + length],
        )
        if len(checksum) < 4:
            raise ValueError("it ends in the middle")
        if zlib.crc32(kind + data) != int.from_bytes(checksum):
            raise ValueError("a checksum in it is wrong")
        if not kinds:
            pixels = int.from_bytes(data[:4]) * int.from_bytes(data[4:8])
            if kind != b"IHDR" or not 0 < pixels <= MAX_PIXELS:
                raise ValueError(f"its size is not one of 1 to {MAX_PIXELS} pixels")
        while kind == b"IDAT" and data:
            try:
                image.decompress(data, 1 << 20)
            except zlib.error:
                raise ValueError("its image cannot be unpacked") from None
            data = image.unconsumed_tail
        kinds.append(kind)
        at += 12 + length
    if at != len(content):
        raise ValueError("more data follows it")
    if not image.eof:
        raise ValueError("its image is not whole")


def _check_svg(content: bytes) -> None:
    """Raises ValueError unless `content` is a drawing that defines no entities and runs nothing."""
    if b"<!ENTITY" in content or (
        b"<!DOCTYPE" in content and b"[" in content.split(b"<!DOCTYPE", 1)[1].split(b">", 1)[0]
    ):
        raise ValueError("it defines entities")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    if root.tag != f"{_SVG}svg":
        raise ValueError("its root is no svg")
    for element in root.iter():
        if element.tag in (f"{_SVG}script", f"{_SVG}foreignObject") or any(
            name.lower().startswith("on") for name in element.attrib
        ):
            raise ValueError("it holds a script")
        for name, value in element.attrib.items():
            if name.rpartition("}")[2].lower() == "href" and not value.strip().lower().startswith(
                ("#", "data:image/", "http://", "https://")
            ):
                raise ValueError(f"it links to {value[:40]!r}")
