"""The package as a whole: its public names, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import sj_robust


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_package_and_command_line_imports_no_torch() -> None:
    assert (
        run_python("import sj_robust, sj_robust.cli, sys; print('torch' in sys.modules)") == "False"
    )


def test_every_public_name_exists_and_is_what_it_says() -> None:
    for name in sj_robust.__all__:
        assert getattr(sj_robust, name) is not None
    assert set(sj_robust.__all__) <= set(dir(sj_robust))
    assert callable(sj_robust.convert)
    assert callable(sj_robust.evaluate)
    assert issubclass(sj_robust.SJRobustError, Exception)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'convrt'.*convert"):
        _ = sj_robust.convrt


def test_version_is_that_of_the_distribution() -> None:
    assert sj_robust.__version__ == version("sj-robust")


def test_the_lowest_versions_are_those_of_every_dependency() -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "lowest.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    lowest = [line.split("==")[0] for line in done.stdout.splitlines()]
    needed = [text for text in requires("sj-robust") or [] if "extra ==" not in text]
    names = [re.split("[<>=]", text)[0] for text in needed]
    assert sorted(name.replace("_", "-") for name in names) == sorted(
        name.replace("_", "-") for name in lowest
    )
