"""What must not go up with a push: what links lead to, what is no file, and what is not what its
name says."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server.fixtures import SNN, upload

from sj_robust import SJRobustError, pull, push
from sj_robust.checkpoint import files

NAME = "alice/my-snn"
SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "id_rsa").write_bytes(SECRET)
    return Path(shutil.copytree(SNN, tmp_path / "work" / "snn"))


def refuses(hub: Any, folder: Path, *fragments: str) -> None:
    with pytest.raises(SJRobustError) as error:
        push(folder, NAME)
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message
    assert hub.requests == []


def link(path: Path, target: str | Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "README.md",
        "recipe.yaml",
        "evaluation.json",
        "evaluation_source.json",
        "evaluation_paper.json",
        "figures/accuracy.png",
        "figures/more.svg",
    ],
)
@pytest.mark.parametrize("target", ["../../id_rsa", "{absolute}", "../back/to", "../snn2/same"])
def test_a_link_out_of_the_folder_is_refused(
    hub: Any, folder: Path, tmp_path: Path, file: str, target: str
) -> None:
    (folder.parent / "back").mkdir()
    (folder.parent / "back" / "to").symlink_to(tmp_path / "id_rsa")  # over another link
    # a neighbour whose name begins alike, and what would be valid there
    (folder.parent / "snn2").mkdir()
    same = SNN / file if (SNN / file).exists() else tmp_path / "id_rsa"
    shutil.copyfile(same, folder.parent / "snn2" / "same")
    up = "../" * file.count("/")
    link(folder / file, str(tmp_path / "id_rsa") if target == "{absolute}" else up + target)
    refuses(hub, folder, file, "link", "outside of the folder")


def test_a_linked_folder_of_figures_is_refused(hub: Any, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "figures", tmp_path / "pictures")
    link(folder / "figures", tmp_path / "pictures")
    refuses(hub, folder, "figures/accuracy.png", "pictures", "outside of the folder")


@pytest.mark.parametrize(
    ("file", "target", "fragment"),
    [
        ("recipe.yaml", "nowhere", "link to nothing"),
        ("recipe.yaml", "recipe.yaml", "link to nothing"),
        ("figures/accuracy.png", "../gone.png", "link to nothing"),
        ("recipe.yaml", ".env", "hidden"),
        ("recipe.yaml", ".git/config", "hidden"),
        ("recipe.yaml", "figures", "cannot be copied"),
        ("recipe.yaml", "/dev/zero", "outside of the folder"),
    ],
)
def test_links_to_nothing_to_hidden_files_and_to_no_files(
    hub: Any, folder: Path, file: str, target: str, fragment: str
) -> None:
    (folder / ".git").mkdir()
    for hidden in (".env", ".git/config"):
        (folder / hidden).write_text("name: TOKEN\n")
    link(folder / file, target)
    refuses(hub, folder, file, fragment)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "recipe.yaml", "README.md", "figures/accuracy.png"]
)
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    hub: Any, folder: Path, file: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(path.parent)  # the path of a socket has to be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    refuses(hub, folder, file)


def test_a_link_put_in_place_after_the_look_is_not_followed(
    hub: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, swapped = Path.resolve, []

    def resolve_and_swap(path: Path, strict: bool = False) -> Path:
        found = resolve(path, strict)
        if path == folder / "recipe.yaml" and strict and not swapped:
            swapped.append(path)
            link(path, tmp_path / "id_rsa")
        return found

    monkeypatch.setattr(Path, "resolve", resolve_and_swap)
    refuses(hub, folder, "recipe.yaml", "cannot be copied")
    assert swapped


def test_links_inside_the_folder_and_a_linked_folder_itself_go_up(
    hub: Any, folder: Path, tmp_path: Path
) -> None:
    (folder / "weights").mkdir()
    shutil.move(folder / "model.safetensors", folder / "weights" / "best.safetensors")
    link(folder / "model.safetensors", "weights/best.safetensors")
    link(tmp_path / "short", folder)
    push(tmp_path / "short", NAME)
    sent = hub.store.repositories[NAME].at("main").files
    assert sent["model.safetensors"].content == (SNN / "model.safetensors").read_bytes()
    assert not any("best" in path for path in sent)


def test_a_snapshot_of_the_cache_goes_up_but_only_from_its_own_blobs(
    hub: Any, tmp_path: Path
) -> None:
    upload(hub, SNN, "bob/snn")
    cached = pull("bob/snn")
    assert (cached / "model.safetensors").is_symlink()
    result = push(cached, NAME)
    assert result.changed
    (tmp_path / "id_rsa").write_bytes(SECRET)
    blobs = cached.parent.parent / "blobs"
    link(blobs / ("0" * 40), tmp_path / "id_rsa")
    link(cached / "recipe.yaml", f"../../blobs/{'0' * 40}")
    with pytest.raises(SJRobustError, match="outside of the folder"):
        push(cached, NAME, force=True)
    shutil.move(blobs, tmp_path / "elsewhere")
    link(blobs, tmp_path / "elsewhere")
    with pytest.raises(SJRobustError, match="outside of the folder"):
        push(cached, NAME, force=True)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int = 2,
    height: int = 2,
    image: bytes = b"\0\1\2" * 2,
    after: bytes = b"",
    end: bool = True,
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(image))
        + (chunk(b"IEND", b"") if end else b"")
        + after
    )


def flipped(content: bytes) -> bytes:
    return content[:45] + bytes([content[45] ^ 1]) + content[46:]


SVG = '<svg xmlns="http://www.w3.org/2000/svg">{}</svg>'


@pytest.mark.parametrize(
    ("file", "content", "fragment"),
    [
        pytest.param("figures/accuracy.png", SECRET, "not a PNG", id="key as PNG"),
        pytest.param("figures/accuracy.png", b"", "not a PNG", id="empty"),
        pytest.param("figures/accuracy.png", b"\xff\xd8\xff\xe0JFIF", "not a PNG", id="JPEG"),
        pytest.param(
            "figures/accuracy.png",
            b"\x89PNG\r\n\x1a\n" + SECRET,
            "not a PNG",
            id="key behind the signature",
        ),
        pytest.param(
            "figures/accuracy.png", png(after=SECRET), "more data follows", id="key behind the end"
        ),
        pytest.param("figures/accuracy.png", png(end=False), "ends in the middle", id="cut"),
        pytest.param(
            "figures/accuracy.png", png()[:-20], "ends in the middle", id="cut in a chunk"
        ),
        pytest.param("figures/accuracy.png", flipped(png()), "checksum", id="flipped"),
        pytest.param(
            "figures/accuracy.png", png(width=100_000, height=100_000), "pixels", id="giant image"
        ),
        pytest.param("figures/accuracy.png", png(width=0), "pixels", id="no pixels"),
        pytest.param(
            "figures/accuracy.png", png().replace(b"IDAT", b"iDAT"), "checksum", id="renamed chunk"
        ),
        pytest.param("figures/accuracy.png", b"\0" * (9 << 20), "is larger than", id="giant file"),
        pytest.param("figures/a.svg", SECRET, "not an SVG", id="key as SVG"),
        pytest.param("figures/a.svg", b"<html></html>", "not an SVG", id="page as SVG"),
        pytest.param(
            "figures/a.svg", SVG.format("<script>1</script>").encode(), "script", id="script"
        ),
        pytest.param(
            "figures/a.svg",
            SVG.format('<a href=" JavaScript:1">x</a>').encode(),
            "links to",
            id="link that runs",
        ),
        pytest.param(
            "figures/a.svg",
            SVG.format('<image href="file:///etc/passwd"/>').encode(),
            "links to",
            id="link to a file",
        ),
        pytest.param(
            "figures/a.svg", SVG.format('<a onclick="1"/>').encode(), "script", id="handler"
        ),
        pytest.param(
            "figures/a.svg",
            b'<!DOCTYPE svg [<!ENTITY a "b">]>' + SVG.format("&a;").encode(),
            "entities",
            id="entity",
        ),
        pytest.param("recipe.yaml", SECRET, "recipe.yaml", id="key as recipe"),
        pytest.param("recipe.yaml", b"TOKEN=hf_secret", "not a recipe", id="text as recipe"),
        pytest.param("recipe.yaml", b"- name: x", "not a recipe", id="list as recipe"),
        pytest.param("recipe.yaml", b"{", "not valid YAML", id="broken recipe"),
        pytest.param("recipe.yaml", b"[" * 100_000, "recipe.yaml", id="deep recipe"),
        pytest.param("recipe.yaml", b"name: \xff", "not UTF-8", id="binary recipe"),
        pytest.param("recipe.yaml", b"#" * (2 << 20), "larger than", id="giant recipe"),
        pytest.param(
            "evaluation_source.json", SECRET, "evaluation_source.json", id="key as evaluation"
        ),
        pytest.param(
            "evaluation_source.json", b"{}", "evaluation_source.json", id="empty evaluation"
        ),
        pytest.param(
            "evaluation_quick.json",
            b'{"password": "x"}',
            "evaluation_quick.json",
            id="settings as evaluation",
        ),
        pytest.param("README.md", SECRET, "README.md has no metadata", id="key as card"),
    ],
)
def test_files_have_to_be_what_they_are_called(
    hub: Any, folder: Path, file: str, content: bytes, fragment: str
) -> None:
    (folder / file).write_bytes(content)
    refuses(hub, folder, fragment)


def test_figures_that_are_some_go_up_and_no_more_than_a_checkpoint_may_have(
    hub: Any, folder: Path
) -> None:
    (folder / "figures" / "small.png").write_bytes(png())
    (folder / "figures" / "drawn.svg").write_text(SVG.format("<title>x</title>"))
    assert {"figures/small.png", "figures/drawn.svg"} <= {
        change.path for change in push(folder, NAME, dry_run=True).changes
    }
    hub.requests.clear()
    for number in range(40):
        (folder / "figures" / f"{number}.png").write_bytes(png())
    refuses(hub, folder, "at most: remove some figures")


def test_weights_may_not_grow_beyond_what_they_may_be(
    hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: Callable[[str], int] = files.most_bytes
    monkeypatch.setattr(
        files, "most_bytes", lambda path: 1000 if path == "model.safetensors" else most(path)
    )
    refuses(hub, folder, "model.safetensors is larger than 1000 bytes")
