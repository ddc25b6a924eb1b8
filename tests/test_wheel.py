"""What is released: the wheel and the source distribution, built, and installed where nothing of
this checkout is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import sj_robust

ROOT = Path(__file__).resolve().parents[1]
NAME = "resnet20-snn-t4.cifar10_linf_pgd"
MOST_MB = 15

pytest.importorskip("hatchling", reason="builds with hatchling, of the extra dev")


def run(*command: str | Path, where: Path) -> str:
    seen = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=where, env=seen, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", target, where=ROOT)
    (built,) = target.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution alone, as an installation from it does."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target, where=unpacked)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment, which shares what we depend on with this one."""
    home = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv", where=home)
    programs = home / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, where=home)
    packages = run(
        programs / "python",
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
        where=home,
    )
    shared = sysconfig.get_path("purelib")
    (Path(packages.strip()) / "shared.pth").write_text(shared + "\n", encoding="utf-8")
    return programs


def test_the_wheel_is_small_and_holds_the_zoo(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_MB * 2**20
    names = zipfile.ZipFile(wheel).namelist()
    assert f"sj_robust/zoo/checkpoints/{NAME}/model.safetensors" in names
    assert "sj_robust/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "training/"))]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git what there is")
def test_the_source_distribution_has_what_it_is_tested_with(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "README.md", "CHANGELOG.md", "LICENSE", "tests/conftest.py"} <= names
    tracked = run("git", "ls-files", "sj_robust", "tests", where=ROOT).split()
    assert not {name for name in tracked if name.endswith(".py")} - names


def test_the_installed_command_works_by_itself(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "sj-robust", "--version", where=tmp_path).strip() == (
        sj_robust.__version__
    )
    assert NAME in run(installed / "sj-robust", "list", where=tmp_path)
    code = f"""
import sj_robust
print(sj_robust.__file__)
snn = sj_robust.load({NAME!r})
images = sj_robust.load_dataset("sample", "test").floats()[:2]
print(*snn(images).shape)
"""
    where, shape = run(installed / "python", "-c", code, where=tmp_path).split("\n")[:2]
    assert Path(where).is_relative_to(installed.parent)
    assert shape == "2 10"
