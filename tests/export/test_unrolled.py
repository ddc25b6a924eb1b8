"""ONNX files and torch.export programs give the network's logits, for any batch size, without this
package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sj_robust
from sj_robust import SJRobustError, export_onnx, export_torch
from sj_robust.model import SpikingActivation, SpikingClassifier
from sj_robust.neuron import ThresholdLIF

SIZE = (3, 8, 8)
ALONE = """
import sys, torch
images, out = torch.load(sys.argv[2], weights_only=True), sys.argv[3]
torch.save(torch.export.load(sys.argv[1]).module()(images), out)
assert not {"sj_robust", "spikingjelly"} & set(sys.modules)
"""


def same_classes(found: Tensor, expected: Tensor) -> None:
    """Logits to rounding for most images; a spike that rounding flips may shift those of an image,
    not its class."""
    close = (found - expected).abs().amax(1) <= 1e-4
    assert close.double().mean() >= 0.75, (found - expected).abs().amax(1)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def run_onnx(file: Path, images: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.parametrize("network", ["pre_activation"], indirect=True)
def test_a_small_network_in_onnxruntime(
    network: SpikingClassifier, small: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    if torch.__version__ < "2.7":
        pytest.skip("torch 2.6 cannot write this network as ONNX")
    file = tmp_path / "small.onnx"
    done = export_onnx(network, file, input_size=SIZE)
    assert (done.timesteps, done.nodes["Conv"]) == (4, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]  # weights inside
    with torch.no_grad():
        for batch in (small, small[:1]):
            same_classes(run_onnx(file, batch), network(batch))


def test_small_networks_as_torch_programs(
    network: SpikingClassifier, small: Tensor, tmp_path: Path
) -> None:
    done = export_torch(network, tmp_path / "small.pt2", input_size=SIZE)
    assert done.timesteps == 4
    program = torch.export.load(done.file).module()
    with torch.no_grad():
        for batch in (small, small[:1]):
            same_classes(program(batch), network(batch))


def test_spikes_worth_another_number_are_multiplied(
    feed_forward: SpikingClassifier, small: Tensor, tmp_path: Path
) -> None:
    feed_forward.worth = {"2": 0.37}
    done = export_torch(feed_forward.double(), tmp_path / "worth.pt2", input_size=SIZE)
    program = torch.export.load(done.file).module()
    with torch.no_grad():
        torch.testing.assert_close(program(small.double()), feed_forward(small.double()))


def test_soft_reset_leak_and_double_precision(small: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    node = ThresholdLIF(0.4, 0.8, reset="soft", channels=4)
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        SpikingActivation(node, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    )
    snn = SpikingClassifier(backbone, timesteps=5, mean=[0.5] * 3, std=[0.2] * 3).double().eval()
    export_torch(snn, tmp_path / "soft.pt2", input_size=SIZE)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "soft.pt2").module()(small.double())
        torch.testing.assert_close(found, snn(small.double()), rtol=1e-12, atol=1e-12)


def test_a_process_without_this_package(
    feed_forward: SpikingClassifier, small: Tensor, tmp_path: Path
) -> None:
    export_torch(feed_forward, tmp_path / "small.pt2", input_size=SIZE)
    torch.save(small, tmp_path / "images.pt")
    command = [
        sys.executable,
        "-c",
        ALONE,
        *(str(tmp_path / name) for name in ("small.pt2", "images.pt", "logits.pt")),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        same_classes(torch.load(tmp_path / "logits.pt", weights_only=True), feed_forward(small))


@pytest.mark.parametrize("export", [export_onnx, export_torch])
def test_wrong_arguments(export: object, feed_forward: SpikingClassifier, tmp_path: Path) -> None:
    if export is export_onnx:
        pytest.importorskip("onnxscript", reason="the extra export is not installed")
    for size, message in [
        (None, "pass input_size"),
        ((3, 20, 20), "cannot be traced"),
        ((3, 0, 8), "expected"),
    ]:
        with pytest.raises(SJRobustError, match=message):
            export(feed_forward, tmp_path / "no", input_size=size)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())
    assert sj_robust.export_onnx is export_onnx
