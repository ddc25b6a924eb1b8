"""scripts/on_gpu.py at toy size, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sj_robust.data import load_dataset

ROOT = Path(__file__).parents[1]


def loaded(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    return loaded("scripts/on_gpu.py")


@pytest.fixture(scope="module")
def pack() -> Any:
    return loaded("scripts/gpu/pack.py")


def command(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "on_gpu.py", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packed(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sample in as many parts as a tight limit makes of it."""
    to = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "repository_bytes", lambda: 0)
        patch.setattr(pack, "LIMIT", pack.SPARE + 1_500_000)
        folders: list[Path] = pack.pack("sample", to, tests=100, wheels=False)
    assert all((folder / "images.zip").stat().st_size <= 1_500_000 for folder in folders)
    return folders


def test_images_come_back_to_the_bit_from_all_parts_together(
    pack: Any, packed: list[Path], tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    assert len(packed) > 2
    for folder in packed[:-1]:
        shutil.copy(folder / "images.zip", parts / f"{folder.name}.zip")
    assert "test 100 of 100" in pack.unpack(parts, tmp_path)
    some, every = load_dataset(tmp_path / "sample"), load_dataset("sample")
    assert some.fingerprint == every.first(len(some)).fingerprint
    assert len(some) < len(every)
    shutil.copy(packed[-1] / "images.zip", parts / "last.zip")
    assert f"train {len(every)} of {len(every)}" in pack.unpack(parts, tmp_path)
    assert load_dataset(tmp_path / "sample").fingerprint == every.fingerprint
    assert load_dataset(tmp_path / "sample").classes == every.classes


def test_a_task_that_fails_or_takes_too_long_leaves_the_others(script: Any, tmp_path: Path) -> None:
    write = "import sys; open(sys.argv[1], 'w').write('{\"compared\": 3, \"failed\": 0}')"
    jobs = [
        script.Job("broken", ["-c", "raise ValueError('no such thing')"], 30),
        script.Job("endless", ["-c", "import time; time.sleep(1000)"], 2),
        script.Job("good", ["-c", write, "{result}"], 30),
        script.Job("late", ["-c", "1"], 30),
    ]
    run = script.Run(tmp_path / "state", tmp_path / "out", 60)
    run.do(jobs[:3], at_once=2)
    run.do(jobs[3:], until=script.PATIENCE)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["broken"]["status"] == "failed (1)"
    assert "ValueError: no such thing" in report["broken"]["last lines"]
    assert report["endless"]["status"] == "stopped at its limit of 2 s"
    assert (report["good"]["status"], report["good"]["compared"]) == ("ok", 3)
    assert report["late"]["status"] == "not begun: no time left"
    assert "| good | ok |" in (tmp_path / "out" / "report.md").read_text()


def test_large_files_come_in_pieces(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PIECE", 10)
    run = script.Run(tmp_path / "state", tmp_path / "out", 1)
    for size, count in ((25, 3), (15, 2), (10, 1)):  # older pieces go
        run.deliver("state", bytes(range(size)))
        pieces = sorted((tmp_path / "out").iterdir())
        assert len(pieces) == count
        assert b"".join(piece.read_bytes() for piece in pieces) == bytes(range(size))


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(packed: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = ["unpack", "odd", "nccl", "cifar_vgg5-t2-bf16", "node", "train"]
    words = ["--device", "cpu", "--quick", "--seconds", "400", "--out", out, "--only", *tasks]
    text = command("run", *words, "--carry", *packed, "--state", tmp_path / "state")
    report = json.loads((out / "report.json").read_text())
    assert {name: task["status"] for name, task in report.items()} == dict.fromkeys(tasks, "ok")
    assert all(report[name]["failed"] == 0 < report[name]["compared"] for name in ("odd", "nccl"))
    assert report["train"]["fingerprint"] == load_dataset("sample").first(240).fingerprint
    assert "snn measured" in text
    files = list(out.iterdir())
    assert len(files) <= 8
    assert all(file.stat().st_size < 16 * 2**20 for file in files)
    for name in ("ann", "snn"):
        with tarfile.open(out / f"{name}.tar") as archive:
            assert f"{name}/model.safetensors" in archive.getnames()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git what the repository holds")
def test_pack_says_what_to_carry(tmp_path: Path) -> None:
    text = command("pack", "--data", "sample", "--to", tmp_path, "--no-wheels", "--tests", "64")
    assert f"call 1: carry {tmp_path / '1'} (" in text
    assert "of 64)" in text
