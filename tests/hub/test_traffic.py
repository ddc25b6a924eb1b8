"""A Hub that sends, asks or waits without end: each call ends in one line, and has taken no more
than what was listed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import SNN, child, upload

from sj_robust import SJRobustError, pull, push, traffic
from sj_robust.hub import list_hub

NAME = "bob/snn"
GIB = 1 << 30


@pytest.fixture
def remote(hub: Any) -> Any:
    return upload(hub, SNN, NAME)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client wanted to sleep; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "WINDOW", 0.3)
    monkeypatch.setattr(traffic, "SILENCE", 0.5)


def fails(call: Any, *fragments: str) -> str:
    with pytest.raises(SJRobustError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    for fragment in fragments:
        assert fragment in message, message
    return message


WAITS = [
    ({"Retry-After": "86400"}, "24 hours"),
    ({"Retry-After": " 300 "}, "5 minutes"),
    ({"Retry-After": "9" * 30}, "more than 1000 days"),
    ({"ratelimit": '"api";r=0;t=86400'}, "24 hours"),
]


@pytest.mark.parametrize(("headers", "said"), WAITS)
@pytest.mark.parametrize("path", ["/api/models/", "/lfs/objects", "/resolve/.*config.json"])
def test_a_long_wait_is_told_and_not_slept(
    hub: Any,
    remote: Any,
    naps: list[float],
    headers: dict[str, str],
    said: str,
    path: str,
    tmp_path: Path,
) -> None:
    hub.fault("status", path, status=429, headers=headers, times=None)
    fails(lambda: pull(NAME, tmp_path / "to"), "asks to slow down (429)", said)
    assert sum(naps) <= traffic.MAX_WAIT
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/preupload/"),
        ("POST", "/commit/"),
        ("POST", "/objects/batch"),
        ("PUT", "/lfs/upload"),
        ("POST", "/api/repos/create"),
        ("POST", "/tag/"),
    ],
)
def test_a_push_does_not_sleep_a_day_either(
    hub: Any, naps: list[float], method: str, path: str
) -> None:
    hub.fault(
        "status", path, method=method, status=503, headers={"Retry-After": "86400"}, times=None
    )
    fails(lambda: push(SNN, "alice/snn"), "try again in 24 hours")
    assert sum(naps) <= traffic.MAX_WAIT


def test_a_short_wait_is_waited_for_but_not_again_and_again(
    hub: Any, remote: Any, naps: list[float], tmp_path: Path
) -> None:
    fault = hub.fault("status", "/lfs/objects", status=429, headers={"Retry-After": "7"})
    assert pull(NAME, tmp_path / "to")
    assert fault.met == 1
    assert naps in ([8.0], [1])  # an old huggingface_hub waits as long as it pleases
    naps.clear()
    remote.put({"evaluation_source.json": (SNN / "evaluation_source.json").read_bytes() + b"\n"})
    hub.fault(
        "status",
        "/resolve/.*evaluation_source.json",
        status=429,
        headers={"Retry-After": "50"},
        times=None,
    )
    fails(lambda: pull(NAME), "asks to slow down (429): wait 50 seconds")
    assert naps in ([51.0], [1])


def test_a_listed_wait_uses_the_cache(hub: Any, remote: Any, naps: list[float]) -> None:
    pull(NAME)
    hub.fault("status", "/api/models/", status=429, headers={"Retry-After": "86400"}, times=None)
    with pytest.warns(UserWarning, match="taken from the cache"):
        assert pull(NAME)
    assert naps == []


@pytest.mark.parametrize(
    "path",
    [
        "/lfs/objects",
        "/resolve/.*/config.json",
        "/resolve/.*/README.md",
        "/resolve/.*/evaluation.json",
    ],
)
@pytest.mark.parametrize("kind", ["long", "endless"])
def test_a_body_longer_than_listed_is_not_read_to_its_end(
    hub: Any, remote: Any, path: str, kind: str, tmp_path: Path
) -> None:
    fault = hub.fault(kind, path, after=3 * GIB, times=None)
    fails(lambda: pull(NAME, tmp_path / "to"), "bytes", "expected")
    assert fault.met == 2
    assert fault.sent < 100 << 20  # what lies in the buffers of a connection
    assert not (tmp_path / "to").exists()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 5 << 20


@pytest.mark.parametrize("kind", ["long", "endless"])
@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/api/models/bob", lambda: pull(NAME)),
        ("/api/models$", list_hub),
        ("/api/models/alice", lambda: push(SNN, "alice/snn")),
    ],
)
def test_an_answer_without_end_is_not_read_to_its_end(
    hub: Any, remote: Any, kind: str, path: str, call: Any
) -> None:
    fault = hub.fault(kind, path, after=3 * GIB, times=None)
    fails(call, "expected")
    assert fault.sent < 200 << 20


def test_what_an_error_says_without_end_is_not_read_to_its_end(hub: Any, remote: Any) -> None:
    fault = hub.fault("endless", "/resolve/.*/config.json", after=3 * GIB, status=404, times=None)
    fails(lambda: pull(NAME), "answered 404")
    assert 0 < fault.sent < 100 << 20


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate"])
def test_what_is_packed_without_being_asked_for_is_not_unpacked(
    hub: Any, remote: Any, encoding: str
) -> None:
    hub.fault(
        "answer",
        "/resolve/.*/config.json",
        headers={"Content-Encoding": encoding},
        body=b"\x1f\x8b" + bytes(100),
        times=None,
    )
    fails(lambda: pull(NAME), "packed")
    assert all(request.headers["Accept-Encoding"] == "identity" for request in hub.requests)


def test_a_listing_of_a_million_files(hub: Any, remote: Any) -> None:
    files = [
        {"rfilename": f"file-{number:07}", "size": 1, "blobId": "0" * 40}
        for number in range(200_000)
    ]
    hub.fault(
        "answer",
        "/api/models/bob",
        body=json.dumps({"id": NAME, "sha": "0" * 40, "siblings": files}).encode(),
        times=None,
    )
    fails(lambda: pull(NAME), "announces", "expected")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("config.json", 2 << 20),
        ("README.md", 2 << 20),
        ("recipe.yaml", 2 << 20),
        ("figures/accuracy.png", 9 << 20),
    ],
)
def test_files_listed_larger_than_any_of_their_kind_are_not_asked_for(
    hub: Any, remote: Any, name: str, size: int
) -> None:
    remote.put({name: bytes(size)})
    fails(lambda: pull(NAME), f"{name} with {size} bytes")
    assert not hub.asked("GET", "/resolve/")


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/lfs/objects", lambda: pull(NAME)),
        ("/api/models/bob", lambda: pull(NAME)),
        ("/resolve/.*/config.json", lambda: pull(NAME)),
        ("/api/models$", list_hub),
    ],
)
@pytest.mark.parametrize("pieces", [1, 10])
def test_a_byte_now_and_then_is_no_progress(
    hub: Any, remote: Any, hasty: None, path: str, call: Any, pieces: int
) -> None:
    hub.fault("slow", path, after=pieces, seconds=0.1, times=None)
    fails(call, "less than 2048 bytes a second", "check the network")


@pytest.mark.parametrize("path", ["/lfs/objects", "/api/models/bob"])
def test_headers_that_come_letter_by_letter_are_not_waited_for(
    hub: Any, remote: Any, hasty: None, path: str, tmp_path: Path
) -> None:
    fault = hub.fault("drip", path, seconds=0.1, times=None)
    fails(lambda: pull(NAME, tmp_path / "to"), "does not answer within")
    hub.faults.remove(fault)
    # the client's session, closed to end the request, is a new one
    assert pull(NAME, tmp_path / "to")
    assert not any("Timer" in type(thread).__name__ for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/lfs/objects", lambda: pull(NAME)),
        ("/api/models/bob", lambda: pull(NAME)),
        ("/resolve/.*/config.json", lambda: pull(NAME)),
        ("/api/models$", list_hub),
    ],
)
def test_redirections_end(hub: Any, remote: Any, path: str, call: Any) -> None:
    for method in ("GET", "HEAD"):
        hub.fault(
            "answer",
            path,
            method=method,
            status=302,
            times=None,
            headers={
                "Location": (
                    "{endpoint}/api/models/bob/snn" if "bob" in path else "{endpoint}/api/models"
                )
            },
        )
    hub.fault(
        "answer",
        "/api/models",
        status=307,
        times=None,
        headers={"Location": "{endpoint}/api/models"},
    )
    fails(call, "redirects without end")
    assert len(hub.requests) < 100


def test_a_list_that_pages_for_ever_ends(
    hub: Any, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MAX_REQUESTS", 20)
    hub.fault(
        "answer",
        "/api/models$",
        body=b"[]",
        headers={"Link": '<{endpoint}/api/models?cursor=1>; rel="next"'},
        times=None,
    )
    fails(list_hub, "has no end", "requests")
    assert len(hub.requests) == 20


def test_a_byte_for_each_connection_ends(hub: Any, remote: Any, naps: list[float]) -> None:
    hub.fault("truncate", "/lfs/objects", after=1, times=None)
    fails(lambda: pull(NAME), "cannot be reached")
    assert len(naps) < 20


def test_conversations_at_once_keep_to_their_own_limits_and_leave_the_session_as_it_was(
    hub: Any, remote: Any, tmp_path: Path
) -> None:
    from huggingface_hub.utils import get_session

    before = {kind: list(hooks) for kind, hooks in get_session().event_hooks.items()}
    failed: list[BaseException] = []

    def fetch(number: int) -> None:
        try:
            for _ in range(3):
                pull(NAME, tmp_path / f"to-{number}")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert get_session().event_hooks == before


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (dict(kind="status", status=429, headers={"Retry-After": "86400"}), "HfHubHTTPError"),
        (
            dict(kind="answer", status=200, body=b"x", headers={"Content-Encoding": "gzip"}),
            "packed",
        ),
    ],
)
def test_the_download_of_a_data_set_is_held_to_limits_too(
    hub: Any, fault: dict[str, Any], said: str
) -> None:
    found = {"X-Repo-Commit": "0" * 40, "ETag": '"abc"'}
    hub.fault(
        "answer", "/datasets/", method="HEAD", status=200, body=bytes(10), headers=found, times=None
    )
    hub.fault(path="/datasets/", times=None, **fault)
    # the client's address is read at its import
    command, environment = child("import sj_robust; sj_robust.load_dataset('cifar10')")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "could not download cifar10" in done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert hub.asked("GET", "/datasets/") == 1
