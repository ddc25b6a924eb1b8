"""What every command owes its user: help with an example, exit codes, one line for a failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sj_robust
from sj_robust import list_models

COMMANDS = [
    "list",
    "info",
    "pull",
    "push",
    "compare",
    "train-ann",
    "convert",
    "finetune",
    "evaluate",
    "card",
    "certify",
    "corruptions",
    "energy",
    "latency",
    "threats",
    "show",
    "export",
    "run",
    "bench",
    "demo",
    "doctor",
]
HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it is now an error
from sj_robust.cli import main
for command in sys.argv[1:]:
    sys.argv = ["sj-robust", command, "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
"""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert f"Example: sj-robust {command}" in done.stdout


def test_help_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH, *COMMANDS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Example: ") == len(COMMANDS)


def test_the_general_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    listed = {
        line.split()[1]
        for line in done.stdout.splitlines()
        if line.startswith("│ ") and len(line.split()) > 2
    }
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize(
    "args",
    [
        ("no-such-command",),
        ("list", "--no-such-option"),
        ("info",),
        ("evaluate", "x", "--data", "sample", "--eps", "8"),
        ("evaluate", "x", "--data", "sample", "--eps", "8/0"),
        ("evaluate", "x", "--data", "sample", "--eps", "little"),
        ("evaluate", "x", "--data", "sample", "--protocol", "strng"),
        ("evaluate", "x", "--data", "sample", "--protocol", "strong@"),
        ("evaluate", "x", "--data", "sample", "--attacks", "fgsm,pgx10"),
        ("evaluate", "x", "--data", "sample", "--attacks", ""),
        ("evaluate", "x", "--data", "sample", "--views", "PCX:1"),
        ("evaluate", "x", "--data", "sample", "--views", ","),
        ("evaluate", "x", "--data", "sample", "--views", ""),
        ("evaluate", "x", "--data", "sample", "--attacks", "fgsm,fgsm"),
        ("evaluate", "x", "--data", "sample", "--grid", "9bit"),
        ("show", "x", "--out", "y.png", "--attack", "pgx10"),
        ("latency", "x", "--data", "sample", "--view", "PCX:1"),
        ("latency", "x", "--data", "sample", "--view", ""),
        ("latency", "x", "--data", "sample", "--attack", "", "--eps", "8/255"),
        ("threats", "x", "--data", "sample", "--detect", "cleanse", "--view", "PCX:1"),
        ("threats", "x", "--data", "sample", "--detect", "cleanse", "--view", ""),
        ("finetune", "x", "--data", "sample", "--out", "y", "--method", "magic"),
        ("convert", "--data", "sample", "--out", "y"),
        ("convert", "x", "--data", "sample", "--out", "y", "--arg", "width"),
    ],
)
def test_wrong_usage_is_2_and_says_so_on_stderr(cli: Cli, args: tuple[str, ...]) -> None:
    done = cli(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


def test_exit_codes_and_output_of_a_real_process(process: Cli) -> None:
    assert process("info").returncode == 2
    assert "'resnet21-snn' is neither" in failure(process("info", "resnet21-snn"))
    version = process("--version")
    assert (version.returncode, version.stdout.strip(), version.stderr) == (
        0,
        sj_robust.__version__,
        "",
    )


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of stderr that names a failure."""
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sj-robust: ")
    return lines[0]


def test_an_unknown_model_is_named(cli: Cli) -> None:
    assert "'resnet21-snn' is neither a checkpoint folder nor a zoo model" in failure(
        cli("info", "resnet21-snn")
    )


def test_a_scale_is_a_number_or_auto(cli: Cli) -> None:
    command = ("convert", "cifar_resnet20", "--data", "sample", "--out", "never")
    for wrong in ("automatic", "0", "nan", "11"):
        done = cli(*command, f"--scale={wrong}")
        assert done.returncode == 2
        assert "expected auto or a number above 0" in " ".join(done.stderr.split())
    assert "random weights" in failure(cli(*command, "--scale", "auto"))


def test_random_weights_are_not_converted(cli: Cli) -> None:
    assert "random weights" in failure(
        cli("convert", "cifar_resnet20", "--data", "sample", "--out", "never")
    )


def test_an_unexpected_error_is_one_line_and_its_traceback_on_request(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("def make():\n    raise OSError('no\\nsuch thing')\n")
    args = ("convert", "--model", "broken:make", "--data", "sample", "--out", "never")
    line = failure(cli(*args, cwd=tmp_path))
    assert "OSError: no such thing" in line
    assert "SJ_ROBUST_DEBUG=1" in line
    told = cli(*args, cwd=tmp_path, env={"SJ_ROBUST_DEBUG": "1"})
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    assert told.stderr.splitlines()[-1] == line
    assert not (tmp_path / "never").exists()


def test_list_and_doctor_speak_json(cli: Cli) -> None:
    listed = cli("list", "--json")
    assert listed.returncode == 0
    assert all({"name", "kind", "results"} <= entry.keys() for entry in json.loads(listed.stdout))
    facts = json.loads(cli("doctor", "--json").stdout)
    assert facts["packages"]["spikingjelly"].startswith("2.")
    assert {"neuron backend torch", "neuron backend cpu", "neuron backend cupy"} <= set(facts)
    assert "cpu" in facts["devices"]


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    code = "from sj_robust.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == ""
    assert process.returncode == 1


def test_a_folder_of_something_else_is_refused_before_any_work(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    training = ("train-ann", "cifar_resnet20", "--data", "sample", "--out", tmp_path)
    assert "is kept: choose another folder" in failure(cli(*training))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_name_is_not_the_working_directory(cli: Cli, tmp_path: Path) -> None:
    zoo = next(entry for entry in list_models() if entry.kind == "ann")
    shutil.copytree(zoo.folder, tmp_path / "x")
    here = {"cwd": tmp_path / "x"}
    assert cli("info", ".", **here).returncode == 0
    assert "'' is neither a checkpoint folder nor a zoo model" in failure(cli("info", "", **here))
    args = ("convert", zoo.name, "--data", "", "--out", tmp_path / "never")
    assert "no dataset ''" in failure(cli(*args, **here))


def test_a_device_that_computes_nothing_is_refused(cli: Cli) -> None:
    line = failure(cli("evaluate", "x", "--data", "sample", "--device", "meta"))
    assert "device 'meta' cannot be used here (its tensors hold no numbers)" in line


def test_a_device_that_is_not_there_is_named(cli: Cli) -> None:
    line = failure(cli("evaluate", "x", "--data", "sample", "--device", "cuda:99"))
    assert "cuda:99" in line
    assert "--device cpu" in line


def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "sj_robust", "list"]
    for arguments in ([], ["--json"]):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(
                [*command, *arguments], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 1
        assert (
            done.stderr
            == "sj-robust: the output cannot be written (No space left on device): make room, or"
            " send it elsewhere\n"
        )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_before_is_not_missed(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m sj_robust list {closed}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (closed == "2>&-")


@pytest.mark.parametrize("address", ["http://user:pa/ss@host", "https://host:99999", "http://[::1"])
@pytest.mark.parametrize("arguments", [["info", "alice/snn"], ["doctor"]])
def test_an_address_of_the_hub_that_is_none_is_named(address: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "sj_robust", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "HF_ENDPOINT": address}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("sj-robust: HF_ENDPOINT (not shown) is not an address")
    assert "user" not in done.stderr


STRANGERS = [
    "\x1b]0;owned\x07\x1b[2J",
    "x\nsj-robust: verified, safe to use\x1b[8m",
    "\u202etxt",
    "\x9b31m",
    "[red]x[/red]",
    ":warning:",
]


@pytest.mark.parametrize("text", STRANGERS, ids=ascii)
def test_a_strangers_text_is_printed_as_it_is_written(cli: Any, tmp_path: Path, text: str) -> None:
    zoo_model = next(entry for entry in list_models() if entry.kind == "ann")
    for change in (
        lambda config: config["source"].update({text: text}),
        lambda config: config["settings"].update(note=text),
        lambda config: config.update({text: 1}),
        lambda config: config["created_with"].update(torch="2"),
        lambda config: config.update(name=text),
        lambda config: config.update(classes=[text] * 10),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        config = json.loads((zoo_model.folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        for arguments in (
            ("info", folder),
            ("info", folder, "--json"),
            ("compare", folder),
            ("card", folder),
        ):
            done = cli(*arguments)
            shown = done.stdout + done.stderr
            assert "Traceback" not in shown and "unexpected" not in shown
            assert not [
                character
                for character in shown
                if not character.isprintable() and character != "\n"
            ]
            assert not [
                line for line in shown.split("\n") if line.startswith("sj-robust: verified")
            ]


def test_options_have_the_bounds_and_words_of_the_settings(cli: Cli) -> None:
    for command, name, wrong in (
        (("convert", "any", "--data", "sample", "--out", "never"), "--timesteps", "1025"),
        (("convert", "any", "--data", "sample", "--out", "never"), "--reset", "none"),
        (("convert", "any", "--data", "sample", "--out", "never"), "--leak", "0"),
        (("finetune", "any", "--data", "sample", "--out", "never"), "--momentum", "1"),
        (("finetune", "any", "--data", "sample", "--out", "never"), "--step-size", "8"),
        (("evaluate", "any", "--data", "sample"), "--norm", "l3"),
        (("evaluate", "any", "--data", "sample"), "--restarts", "0"),
    ):
        done = cli(*command, name, wrong)
        assert done.returncode == 2
        assert name in done.stderr


def test_several_radii_in_one_are_told_how_to_be_given(cli: Cli) -> None:
    done = cli("evaluate", "resnet20.cifar10_linf_pgd", "--data", "sample", "--eps", "8/255,4/255")
    assert done.returncode == 2
    assert "for several, give the option once for each" in " ".join(done.stderr.split())
