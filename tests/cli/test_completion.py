"""The shell's questions: answered by the real command as typer's scripts ask them, without
torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sj_robust.checkpoint.zoo import list_models

COMPLETE = """
import sys
sys.modules["torch"] = None  # importing it is now an error
sys.modules["huggingface_hub"] = None
sys.argv = ["sj-robust"]
from sj_robust.cli import main
main()
"""


def completed(words: str, shell: str = "bash") -> list[str]:
    """What the shell is offered for the last word of a command line."""
    asked = {
        "COMP_WORDS": "\n".join(words.split(" ")),
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
    }
    environment = os.environ | asked | {"_SJ_ROBUST_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


ZOO = [entry.name for entry in list_models()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sj-robust evaluate ", ZOO),
        ("sj-robust pull resnet20-snn", [name for name in ZOO if name.startswith("resnet20-snn")]),
        ("sj-robust evaluate ./runs/", []),  # files and folders are the shell's own
        ("sj-robust doc", ["doctor"]),
    ],
)
def test_names_complete(words: str, offered: list[str]) -> None:
    assert completed(words) == offered


def test_there_is_a_script_for_the_shell() -> None:
    environment = os.environ | {"_SJ_ROBUST_COMPLETE": "source_bash"}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_SJ_ROBUST_COMPLETE=complete_bash" in done.stdout
