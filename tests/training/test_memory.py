"""Checkpointed blocks: the same training, with less kept between forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import sj_robust
from sj_robust.errors import SJRobustError
from sj_robust.training import finetune, preset
from sj_robust.training.memory import checkpointed_blocks


def network(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    ann = timm.create_model(architecture, num_classes=4)
    images = torch.rand(1, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return sj_robust.convert(
        ann, images, 3, mean=(0.5,) * 3, std=(0.25,) * 3, calibration_timesteps=4
    ).train()


def kept(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Logits, and the bytes that autograd keeps for the backward pass."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(x)
    return logits, sum(storages.values())


@pytest.mark.parametrize("architecture", ["cifar_resnet20", "cifar_wrn16_4"])
def test_gradients_and_buffers_are_the_same_and_far_less_is_kept(architecture: str) -> None:
    plain = network(architecture)
    saving, x, y = copy.deepcopy(plain), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    names, modules = list(saving.state_dict()), dict(saving.named_modules())
    expected, bytes_plain = kept(plain, x)
    F.cross_entropy(expected, y).backward()
    with checkpointed_blocks(saving):
        assert list(saving.state_dict()) == names
        logits, bytes_saving = kept(saving, x)
        F.cross_entropy(logits, y).backward()
    assert dict(saving.named_modules()) == modules
    assert torch.equal(logits, expected)
    assert bytes_saving < bytes_plain / 3
    for (name, ours), (_, theirs) in zip(
        saving.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), (_, theirs) in zip(
        saving.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_training_with_checkpointing_ends_with_the_same_weights(tmp_path: Path) -> None:
    data, outcomes = sj_robust.load_dataset("sample", "train").first(80), []
    for checkpointing in (False, True):
        model = network("cifar_resnet20")
        model.backbone.reset_classifier(10)
        config = preset(
            "finetune", epochs=0.5, batch_size=16, validation=10, checkpointing=checkpointing
        )
        finetune(model, data, config, tmp_path / str(checkpointing))
        outcomes.append(model.state_dict())
    assert outcomes[0].keys() == outcomes[1].keys()
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_a_network_without_blocks_is_an_error() -> None:
    with (
        pytest.raises(SJRobustError, match="no blocks"),
        checkpointed_blocks(network("cifar_vgg11")),
    ):
        pass
