"""Files are whole or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_folder, atomic_path, only_one, sha256, write_atomic

HOLDER = '''
import sys, time
from sj_robust.files import only_one
with only_one(sys.argv[1], "a run going on"):
    print("held", flush=True)
    time.sleep(600)
'''


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SJRobustError, match="another process has a run going on"), only_one(tmp_path, "a run going on"):
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


@pytest.mark.skipif(sys.platform != "linux", reason="the exchange of folders is a Linux system call")
def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    """A process replaces a folder in a loop until it is killed; whenever one looks, a complete version is there."""
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


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "abc", b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
