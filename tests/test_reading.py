"""Text, JSON and YAML of strangers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sj_robust.errors import SJRobustError
from sj_robust.reading import parse_json, parse_yaml, read_text

NINE = [",".join([f"*a{number}"] * 9) for number in range(9)]
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{nine}]\n" for n, nine in enumerate(NINE, 1)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{nine}]}}\n" for n, nine in enumerate(NINE, 1)
)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (LAUGHS, "more than 100000 values"),
        (MERGES, "more than 100000 values"),
        ("a: &a [*a]", "more than 100000 values"),
        ("[" * 500 + "]" * 500, "nested"),
        ("{a: " * 60 + "1" + "}" * 60, "nested more than 40 deep"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!int x", "invalid literal"),
        ("a: 2024-13-45", "month"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("? [1]\n: 2", "unhashable"),
        ("--- a\n--- b", "but found another document"),
        ("a: *b", "undefined alias"),
        ("\x00", "special characters"),
        ("a: [", "expected"),
        ("[x, " * 30_000, "not valid YAML"),
    ],
)
def test_yaml_of_a_stranger_is_one_line(text: str, fragment: str) -> None:
    with pytest.raises(
        SJRobustError, match=r"recipe\.yaml is not valid YAML \(.*\): correct it"
    ) as error:
        parse_yaml(text, "recipe.yaml")
    assert fragment in str(error.value)


def test_yaml_of_a_user_is_read_with_its_aliases() -> None:
    text = "a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}"
    assert parse_yaml(text, "it") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": {"x": [1, 2], "y": 3},
    }
    assert parse_yaml("", "it") is None


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"b": [{"x": 1, "y": 2, "x": 1}]}', "'x' is given twice"),
        ('{"a": -Infinity}', "not a JSON number"),
        ("[" * 10**5, "nested too deeply"),
        ("{" + '"a":{' * 10**5, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "4300 digits"),
        ("", "Expecting value"),
        ('"text"', "holds a JSON str"),
        ('{"\x01": 1}', "control character"),
    ],
)
def test_json_of_a_stranger_is_one_line(text: str, fragment: str) -> None:
    with pytest.raises(SJRobustError) as error:
        parse_json(text, "x.json")
    assert fragment in str(error.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 101)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    for name, fragment in {
        "pipe": "a folder, pipe or device",
        "large": "larger than 100 bytes",
        "latin": "not UTF-8",
        "": "Is a directory",
        "none": "No such file",
        "sparse": "larger than",
        "nul\0": "null",
    }.items():
        with pytest.raises(SJRobustError, match=fragment):
            read_text(tmp_path / name, 100)
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(SJRobustError, match="cannot be read"):
            read_text(device, 100)
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfname: x")
    assert read_text(tmp_path / "bom", 100) == "name: x"
