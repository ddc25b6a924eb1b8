"""The order of classes in folders, and the names of classes beside those that a network knows."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sj_robust import SJRobustError
from sj_robust.data import ImageDataset, in_order_of, load_dataset
from sj_robust.model import NormalizedClassifier

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def folder(root: Path, *files: str) -> Path:
    """Images of one colour each, in the order given."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / file)
    return root


def knowing(*names: str) -> nn.Module:
    model = NormalizedClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(12, len(names) or 3)), [0.0] * 3, [1.0] * 3
    )
    model.classes = names or None
    return model


def named(*names: str) -> ImageDataset:
    return ImageDataset(
        torch.zeros(len(names), 3, 2, 2, dtype=torch.uint8),
        torch.arange(len(names)),
        names,
        "mine",
        "test",
    )


def test_numbered_folders_are_in_natural_order(tmp_path: Path) -> None:
    folder(
        tmp_path,
        *(f"{name}/0.png" for name in ("10", "2", "1", "class10", "class9", "Zebra", "ape", "007")),
    )
    assert load_dataset(tmp_path).classes == (
        "1",
        "2",
        "007",
        "10",
        "ape",
        "class9",
        "class10",
        "Zebra",
    )


@pytest.mark.parametrize(
    "text",
    ["dog\ncat\n", "\ufeffdog\r\ncat\r\n", "1 dog\n2 cat\n", "dog\n\ncat", "dog\ncat\nhorse\n"],
)
@pytest.mark.parametrize("place", [".", "train"])
def test_classes_txt_gives_the_order(tmp_path: Path, text: str, place: str) -> None:
    folder(tmp_path, "train/cat/0.png", "train/dog/0.png", "test/cat/0.png")
    (tmp_path / place / "classes.txt").write_text(text, encoding="utf-8", newline="")
    train, test = load_dataset(tmp_path, "train"), load_dataset(tmp_path, "test")
    assert train.classes[:2] == test.classes[:2] == ("dog", "cat")
    assert test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dog\n", "does not list the folder 'cat'"),
        (b"dog\ncat\ndog\n", "lists a class twice"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_a_classes_txt_of_others_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    folder(tmp_path, "cat/0.png", "dog/0.png")
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(SJRobustError, match=message):
        load_dataset(tmp_path)


def test_hidden_folders_are_passed_over_and_links_followed_once(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "elsewhere", "3.png", "deep/4.png")
    root = folder(
        tmp_path / "data",
        "cat/0.png",
        "cat/a/b/1.png",
        "cat/.ipynb_checkpoints/0.png",
        "cat/a/.hidden/b/2.png",
        ".git/x.png",
        "__MACOSX/y.png",
    )
    os.symlink(elsewhere, root / "dog")
    os.symlink(elsewhere / "deep", root / "cat" / "linked")
    os.symlink(root, root / "cat" / "loop")
    os.symlink(root / "cat", root / "cat" / "a" / "back")
    found = load_dataset(root)
    assert found.classes == ("cat", "dog")
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 1, 0, 1]  # type: ignore[index]
    assert found.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, "cat/0.png")
    os.symlink("../.git/annex/objects/x/y.png", root / "cat" / "1.png")
    with pytest.raises(SJRobustError, match=r"1\.png is a link to .*not there: fetch"):
        load_dataset(root)


STAND_INS = {
    "Git LFS pointer": POINTER,
    "git-annex pointer": b"/annex/objects/SHA256E-s123--abc.parquet\n",
    "empty": b"",
    "web page": b"\n<!DOCTYPE html><html><head><title>404</title>",
    "web page ": b"<html>",
    "readable parquet|cannot be decoded": b"PK\x03\x04",
}


@pytest.mark.parametrize("what", STAND_INS)
def test_what_lies_in_the_place_of_data_is_named(tmp_path: Path, what: str) -> None:
    (tmp_path / "train.parquet").write_bytes(STAND_INS[what])
    with pytest.raises(SJRobustError, match=what.strip()) as refusal:
        load_dataset(tmp_path)
    assert "\n" not in str(refusal.value)
    root = folder(tmp_path / "images", "cat/0.png")
    (root / "cat" / "1.png").write_bytes(STAND_INS[what])
    with pytest.raises(SJRobustError, match=what.strip()):
        load_dataset(root)


def test_a_parquet_file_cut_off_is_named(tmp_path: Path) -> None:
    from sj_robust.files import zoo_root

    whole = next((zoo_root() / "sample").rglob("test*.parquet")).read_bytes()
    (tmp_path / "test.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SJRobustError, match="cut off after"):
        load_dataset(tmp_path, "test")


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "dog", "ape"),
        ("cat", "dog"),
        ("Cat", "DOG", "ape"),
        ("0", "1", "2"),
        ("0", "1"),
    ],
)
def test_the_same_names_change_nothing(names: tuple[str, ...]) -> None:
    data = named(*names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_order_of(knowing("cat", "dog", "ape"), data) is data
        assert in_order_of(knowing(), named("x", "y")).classes == ("x", "y")
        assert in_order_of(nn.Linear(1, 1), data) is data


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("ape", "cat", "dog"), [2, 0, 1]),
        (("dog", "ape"), [1, 2]),
        (("DOG", "Cat"), [1, 0]),
        (("ape",), [2]),
    ],
)
def test_another_order_is_mapped_by_name(names: tuple[str, ...], labels: list[int]) -> None:
    with pytest.warns(UserWarning, match="mapped by name"):
        mapped = in_order_of(knowing("cat", "dog", "ape"), named(*names))
    assert (mapped.labels.tolist(), mapped.classes) == (labels, ("cat", "dog", "ape"))


def test_numbers_in_the_place_of_names_may_have_zeros_before_them() -> None:
    dataset = named(*(f"{label:02}" for label in range(10)))
    assert in_order_of(knowing(*"abcdefghij"), dataset) is dataset
    # counted from 1: of which class is 1?
    with pytest.raises(SJRobustError, match="does not know"):
        in_order_of(knowing(*"abc"), named("01", "02", "03"))


def test_one_class_too_many_is_named_alone() -> None:
    with pytest.raises(SJRobustError, match="does not know: '@eaDir'; rename"):
        in_order_of(knowing("cat", "dog"), named("@eaDir", "cat", "dog"))


def test_lexicographic_numbers_of_an_older_checkpoint_are_mapped() -> None:
    with pytest.warns(UserWarning, match="mapped by name"):
        assert in_order_of(
            knowing("0", "1", "10", "2"), named("0", "1", "2", "10")
        ).labels.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize(
    "names",
    [
        ("car", "dog", "ape"),
        ("x", "y", "z"),
        ("cat", "dog", "ape", "horse"),
        ("1", "2", "3"),
        ("cat ", "bird", "dog"),
    ],
)
def test_other_classes_are_refused_unless_said_to_be_the_same(names: tuple[str, ...]) -> None:
    model = knowing("cat", "dog", "ape")
    with pytest.raises(SJRobustError, match=r"does not know: '.*--same-classes") as refusal:
        in_order_of(model, named(*names))
    assert "\n" not in str(refusal.value)
    if len(names) == 3:
        assert in_order_of(model, named(*names).with_classes(model.classes)).labels.tolist() == [
            0,
            1,
            2,
        ]  # type: ignore[arg-type]


def test_names_that_are_there_twice_are_not_guessed_at() -> None:
    same = named("crane", "crane", "ape")
    assert in_order_of(knowing("crane", "crane", "ape"), same) is same
    with pytest.raises(SJRobustError, match="another order"):
        in_order_of(knowing("ape", "crane", "crane"), same)
