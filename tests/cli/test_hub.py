"""pull, push, list --hub, info and doctor against a Hub of our own, in one line each where
something is wrong."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import ANN, SNN, child, upload

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SNN, tmp_path / "work" / "snn"))


def failure(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "hf_alice" not in line
    return line


def test_push_pull_info_in_real_processes(
    hub: Any, process: Cli, cli: Cli, folder: Path, tmp_path: Path
) -> None:
    done = process("push", folder, "alice/snn")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"alice/snn@{hub.store.repositories['alice/snn'].branches['main']}\n"
    assert "new" in done.stderr and "model.safetensors" in done.stderr
    assert "%|" not in done.stderr  # no bars where nobody watches
    done = process("pull", "alice/snn", "--to", tmp_path / "pulled")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'pulled'}\n", "")
    assert (tmp_path / "pulled" / "model.safetensors").read_bytes() == (
        SNN / "model.safetensors"
    ).read_bytes()
    done = cli("info", "alice/snn")
    assert ("cifar_resnet20" in done.stdout, done.stderr) == (True, "")
    done = process("pull", "alice/snn", env={"HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "bob/x is not in the cache" in failure(
        process("pull", "bob/x", env={"HF_HUB_OFFLINE": "1"})
    )


def without_torch(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules['torch'] = None; sys.argv = ['sj-robust', *{args!r}]; from"
        " sj_robust.cli import main; main()"
    )
    command, environment = child(code, **environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_pull_imports_no_torch_and_a_push_that_cannot_be_neither(hub: Any) -> None:
    upload(hub, SNN, "bob/snn")
    done = without_torch("pull", "bob/snn")
    assert done.returncode == 0, done.stderr
    assert "refused the login" in failure(
        without_torch("push", SNN.name, "alice/snn", HF_TOKEN="hf_expired")
    )


def test_dry_run_and_json(hub: Any, cli: Cli, folder: Path) -> None:
    done = cli("push", folder, "alice/snn", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would go to" in done.stderr and "a new repository" in done.stderr
    facts = json.loads(cli("push", folder, "alice/snn", "--dry-run", "--json").stdout)
    assert (facts["dry_run"], facts["commit"], facts["created"]) == (True, None, True)
    assert hub.store.repositories == {}
    upload(hub, SNN, "bob/snn")
    facts = json.loads(cli("pull", "bob/snn", "--json").stdout)
    assert (facts["kind"], Path(facts["folder"]).name) == (
        "snn",
        hub.store.repositories["bob/snn"].branches["main"],
    )


def test_the_whole_zoo_and_its_list(hub: Any, cli: Cli) -> None:
    done = cli("push", "--all", "lab", "--private")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(hub.store.repositories) > 2
    assert all(repository.private for repository in hub.store.repositories.values())
    listed = json.loads(cli("list", "--hub", "--json").stdout)
    assert {entry["name"] for entry in listed if entry["where"] == "hub"} == set(
        hub.store.repositories
    )
    assert {f"lab/{entry['name']}" for entry in listed if entry["where"] == "zoo"} == set(
        hub.store.repositories
    )
    shown = cli("list", "--hub", "--kind", "ann", "--dataset", "cifar10").stdout
    assert f"lab/{ANN.name}" in shown and "-snn-" not in shown
    assert (
        f"{100 * json.loads((ANN / 'evaluation.json').read_text())['clean']['value']:.1f}" in shown
    )
    assert "no such models" in cli("list", "--hub", "--dataset", "svhn").stdout
    assert "lab/" not in cli("list").stdout


@pytest.mark.parametrize(
    "args",
    [
        ("pull",),
        ("push",),
        ("push", "folder"),
        ("push", "folder", "a/b", "--all", "lab"),
        ("list", "--kind", "cnn"),
    ],
)
def test_wrong_usage(cli: Cli, args: tuple[str, ...]) -> None:
    done = cli(*args)
    assert (done.returncode, done.stdout) == (2, "")


def test_failures_are_one_line(hub: Any, cli: Cli, folder: Path, tmp_path: Path) -> None:
    upload(hub, SNN, "bob/gated", gated=True)
    upload(hub, SNN, "bob/snn")
    assert "is gated" in failure(cli("pull", "bob/gated"))
    assert "nor a repository that" in failure(cli("pull", "bob/none"))
    assert "nor a repository that" in failure(cli("info", "bob/none"))
    assert "no revision 'v9'" in failure(cli("pull", "bob/snn", "--revision", "v9"))
    assert "may not push" in failure(cli("push", folder, "bob/new"))
    hub.fault("flip", "/lfs/objects", times=None)
    assert "arrived twice" in failure(cli("pull", "bob/snn", "--to", tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    hub.fault("drop", "/api/models", times=None)
    assert "cannot be reached" in failure(cli("list", "--hub"))


def test_doctor_says_how_the_hub_answers_and_keeps_the_token(
    hub: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("doctor")
    assert f"{hub.endpoint}: reachable" in done.stdout
    assert "logged in as alice" in done.stdout
    told = done.stdout + done.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    done = cli("doctor")
    assert "refused the login" in done.stdout
    told += done.stdout + done.stderr
    monkeypatch.delenv("HF_TOKEN")
    assert "no token" in cli("doctor").stdout
    hub.fault("drop", "/api/models", times=None)
    assert "cannot be reached" in json.loads(cli("doctor", "--json").stdout)["hub"]
    assert "hf_alice" not in told and "hf_expired" not in told


def test_without_a_network_each_command_is_one_line(
    hub: Any, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        for command in (
            ("pull", "bob/snn"),
            ("info", "bob/snn"),
            ("list", "--hub"),
            ("push", folder, "alice/snn"),
        ):
            assert f"{address} cannot be reached" in failure(cli(*command))
        line = failure(cli("push", folder, "alice/snn", "--dry-run"))
        count = sum(path.is_file() for path in folder.rglob("*"))
        assert (
            f"{address} cannot be reached" in line
            and f"only the local checks were made, and passed ({count} files" in line
            and all(file.name in line for file in folder.iterdir() if file.is_file())
        )
        done = cli("doctor")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{address} cannot be reached" in done.stdout
    assert hub.requests == []


def test_doctor_names_the_folders_and_no_password(
    hub: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", "//someone:hf_secret@"))
    done = cli("doctor", "--json")
    facts = json.loads(done.stdout)
    assert facts["cache"] == f"{tmp_path / 'sj_robust'} (not there yet)"
    assert facts["hub cache"].startswith(str(tmp_path / "hf"))
    assert Path(facts["zoo"]) == SNN.parents[1]
    assert facts["hub"].startswith(hub.endpoint)
    assert "hf_secret" not in done.stdout + done.stderr + cli("doctor").stdout
    assert "hf_alice" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("doctor", "--json"),
        ("pull", "bob/none"),
        ("list", "--hub"),
        ("info", "bob/none"),
        ("push", SNN.name, "alice/snn"),
        ("push", SNN.name, "alice/snn", "--dry-run", "--json"),
        ("pull", "http://carol:Geheim99x@hub/owner/name"),
        ("compare", "bob/none"),
    ],
)
@pytest.mark.parametrize("debug", ["", "1"])
def test_no_command_shows_a_password_or_a_token(
    hub: Any, cli: Cli, command: tuple[str, ...], debug: str
) -> None:
    secrets = {
        "HF_ENDPOINT": hub.endpoint.replace("//", "//carol:Geheim99x@"),
        "HF_TOKEN": "hf_alice\n",
        "SJ_ROBUST_DEBUG": debug,
    }
    done = cli(*command, env=secrets)
    assert "Geheim99x" not in done.stdout + done.stderr
    assert "hf_alice" not in done.stdout + done.stderr
    if not debug:
        assert len(done.stderr.splitlines()) <= 12


def test_a_broken_token_is_one_line_for_each_command(hub: Any, cli: Cli) -> None:
    for command in (("pull", "bob/none"), ("list", "--hub"), ("push", SNN.name, "alice/snn")):
        assert "the token (not shown) holds" in failure(
            cli(*command, env={"HF_TOKEN": "hf_secret\nX: 1"})
        )
    assert (
        "the token (not shown) holds" in cli("doctor", env={"HF_TOKEN": "hf_secret\nX: 1"}).stdout
    )
