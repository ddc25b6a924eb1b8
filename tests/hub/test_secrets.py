"""What a bad login or an address with a password leaves in errors, warnings, files and tracebacks:
neither of them."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import SNN, upload

from sj_robust import SJRobustError, pull, push
from sj_robust.checkpoint.config import ORIGIN
from sj_robust.hub import list_hub
from sj_robust.hub.search import identity

NAME, PASSWORD = "bob/snn", "Geheim99x"
CALLS: list[Callable[[str | None], Any]] = [
    lambda token: pull("bob/none", token=token),
    lambda token: push(SNN, "alice/snn", token=token),
    lambda token: list_hub(token=token),
    lambda token: identity(token),
]


@pytest.fixture
def remote(hub: Any) -> Any:
    return upload(hub, SNN, NAME)


@pytest.mark.parametrize("token", ["hf_alice\n", " hf_alice ", "\thf_alice\r\n"])
def test_white_space_around_a_token_is_not_part_of_it(
    hub: Any,
    remote: Any,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    upload(hub, SNN, "alice/private", private=True)
    assert pull("alice/private", tmp_path / "to", token=token)
    assert push(SNN, "alice/snn", token=token).created
    assert identity(token)["login"] == "logged in as alice"
    assert len(recwarn) == 0 or all("hf_alice" not in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize(
    "token",
    [
        "hf_alice\nX-Evil: 1",
        "hf_al ice",
        "hf_alicé",
        "hf_\x00alice",
        "hf_alice\x1b[31m",
        "Bearer hf_alice",
    ],
)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", ["argument", "environment", "file"])
def test_a_token_that_is_none_is_refused_and_not_shown(
    hub: Any,
    remote: Any,
    token: str,
    call: Callable[[str | None], Any],
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if given == "environment":
        if "\0" in token:
            pytest.skip("no variable holds a null character")
        monkeypatch.setenv("HF_TOKEN", token)
    elif given == "file":
        from huggingface_hub import constants

        (tmp_path / "token").write_text(token)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    # a wrong login does not fall back to it with a warning that tells the token
    pull(NAME, token="hf_bob")
    try:
        told = json.dumps(call(token if given == "argument" else None))
    except SJRobustError as error:
        told = "".join(traceback.format_exception(error))
    assert "the token (not shown) holds" in told
    assert "hf_al" not in told
    assert "alic" not in told.replace("alice/snn", "")


def test_a_login_that_cannot_be_read(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(SJRobustError, match="the stored login cannot be read"):
        pull("bob/snn")
    assert "cannot be read" in identity()["login"]


@pytest.mark.parametrize(
    "login", [f"carol:{PASSWORD}", f"{PASSWORD}", f"carol:x{PASSWORD}/y", f"carol:{PASSWORD}%40"]
)
@pytest.mark.parametrize("fault", ["", "status", "drop", "html", "redirect"])
def test_a_password_in_the_address_of_the_hub_is_nowhere(
    hub: Any,
    remote: Any,
    login: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", f"//{login}@"))
    if fault == "redirect":
        hub.fault(
            "answer",
            ".",
            status=302,
            headers={"Location": f"http://{login}@127.0.0.1:1/x"},
            times=None,
        )
    elif fault:
        hub.fault(fault, ".", times=None)
    told = []
    with caplog.at_level(logging.DEBUG if fault == "" else logging.WARNING):
        for call in CALLS:
            try:
                told.append(str(call("hf_alice")))
            except SJRobustError as error:
                told.append("".join(traceback.format_exception(error)))
    told += [str(warning.message) for warning in recwarn]
    told += [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(PASSWORD not in text for text in told), told
    assert any("127.0.0.1" in text for text in told)


def test_what_was_pulled_and_pushed_holds_no_password_and_the_address_counts_as_the_same(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(SNN, tmp_path / "snn"))
    push(folder, "alice/snn")
    record = json.loads((folder / ORIGIN).read_text())
    # an earlier one
    (folder / ORIGIN).write_text(
        json.dumps({**record, "endpoint": hub.endpoint.replace("//", f"//carol:{PASSWORD}@")})
    )
    (folder / "recipe.yaml").write_text("name: other\n")
    result = push(folder, "alice/snn")
    assert result.changed
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", f"//carol:{PASSWORD}@"))
    hub.store.tokens[base64.b64encode(f"carol:{PASSWORD}".encode()).decode()] = "alice"
    assert PASSWORD not in (folder / ORIGIN).read_text()
    assert json.loads((folder / ORIGIN).read_text())["endpoint"] == hub.endpoint
