"""A name that leads nowhere: what was looked for where, and the nearest name, for each way to be
wrong."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import ANN, SNN, upload

from sj_robust import SJRobustError, load, pull, push
from sj_robust.compare import compare
from sj_robust.recipes.network import begun_from, from_text
from sj_robust.recipes.spec import AnnSettings

TAKES: list[Callable[[Any], Any]] = [
    load,
    pull,
    lambda name: compare([name]),
    lambda name: push(name, "alice/x"),
]


@pytest.fixture
def here(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "here"
    (place / "runs" / "snn").mkdir(parents=True)
    (place / "my-network").mkdir()
    (place / "notes.txt").write_text("x")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "https_proxy"])
def test_a_proxy_that_is_no_address_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    from huggingface_hub import close_session

    close_session()  # the client reads these when it is made
    monkeypatch.setenv(variable, "http://user:secret-word@[::bad")
    message = fails(pull, "alice/snn", "ALL_PROXY")
    assert "secret-word" not in message


def fails(call: Callable[[Any], Any], name: Any, *fragments: str) -> str:
    with pytest.raises(SJRobustError) as error:
        call(name)
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message
    return message


@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet20-snn-t4.cifar10_linf_pdg", SNN.name),
        ("resnet20-snn-t4-cifar10_linf_pgd", SNN.name),
        (ANN.name.upper(), ANN.name),
        ("resnet20.cifar10_linf", ANN.name),
        ("my-netwrok", "my-network"),
    ],
)
def test_a_misspelt_name_of_the_zoo_or_of_a_folder_here(
    hub: Any, here: Path, take: Callable[[Any], Any], name: str, nearest: str
) -> None:
    message = fails(
        take, name, repr(name), "neither a checkpoint folder nor a zoo model", str(here), "zoo"
    )
    assert message.split("did you mean ")[1].split(",")[0].rstrip("?") == nearest
    assert hub.requests == []


@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("./runs/snm", ["is not a folder", "/here/runs has no 'snm'", "did you mean runs/snn?"]),
        ("runs/old/snn", ["is not a folder", "/here/runs has no 'old'"]),
        ("./rums/snn", ["/here has no 'rums'"]),
        ("/nowhere/at/all", ["/ has no 'nowhere'"]),
        ("~no-such-user/x/y", ["is not a folder"]),
        ("../here/runs/snm", ["did you mean"]),
        ("./" + "x" * 300, ["is not a folder"]),
        (Path("runs/snm"), ["has no 'snm'", "did you mean runs/snn?"]),
        (f"./{ANN.name}/", [f"did you mean {ANN.name}"]),
    ],
)
def test_a_missing_folder(
    hub: Any, here: Path, take: Callable[[Any], Any], name: Any, fragments: list[str]
) -> None:
    fails(take, name, *fragments)
    assert hub.requests == []


def test_a_file_is_called_one(hub: Any, here: Path) -> None:
    for take in TAKES[:3]:
        fails(take, "./notes.txt", "is not a folder but a file")


@pytest.mark.parametrize("take", TAKES[:3])
def test_what_the_hub_does_not_have_may_be_a_folder(
    hub: Any, here: Path, take: Callable[[Any], Any]
) -> None:
    upload(hub, SNN, "bob/snn")
    fails(
        take, "runs/snm", "neither a folder in", str(here), hub.endpoint, "did you mean runs/snn?"
    )
    fails(take, f"bob/{SNN.name[:-1]}", "nor a repository that", f"did you mean {SNN.name}")


@pytest.mark.parametrize("take", TAKES[:3])
def test_a_hub_that_cannot_be_reached_was_asked_for_something(
    hub: Any, here: Path, take: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        fails(
            take,
            "runs/snm",
            f"{address} cannot be reached",
            "no folder in",
            str(here),
            "did you mean runs/snn?",
        )


def test_a_source_network_that_is_none(hub: Any, here: Path) -> None:
    fails(
        from_text,
        ANN.name.replace("pgd", "pdg"),
        "unknown architecture",
        "zoo model",
        f"did you mean {ANN.name}",
    )
    fails(from_text, "resnett18", "unknown architecture", "did you mean resnet18")
    fails(
        lambda name: begun_from(from_text(name)), "runs/old/ann", "is not a folder", "has no 'old'"
    )
    fails(lambda name: begun_from(AnnSettings(checkpoint=name)), ANN.name[:-1], "did you mean")


def test_who_asks_for_the_hub_s_evaluations_gets_no_folder_of_that_name(
    hub: Any, here: Path
) -> None:
    upload(hub, SNN, "alice/snn")
    shutil.copytree(ANN, here / "alice" / "snn")
    (row,) = compare([], on_hub=["alice/snn"]).rows
    assert (row.name, row.kind) == ("alice/snn", "snn")
    (row,) = compare(["alice/snn"]).rows
    assert row.kind == "ann"
