"""Training passes in 16 bits, on the CPU and (not seen to pass yet: no GPU here) on a GPU."""

from __future__ import annotations

import pytest
import torch

from sj_robust.errors import SJRobustError
from sj_robust.neuron import cupy_backend
from sj_robust.training import finetune, train_ann
from sj_robust.training.precision import DTYPES, autocast
from sj_robust.training.state import load_state


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_convolutions_run_in_16_bits_and_potentials_in_32(toy, precision, backend):
    model, seen = toy.snn().train(), {}
    node = model.backbone[2].node
    node.backend = backend
    model.backbone[0].register_forward_hook(
        lambda module, inputs, output: seen.update(convolution=output.dtype)
    )
    hook = node.register_forward_hook(
        lambda module, inputs, output: seen.update(node=(inputs[0].detach(), output))
    )
    x = torch.rand(4, 3, 8, 8)
    with autocast(model, toy.config("finetune", precision=precision), x.device):
        model(x).sum().backward()
    hook.remove()
    assert seen["convolution"] == DTYPES[precision]
    read, spikes = seen["node"]
    assert torch.equal(spikes.float(), node(read.float()))
    if backend == "torch" or precision == "fp16":  # others read 16 bits themselves
        assert read.dtype == torch.float32
    assert node.v_threshold.grad.dtype == torch.float32
    with autocast(model, toy.config("finetune"), x.device):
        model(x)
    assert seen["convolution"] == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not cupy_backend.installed(), reason="needs CuPy")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu_nodes_read_16_bits_and_give_the_spikes_of_32(toy, precision):
    model, seen = toy.snn().train().cuda(), []
    model.backbone[2].node.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    x = torch.rand(4, 3, 8, 8, device="cuda")
    with autocast(model, toy.config("finetune", precision=precision), x.device):
        model(x).sum().backward()
    ((inputs, spikes),) = seen
    assert inputs.dtype == spikes.dtype == DTYPES[precision]
    assert torch.equal(spikes.float(), model.backbone[2].node(inputs.float()))
    assert model.backbone[2].node.v_threshold.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "device"),
    [
        ("fp16", "cpu"),
        pytest.param("bf16", "cuda", marks=pytest.mark.gpu),
        pytest.param("fp16", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_an_interrupted_run_in_16_bits_goes_on_to_the_same_bits(toy, tmp_path, precision, device):
    config = toy.config("finetune", epochs=1, validation_steps=1, precision=precision)
    finetune(toy.snn(), toy.patterns(), config, tmp_path / "whole", device=device)
    broken = toy.snn()
    steps = iter(range(100))

    def fail(*_: object) -> None:
        if broken.training and next(steps) == 5:
            raise KeyboardInterrupt

    broken.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            broken,
            toy.patterns(),
            config.model_copy(update={"checkpoint_minutes": 1e-9}),
            tmp_path / "cut",
            device=device,
        )
    assert load_state(tmp_path / "cut")[0].step == 5
    finetune(toy.snn(), toy.patterns(), config, tmp_path / "cut", device=device, resume=True)
    (progress, groups), (twin, twins) = load_state(tmp_path / "cut"), load_state(tmp_path / "whole")
    assert progress.scaler == twin.scaler
    # steps without overflow
    assert progress.scaler.get("_growth_tracker") == (8 if precision == "fp16" else None)
    assert all(
        torch.equal(tensor, twins[group][name])
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    )


def test_16_bits_stay_close_to_32(toy, tmp_path):
    full, half = (
        train_ann(
            toy.ann(),
            toy.patterns(),
            toy.config(epochs=1, method="natural", precision=precision),
            tmp_path / folder,
        )
        for folder, precision in (("float32", None), ("bf16", "bf16"))
    )
    assert half.best.clean == pytest.approx(full.best.clean, abs=0.05)
    assert load_state(tmp_path / "bf16")[1]["model"]["backbone.0.weight"].dtype == torch.float32


def test_precision_does_not_change_on_resume(toy, tmp_path):
    train_ann(toy.ann(), toy.patterns(), toy.config(epochs=0.25, method="natural"), tmp_path)
    with pytest.raises(SJRobustError, match="precision=bf16"):
        train_ann(
            toy.ann(),
            toy.patterns(),
            toy.config(epochs=0.25, method="natural", precision="bf16"),
            tmp_path,
            resume=True,
        )
