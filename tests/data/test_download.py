"""Named data sets come through the Hub's own client, here from a small server on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

SCRIPT = """
import sys
from sj_robust import SJRobustError
from sj_robust.data import load_dataset
for name, split in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        data = load_dataset(name, split)
        labels, total = data.labels.tolist(), data.images.sum().item()
        print(data.name, data.split, len(data), labels, data.classes, total)
    except SJRobustError as error:
        print(error)
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """(address, files by path): a server that answers as the Hub does for one file of a
    repository."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def load(address: str, home: Path, *wanted: str, **settings: str) -> list[str]:
    """In a process of its own: the client reads its settings once, when it is imported."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith("HF_")
    }
    environment |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "SJ_ROBUST_CACHE": str(home / "cache"),
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *wanted],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_named_data_is_fetched_once_and_a_failure_says_what_to_do(
    hub: tuple[str, dict[str, bytes]],
    tmp_path: Path,
    parquet: Callable[..., Path],
    noise: Callable[..., np.ndarray],
    png: Callable[..., bytes],
) -> None:
    address, files = hub
    pixels = noise(3)
    content = parquet(
        tmp_path / "any.parquet", [png(p) for p in pixels], [2, 0, 1], names=["a", "b", "c"]
    ).read_bytes()
    paths = {
        "cifar10 train": "uoft-cs/cifar10/resolve/main/plain_text/train-00000-of-00001.parquet",
        "cifar100 test": "uoft-cs/cifar100/resolve/main/cifar100/test-00000-of-00001.parquet",
        "svhn test": "ufldl-stanford/svhn/resolve/main/cropped_digits/test-00000-of-00001.parquet",
        "tiny-imagenet test": (
            "zh-plus/tiny-imagenet/resolve/main/data/valid-00000-of-00001-70d52db3c749a935.parquet"
        ),
    }
    files |= {f"/datasets/{path}": content for path in paths.values()}
    wanted = [word for name in paths for word in name.split()]
    expected = [f"{name} 3 [2, 0, 1] ('a', 'b', 'c') {pixels.sum()}" for name in paths]
    failed = (
        "could not download svhn (ufldl-stanford/svhn on the Hugging Face Hub; {}): "
        "pass the path of your copy, or set SJ_ROBUST_DATA to the folder that holds svhn/"
    )
    assert load(address, tmp_path, *wanted, "svhn", "train") == [
        *expected,
        failed.format("RemoteEntryNotFoundError"),
    ]
    again = load(address, tmp_path, "cifar10", "train", "svhn", "train", HF_HUB_OFFLINE="1")
    assert again == [expected[0], failed.format("LocalEntryNotFoundError")]
