"""What a bad connection does to push and to lists, and to the questions before a pull: the right
outcome, or one clear line in seconds."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import SNN, upload

from sj_robust import SJRobustError, pull, push
from sj_robust.hub import list_hub, remote

NAME = "alice/my-snn"
KINDS = ("truncate", "stall", "flip", "status", "drop")
FLAW = dict(after=20, seconds=0.8, status=503)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WORKING", (1.0, 0.5, 0.5))
    for module in ("download", "search", "upload"):
        monkeypatch.setattr(f"sj_robust.hub.{module}.ASKING", (1.0, 0.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SNN, tmp_path / "work" / "snn"))


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a Hub that is not there: nothing listens on its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        return address


def one_line(error: pytest.ExceptionInfo[SJRobustError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "hf_alice" not in message
    return message


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("truncate", "/commit/"),
        ("stall", "/commit/"),
        ("flip", "/commit/"),
        ("stall", "/preupload/"),
        ("drop", "/tag/"),
    ],
)
def test_a_push_whose_answer_is_lost_or_altered_is_healed_by_the_next(
    hub: Any, folder: Path, kind: str, path: str
) -> None:
    fault = hub.fault(kind, path, method="POST", **FLAW)
    with suppress(SJRobustError):  # some faults the client itself gets over
        push(folder, NAME)
    assert fault.met == 1
    result = push(folder, NAME)
    repository = hub.store.repositories[NAME]
    assert (result.commit, repository.tags) == (
        repository.branches["main"],
        {result.tag: repository.branches["main"]},
    )
    assert len(repository.commits) == 2
    assert (
        repository.at("main").files["model.safetensors"].content
        == (folder / "model.safetensors").read_bytes()
    )


def test_a_hub_that_falls_silent_is_not_waited_for(hub: Any, folder: Path) -> None:
    hub.fault("stall", "/commit/", method="POST", times=None, after=5, seconds=600)
    with pytest.raises(SJRobustError) as error:
        push(folder, NAME)
    assert "cannot be reached" in one_line(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_over_a_bad_connection_is_whole_or_an_error(hub: Any, kind: str) -> None:
    upload(hub, SNN, "bob/snn")
    whole = list_hub()
    fault = hub.fault(kind, "/api/models$", times=None, **FLAW)
    with suppress(SJRobustError):
        assert [model.name for model in list_hub()] == ["bob/snn"]
        # a list has no hash: a letter of a card may change, and no more than that
        assert kind == "flip"
    assert fault.met
    hub.faults.clear()
    assert list_hub() == whole


def test_a_hub_that_falls_silent_after_its_first_answer_is_not_waited_for(hub: Any) -> None:
    upload(hub, SNN, "bob/snn")
    fault = hub.fault("stall", "/api/models$", times=None, after=5, seconds=600, spared=1)
    with pytest.raises(SJRobustError) as error:
        list_hub()
    assert "cannot be reached" in one_line(error)
    assert fault.met


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_answer_to_the_first_question_of_a_pull(hub: Any, kind: str, tmp_path: Path) -> None:
    upload(hub, SNN, "bob/snn")
    fault = hub.fault(kind, "/api/models/bob/snn", **FLAW)
    with suppress(SJRobustError):
        pull("bob/snn", tmp_path / "first")
    assert fault.met == 1
    if (tmp_path / "first").exists():
        assert (tmp_path / "first" / "model.safetensors").read_bytes() == (
            SNN / "model.safetensors"
        ).read_bytes()
    assert (pull("bob/snn", tmp_path / "second") / "model.safetensors").read_bytes() == (
        SNN / "model.safetensors"
    ).read_bytes()


def test_without_a_hub_each_call_says_so(hub: Any, nobody: str, folder: Path) -> None:
    for call in (lambda: pull("bob/snn"), lambda: push(folder, NAME), lambda: list_hub()):
        with pytest.raises(SJRobustError) as error:
            call()
        assert f"{nobody} cannot be reached" in one_line(error)
        assert "local checks" not in str(error.value)


def test_a_dry_run_without_a_hub_tells_what_it_checked(hub: Any, nobody: str, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if path.name != "README.md")
    with pytest.raises(SJRobustError) as error:
        push(folder, NAME, dry_run=True)
    message = one_line(error)
    assert message.startswith(f"{nobody} cannot be reached")
    assert f"only the local checks were made, and passed ({len(files)} files, " in message
    assert int(message.split(" files, ")[1].split(" bytes")[0].replace(",", "")) > size
    assert hub.requests == []
    (folder / "README.md").write_text("no metadata")
    with pytest.raises(SJRobustError, match=r"README.md has no metadata"):
        push(folder, NAME, dry_run=True)


def test_a_dry_run_is_still_refused_for_what_the_hub_says(hub: Any, folder: Path) -> None:
    with pytest.raises(SJRobustError) as error:
        push(folder, NAME, dry_run=True, token="hf_expired")
    assert "refused the login" in one_line(error)
    assert "local checks" not in str(error.value)
