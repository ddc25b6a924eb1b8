"""The memory layout that networks are put into, and that they say they are in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sj_robust.model.layout import layout_of, settle_layout


class Flattening(nn.Module):
    """As many networks of users are written: `view` takes no feature map in channels_last."""

    def __init__(self, flatten: str) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Linear(256, 2),
        )
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(getattr(torch.relu(self.norm(self.conv(x))), self.flatten)(len(x), -1))


@pytest.mark.parametrize(
    ("flatten", "layout"), [("reshape", torch.channels_last), ("view", torch.contiguous_format)]
)
def test_channels_last_where_the_network_takes_it(
    flatten: str, layout: torch.memory_format
) -> None:
    model, images = Flattening(flatten), torch.rand(2, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settle_layout(model, images)
    assert layout_of(model) is layout
    assert model.training and model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_without_feature_maps_and_one_of_volumes() -> None:
    for model, images in (
        (nn.Linear(4, 2), torch.rand(2, 4)),
        (nn.Conv3d(1, 2, 3), torch.rand(2, 1, 4, 4, 4)),
    ):
        settle_layout(model, images)
        assert layout_of(model) is torch.contiguous_format
