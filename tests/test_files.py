"""Files are whole or not there, and read without trusting them."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sj_robust.errors import SJRobustError
from sj_robust.files import (
    atomic_folder,
    atomic_path,
    check_file,
    check_folder,
    check_within,
    legible,
    only_one,
    sha256,
    write_atomic,
)

HOLDER = """
import sys, time
from sj_robust.files import only_one
with only_one(sys.argv[1], "a run going on"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(SJRobustError, match="another process has a run going on"),
            only_one(tmp_path, "a run going on"),
        ):
            pass
        holder.kill()
    with only_one(tmp_path, "a run going on"):
        pass


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_folder_replaces_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert [path.name for path in target.iterdir()] == ["second.txt"]
    with pytest.raises(RuntimeError), atomic_folder(target):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="the exchange of folders is a Linux system call"
)
def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    """A process replaces a folder in a loop until it is killed; whenever one looks, a complete
    version is there."""
    target = tmp_path / "model"
    code = (
        "import sys; from sj_robust.files import atomic_folder\n"
        "while True:\n"
        "    with atomic_folder(sys.argv[1]) as folder:\n"
        "        [(folder / name).write_text(name) for name in 'abc']\n"
        "    print(flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        for _ in range(2000):
            assert target.is_dir()
    finally:
        process.kill()
        process.wait()
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "c"]


WRITER = """
import sys, time
from pathlib import Path
from sj_robust.files import atomic_folder, atomic_path
make = {"folder": atomic_folder, "file": atomic_path}[sys.argv[2]]
with make(sys.argv[1]) as path:
    (path / "half" if path.is_dir() else path).write_text("half")
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("kind", "make"), [("folder", atomic_folder), ("file", atomic_path)], ids=["folder", "file"]
)
@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_makes_is_not(
    kind: str, make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    def write(text: str) -> None:
        with make(target) as path:
            (path / "whole" if path.is_dir() else path).write_text(text)
            assert left.exists() or first.returncode is not None

    target, other = tmp_path / "model", tmp_path / ".model.x.abcdefgh.part"
    other.mkdir()  # of one called model.x
    command = [sys.executable, "-c", WRITER, str(target), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        left = Path(first.stdout.readline().strip())
        write("whole")
        assert left.exists()
        first.kill()
    assert left.exists()
    write("newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "model"]
    assert (target / "whole" if kind == "folder" else target).read_text() == "newer"


def test_a_full_disk_is_that_of_the_file(tmp_path: Path) -> None:
    for make, name in ((atomic_path, "file"), (atomic_folder, "folder")):
        with pytest.raises(OSError, match="No space left") as raised, make(tmp_path / name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert raised.value.filename == str(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_old_version_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".model.abcdefgh.old"
    old.mkdir()
    (old / "only").write_text("only")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["only"]
    assert not old.exists()


def test_a_folder_is_written_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    for name, target in (("link", "disk/real"), ("chain", "link"), ("dangling", "disk/new")):
        (tmp_path / name).symlink_to(target)
        with atomic_folder(tmp_path / name) as folder:
            (folder / name).write_text(name)
        assert (tmp_path / name).is_symlink()
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new", "real"]


@pytest.mark.parametrize(
    ("target", "fragment"),
    [("gone/new", "is no folder"), ("loop", "to itself"), ("file/new", "is no folder")],
)
def test_a_link_that_leads_nowhere_is_refused_before_the_work(
    tmp_path: Path, target: str, fragment: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(target)
    for write in (check_folder, lambda folder: atomic_folder(folder).__enter__()):
        with pytest.raises(SJRobustError, match=fragment):
            write(tmp_path / "loop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("name", ["file/new", "x" * 300, "a/b\0c"])
def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SJRobustError, match=r"cannot be written|is a file"):
        check_folder(tmp_path / name)


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "abc", b"abc")
    assert (
        sha256(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_what_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "to_nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    bad = [
        tmp_path,
        tmp_path / "file" / "x.json",
        tmp_path / "file" / "deep" / "x.json",
        Path("/proc/x.json"),
        Path("/sys/x.json"),
        Path("/dev/null"),
        Path("/dev/full"),
        tmp_path / "pipe",
        tmp_path / "to_nowhere" / "x.json",
        tmp_path / ("x" * 300),
        tmp_path / ("x" * 300) / "x.json",
    ]
    for path in bad:
        with pytest.raises(SJRobustError, match=re.escape(str(path.parent)[:60])) as error:
            check_file(path)
        assert "\n" not in str(error.value)
    for good in (
        tmp_path / "x.json",
        tmp_path / "new" / "deeper" / "x.json",
        tmp_path / "file",
        tmp_path / "to_nowhere",
    ):
        check_file(good)
    check_within(tmp_path / "new" / "figures")
    with pytest.raises(SJRobustError, match="is a file, expected a folder"):
        check_within(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe", "to_nowhere"]


def test_names_that_are_no_text_are_recorded_with_escapes() -> None:
    assert legible(os.fsdecode(b"caf\xe9 \xc3\xa9")) == "caf\\xe9 é"
