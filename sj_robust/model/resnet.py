"""ResNets for 32×32 images, registered with timm (He et al., "Deep Residual Learning", 2016,
section 4.2).

The names of the layers are those of timm and of the usual CIFAR implementations; differences are in
`checkpoint_renames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.base import PooledClassifier, config, init_weights


class SubsampleAndPad(nn.Module):
    """He et al.'s parameter-free shortcut, option A: every `stride`-th pixel, then zero channels
    added equally on both sides.

    [N,C,H,W] to [N,C',⌈H/stride⌉,⌈W/stride⌉]. A strided view and one padded copy, channels_last
    where x is (and its sides even).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, then ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)  # in place: a waiting conversion then holds two tensors, not three
        return self.act2(out)


class ResNet(PooledClassifier):
    """3×3 stem, stages of `BasicBlock`s (every stage but the first halves the resolution), average
    pool, linear classifier.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage.
        shortcut: where the shape changes, "projection" (1×1 convolution and batch norm, option B)
            or "identity" (option A, no parameters).
        num_classes: logits; 0 for features alone.
        in_chans: image channels.
        global_pool: timm's name of the last pooling; "" for none.
        drop_rate: dropout before the classifier.

    Raises:
        SJRobustError: an unknown `shortcut`.
    """

    # pytorch-cifar and pytorch_resnet_cifar10 say `linear`, timm and torchvision `downsample`
    checkpoint_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^linear\.", "fc."),
        (r"\.downsample\.", ".shortcut."),
    )

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        shortcut: str = "projection",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, widths[-1])
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info: list[dict[str, Any]] = []
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            self.feature_info.append(
                {"num_chs": width, "reduction": 2 ** (stage - 1), "module": f"layer{stage}"}
            )
        self.add_head(global_pool, drop_rate)
        init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images [N,C,H,W] to the last feature map
        [N,widths[-1],H/2^(stages-1),W/2^(stages-1)]."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in self.feature_info:
            x = self.get_submodule(stage["module"])(x)
        return x


def _shortcut(in_channels: int, channels: int, stride: int, kind: str) -> nn.Module:
    if kind not in ("projection", "identity"):
        raise SJRobustError(
            f"shortcut {kind!r} is unknown: use 'projection' (1×1 convolution) or 'identity'"
            " (option A, no parameters)"
        )
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if kind == "identity":
        return SubsampleAndPad(in_channels, channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet20": config(pool_size=(8, 8)),
        "cifar_resnet32": config(pool_size=(8, 8)),
        "cifar_resnet56": config(pool_size=(8, 8)),
        "cifar_resnet110": config(pool_size=(8, 8)),
        "cifar_resnet18": config(pool_size=(4, 4)),
    }
)


def _resnet(
    variant: str, pretrained: bool, depths: Sequence[int], widths: Sequence[int], **options: Any
) -> nn.Module:
    features = {"out_indices": tuple(range(len(depths)))}
    return build_model_with_cfg(
        ResNet, variant, pretrained, feature_cfg=features, depths=depths, widths=widths, **options
    )


@register_model
def cifar_resnet20(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-20 for CIFAR, 0.27 M parameters."""
    return _resnet("cifar_resnet20", pretrained, (3, 3, 3), (16, 32, 64), **options)


@register_model
def cifar_resnet32(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-32 for CIFAR, 0.46 M parameters."""
    return _resnet("cifar_resnet32", pretrained, (5, 5, 5), (16, 32, 64), **options)


@register_model
def cifar_resnet56(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-56 for CIFAR, 0.85 M parameters."""
    return _resnet("cifar_resnet56", pretrained, (9, 9, 9), (16, 32, 64), **options)


@register_model
def cifar_resnet110(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-110 for CIFAR, 1.73 M parameters."""
    return _resnet("cifar_resnet110", pretrained, (18, 18, 18), (16, 32, 64), **options)


@register_model
def cifar_resnet18(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-18 with the 3×3 stem usual on 32×32 images, 11.17 M parameters."""
    return _resnet("cifar_resnet18", pretrained, (2, 2, 2, 2), (64, 128, 256, 512), **options)
