"""pull against a Hub of our own with huggingface_hub's real client: what comes back is the right
checkpoint or one clear error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server.fixtures import ANN, SNN, child, upload
from huggingface_hub import constants

import sj_robust
from sj_robust import SJRobustError, load, pull
from sj_robust.checkpoint.config import ORIGIN
from sj_robust.checkpoint.files import is_own

NAME = "bob/snn"
FILES = {path.relative_to(SNN).as_posix() for path in SNN.rglob("*") if path.is_file()}
WEIGHTS = "model.safetensors"


@pytest.fixture
def remote(hub: Any) -> Any:
    return upload(hub, SNN, NAME)


def same(folder: Path, source: Path = SNN) -> bool:
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {ORIGIN}
    return found == FILES and all(
        (folder / name).read_bytes() == (source / name).read_bytes() for name in FILES
    )


def refuses(name: str, *fragments: str, **how: Any) -> str:
    with pytest.raises(SJRobustError) as error:
        pull(name, **how)
    message = str(error.value)
    assert "\n" not in message
    assert "hf_alice" not in message
    for fragment in fragments:
        assert fragment in message, message
    return message


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_load_from_the_hub_gives_the_same_logits_bit_for_bit(hub: Any, remote: Any) -> None:
    expected = logits(load(SNN))
    head = remote.branches["main"]
    assert torch.equal(logits(sj_robust.load(NAME)), expected)
    assert torch.equal(logits(sj_robust.load(f"{NAME}@{head}")), expected)


def test_a_pull_is_pinned_and_fetches_own_files_only(hub: Any, remote: Any, tmp_path: Path) -> None:
    first = remote.put(
        {
            "pytorch_model.bin": b"pickle",
            "notes.txt": b"x",
            "figures/deep/x.png": b"x",
            "figures/x.exe": b"x",
        }
    ).sha
    folder = pull(NAME)
    assert folder.name == first
    assert same(folder)
    assert not hub.asked("HEAD", "pytorch_model|notes|exe|deep|gitattributes")
    remote.put({"README.md": b"newer"})
    assert same(pull(f"{NAME}@{first}", tmp_path / "old"))
    assert (pull(NAME, tmp_path / "new") / "README.md").read_bytes() == b"newer"
    origin = json.loads((tmp_path / "new" / ORIGIN).read_text())
    assert (origin["repo"], origin["commit"], origin["revision"]) == (
        NAME,
        remote.branches["main"],
        "main",
    )
    assert not any(path.is_symlink() for path in (tmp_path / "new").rglob("*"))


def test_branches_and_tags(hub: Any, remote: Any) -> None:
    remote.branches["feature/x"] = remote.tags["v1"] = remote.branches["main"]
    remote.put({"README.md": b"newer"})
    assert same(pull(f"{NAME}@v1"))
    assert same(pull(NAME, revision="feature/x"))
    refuses(f"{NAME}@v2", "no revision 'v2'")
    refuses(f"{NAME}@v1", "give one of them", revision="main")
    refuses(f"{NAME}@../../x", "is not a revision")


def test_a_cached_pull_fetches_nothing(hub: Any, remote: Any) -> None:
    pull(NAME)
    before = hub.asked("GET", "/resolve/|/lfs/")
    assert same(pull(NAME))
    assert hub.asked("GET", "/resolve/|/lfs/") == before


def test_zoo_models_and_folders_need_no_network(hub: Any, tmp_path: Path) -> None:
    assert pull(SNN.name) == SNN
    assert same(pull(SNN.name, tmp_path / "copy"))
    assert pull(tmp_path / "copy") == tmp_path / "copy"
    content = bytearray((tmp_path / "copy" / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / "copy" / WEIGHTS).write_bytes(content)
    refuses(str(tmp_path / "copy"), WEIGHTS, "altered")
    refuses(SNN.name, "has no revision", revision="v1")
    assert hub.requests == []


def test_the_token_stays_with_the_hub(hub: Any, remote: Any) -> None:
    pull(NAME)
    assert all(
        request.token is None for request in hub.requests if request.path.startswith("/lfs/objects")
    )
    assert any(request.token == "hf_alice" for request in hub.requests)


FAULTS_HEALED = [
    pytest.param(dict(kind="flip", path="/lfs/objects"), id="flipped byte in LFS"),
    pytest.param(
        dict(kind="flip", path="/resolve/.*/config.json"), id="flipped byte in a git file"
    ),
    pytest.param(
        dict(kind="flip", path="/resolve/.*/evaluation.json"), id="flipped byte in the evaluation"
    ),
    pytest.param(dict(kind="html-equal", path="/lfs/objects"), id="page of equal length"),
    pytest.param(dict(kind="html", path="/lfs/objects"), id="page"),
    pytest.param(dict(kind="short", path="/lfs/objects"), id="short"),
    pytest.param(dict(kind="truncate", path="/lfs/objects"), id="truncated"),
    pytest.param(
        dict(kind="truncate", path="/resolve/.*/config.json", after=10), id="truncated config"
    ),
    pytest.param(dict(kind="stall", path="/lfs/objects", seconds=3), id="stalled"),
    pytest.param(dict(kind="drop", path="/lfs/objects"), id="dropped"),
    pytest.param(dict(kind="status", path="/lfs/objects", status=503), id="503 of a file"),
    pytest.param(
        dict(kind="status", path="/resolve/", method="HEAD", status=502), id="502 of a head"
    ),
]


@pytest.mark.parametrize("fault", FAULTS_HEALED)
def test_what_goes_wrong_once_is_healed(
    hub: Any, remote: Any, fault: dict[str, Any], tmp_path: Path
) -> None:
    injected = hub.fault(**fault)
    assert same(pull(NAME, tmp_path / "to"))
    assert injected.met == 1


@pytest.mark.parametrize(
    ("fault", "fragment"),
    [
        pytest.param(
            dict(kind="flip", path="/lfs/objects"),
            "arrived twice with another content",
            id="flipped byte in LFS",
        ),
        pytest.param(
            dict(kind="flip", path="/resolve/.*/recipe.yaml"),
            "recipe.yaml of bob/snn",
            id="flipped byte in a git file",
        ),
        pytest.param(
            dict(kind="html-equal", path="/resolve/.*/config.json"),
            "config.json of bob/snn",
            id="page of equal length",
        ),
        pytest.param(dict(kind="html", path="/resolve/"), "Consistency check failed", id="page"),
        pytest.param(
            dict(kind="short", path="/lfs/objects"), "Consistency check failed", id="short"
        ),
        pytest.param(
            dict(kind="status", path="/lfs/objects", status=503), "answered 503", id="503 of a file"
        ),
        pytest.param(
            dict(kind="status", path="/lfs/objects", status=404), "answered 404", id="404 of a file"
        ),
        pytest.param(dict(kind="status", path="/api/models/", status=429), "slow down", id="429"),
        pytest.param(
            dict(kind="html", path="/api/models/"), "not the Hub's", id="page for the API"
        ),
        pytest.param(dict(kind="drop", path="/api/models/"), "cannot be reached", id="dropped API"),
        pytest.param(
            dict(kind="status", path="/api/models/", status=500),
            "answered 500",
            id="500 of the API",
        ),
    ],
)
def test_what_goes_wrong_for_ever_is_named_and_leaves_nothing(
    hub: Any, remote: Any, fault: dict[str, Any], fragment: str, tmp_path: Path
) -> None:
    injected = hub.fault(**fault, times=None)
    refuses(NAME, fragment, to=tmp_path / "to")
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}
    assert no_wrong_file(tmp_path)
    hub.faults.remove(injected)
    assert same(pull(NAME, tmp_path / "to"))


def no_wrong_file(home: Path) -> bool:
    """Whether every blob left in the cache is the content it is named by."""
    blobs = [path for path in home.glob("hf/hub/*/blobs/*") if len(path.name) == 64]
    return all(
        hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs
    ) and not list(home.rglob("*.incomplete"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncate", "stall"])
def test_a_connection_that_never_delivers_ends_in_an_error(
    hub: Any, remote: Any, kind: str, tmp_path: Path
) -> None:
    hub.fault(kind, "/lfs/objects", times=None, seconds=2)
    refuses(NAME, "cannot be reached", to=tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert no_wrong_file(tmp_path)


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "evaluation.json", "README.md"])
@pytest.mark.parametrize("way", ["blob", "link"])
def test_a_poisoned_cache_is_found_and_repaired(hub: Any, remote: Any, file: str, way: str) -> None:
    cached = pull(NAME) / file
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    if way == "link":  # a copy in place of the link
        cached.unlink()
    cached.write_bytes(content)
    assert cached.read_bytes() == bytes(content)
    assert same(pull(NAME))


def test_offline_uses_a_complete_cache_and_checks_it(
    hub: Any, remote: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = pull(NAME)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(NAME) == folder
    assert same(pull(f"{NAME}@{folder.name}", tmp_path / "to"))
    assert load(NAME).timesteps == 4
    refuses("bob/other", "bob/other is not in the cache", "HF_HUB_OFFLINE")
    refuses(f"{NAME}@v1", "not in the cache")
    evaluation = (folder / "evaluation.json").resolve()
    good = evaluation.read_bytes()
    evaluation.write_bytes(good.replace(b"0.6", b"0.9"))
    refuses(NAME, "evaluation.json of bob/snn is damaged in the cache", "HF_HUB_OFFLINE")
    evaluation.write_bytes(good)
    (folder / WEIGHTS).unlink()
    refuses(NAME, "model.safetensors of bob/snn is not in the cache")
    assert len(hub.requests) == asked


def test_a_hub_out_of_order_is_replaced_by_the_cache_with_a_warning(hub: Any, remote: Any) -> None:
    pull(NAME)
    hub.fault("status", "/api/models/", status=503, times=None)
    with pytest.warns(UserWarning, match="taken from the cache"):
        assert same(pull(NAME))


def test_private_gated_unknown_and_refused(
    hub: Any, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, SNN, "bob/private", private=True)
    gated = upload(hub, SNN, "bob/gated", gated=True)
    for name in ("bob/private", "bob/none"):
        refuses(name, name, "nor a repository that", "log in")
    refuses("bob/gated", "bob/gated is gated", "ask for access")
    assert same(pull("bob/private", token="hf_bob"))
    gated.granted.add("alice")
    assert same(pull("bob/gated"))
    refuses(NAME, "refused the login", token="hf_expired")
    monkeypatch.delenv("HF_TOKEN")
    assert same(pull(NAME))
    refuses("bob/none", "nor a repository that")


def change_config(**changes: Any) -> bytes:
    return json.dumps({**json.loads((SNN / "config.json").read_text()), **changes}).encode()


@pytest.mark.parametrize(
    ("files", "fragments"),
    [
        pytest.param(
            {"config.json": b"{}", WEIGHTS: b"x"},
            ["bob/bad@", "not written by sj-robust"],
            id="foreign",
        ),
        pytest.param(
            {"config.json": b'{"architectures": ["BertModel"]}', "pytorch_model.bin": b"x"},
            ["pickle only"],
            id="pickle only",
        ),
        pytest.param({"weights.pth": b"x"}, ["pickle only"], id="pickle without config"),
        pytest.param({"config.json": b"{}"}, ["has no model.safetensors"], id="no weights"),
        pytest.param({}, ["has no config.json"], id="empty"),
        pytest.param(
            {"config.json": b" " * (2 << 20), WEIGHTS: b"x"},
            ["config.json with 2097152 bytes"],
            id="giant config",
        ),
        pytest.param(
            {"config.json": b"[" * 100_000, WEIGHTS: b"x"}, ["nested too deeply"], id="deep config"
        ),
        pytest.param(
            {"config.json": change_config(), WEIGHTS: b"x" * 1097284},
            ["another model.safetensors"],
            id="other weights",
        ),
        pytest.param(
            {"config.json": change_config(), WEIGHTS: b"x"},
            ["another model.safetensors"],
            id="short weights",
        ),
        pytest.param(
            {"config.json": change_config(format_version=2), WEIGHTS: b"x"},
            ["newer sj-robust"],
            id="newer",
        ),
        pytest.param(
            {"config.json": change_config(architecture="hf-hub:bob/x"), WEIGHTS: b"x"},
            ["architecture"],
            id="hostile architecture",
        ),
        pytest.param({"../../escape": b"x"}, ["reaches outside"], id="dots"),
        pytest.param({"figures/../../escape.png": b"x"}, ["reaches outside"], id="dots in figures"),
        pytest.param({"/etc/escape": b"x"}, ["reaches outside"], id="absolute"),
        pytest.param({"figures\\..\\escape.png": b"x"}, ["reaches outside"], id="backslashes"),
        pytest.param(
            {f"figures/{i}.png": b"x" for i in range(40)}, ["files of a checkpoint"], id="too many"
        ),
    ],
)
def test_malformed_and_hostile_repositories(
    hub: Any, files: dict[str, bytes], fragments: list[str], tmp_path: Path
) -> None:
    whole = {path: (SNN / path).read_bytes() for path in ("config.json", WEIGHTS)}
    hub.create("bob/bad").put(
        {**(whole if any(".." in name or "/" in name for name in files) else {}), **files}
    )
    message = refuses("bob/bad", *fragments, to=tmp_path / "to")
    assert str(tmp_path) not in message
    assert not list(tmp_path.rglob("*escape*"))
    assert not (tmp_path / "to").exists()


def test_an_architecture_timm_does_not_know_is_refused_by_load(hub: Any, remote: Any) -> None:
    remote.put({"config.json": change_config(architecture="resnet_of_another_library")})
    assert pull(NAME)
    with pytest.raises(SJRobustError, match="not known to timm"):
        load(NAME)


@pytest.mark.parametrize(
    "trick",
    [
        "../x",
        "a/../b",
        "a/b/c",
        "/etc/x",
        "a//b",
        "a/.b",
        "-a/b",
        "a/b--c",
        "http://x/y",
        "a/b\n",
        "a/b@",
        "",
    ],
)
def test_names_the_hub_cannot_have_are_not_asked_for(hub: Any, trick: str) -> None:
    refuses(trick)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("config.json", True),
        ("figures/accuracy.png", True),
        ("figures/x.py", False),
        ("figures/.x.png", False),
        ("figures/a/b.png", False),
        ("figures", False),
        (".sj_robust.json", False),
        (".gitattributes", False),
        ("config.json/x", False),
        ("./config.json", False),
    ],
)
def test_own_files(name: str, own: bool) -> None:
    assert is_own(name) == own


def test_somebodys_folder_is_kept(hub: Any, remote: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    refuses(NAME, "thesis.tex", "kept", to=tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    assert hub.requests == []
    shutil.copytree(ANN, tmp_path / "old")
    assert same(pull(NAME, tmp_path / "old"))


def test_pull_writes_through_a_link(hub: Any, remote: Any, tmp_path: Path) -> None:
    shutil.copytree(ANN, tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to("disk/real")
    (tmp_path / "dangling").symlink_to("disk/new")
    for link, real in (("link", "real"), ("dangling", "new"), ("link", "real")):
        assert pull(NAME, tmp_path / link) == tmp_path / link
        assert (tmp_path / link).is_symlink()
        assert same(tmp_path / "disk" / real)
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new", "real"]


@pytest.mark.parametrize(
    ("to", "fragments"),
    [
        ("file", ["is a file"]),
        ("to-file", ["is a file"]),
        ("file/sub", ["is a file"]),
        ("unmounted", ["is no folder"]),
        ("loop", ["to itself"]),
        ("to-thesis", ["thesis.tex", "kept"]),
        ("/dev/null", ["is a file"]),
        ("/proc/x", ["cannot be written"]),
        ("x" * 300, ["cannot be written"]),
    ],
)
def test_where_a_pull_cannot_write_is_told_before_anything_is_fetched(
    hub: Any, tmp_path: Path, to: str, fragments: list[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    for link, target in (
        ("to-file", "file"),
        ("unmounted", "mnt/disk/model"),
        ("loop", "loop"),
        ("to-thesis", "thesis"),
    ):
        (tmp_path / link).symlink_to(target)
    before = sorted(path.name for path in tmp_path.iterdir())
    refuses(NAME, *fragments, to=tmp_path / to)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert ((tmp_path / "file").read_text(), hub.requests) == ("mine", [])


def test_a_killed_pull_leaves_nothing_half(hub: Any, remote: Any, tmp_path: Path) -> None:
    slow = hub.fault("slow", "/lfs/objects", after=100_000, seconds=0.5, times=None)
    command, environment = child(
        f"import sj_robust; sj_robust.pull({NAME!r}, {str(tmp_path / 'to')!r})"
    )
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while (
            not any(path.stat().st_size for path in (tmp_path / "hf").rglob("*.incomplete"))
            and hub.asked("GET", "/lfs/objects") < 2
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "to").exists()
    refuses_offline = child(f"import sj_robust; sj_robust.pull({NAME!r})", HF_HUB_OFFLINE="1")
    done = subprocess.run(
        refuses_offline[0], env=refuses_offline[1], capture_output=True, text=True
    )
    assert "not in the cache" in done.stderr
    hub.faults.remove(slow)
    litter = list((tmp_path / "hf").rglob("*.incomplete"))
    for path in litter:
        os.utime(path, (0, 0))
    assert same(pull(NAME, tmp_path / "to"))
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    assert no_wrong_file(tmp_path)
