"""Wide ResNets for 32×32 images, registered with timm (Zagoruyko & Komodakis, "Wide Residual
Networks", 2016)."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.base import PooledClassifier, config, init_weights


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus the shortcut; a projecting shortcut starts from the first
    activation, as in the original."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            if in_channels != channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        residual = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(PooledClassifier):
    """3×3 stem, three stages of `PreActivationBlock`s of 16, 32 and 64 times `width` channels,
    BN-ReLU, average pool, linear classifier.

    Args:
        depth: convolutions as the field counts them, 6n + 4.
        width: the widening factor.
        num_classes: logits; 0 for features alone.
        in_chans: image channels.
        global_pool: timm's name of the last pooling; "" for none.
        drop_rate: dropout before the classifier.

    Raises:
        SJRobustError: a depth that is not 6n + 4.
    """

    # the names of WideResNet-pytorch, from which TRADES and much of RobustBench took theirs
    checkpoint_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(block\d)\.layer\.", r"\1."),
        (r"\.convShortcut\.", ".shortcut."),
    )

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            raise SJRobustError(
                f"depth {depth} is not one of a Wide ResNet: use 6n + 4, such as 16 or 28"
            )
        super().__init__(num_classes, in_chans, 64 * width)
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.feature_info: list[dict[str, Any]] = []
        channels = 16
        for stage, out_channels in enumerate((16 * width, 32 * width, 64 * width), start=1):
            blocks = []
            for index in range((depth - 4) // 6):
                blocks.append(
                    PreActivationBlock(
                        channels, out_channels, stride=2 if stage > 1 and index == 0 else 1
                    )
                )
                channels = out_channels
            self.add_module(f"block{stage}", nn.Sequential(*blocks))
            self.feature_info.append(
                {"num_chs": channels, "reduction": 2 ** (stage - 1), "module": f"block{stage}"}
            )
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.add_head(global_pool, drop_rate)
        init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images [N,C,H,W] to the last feature map [N,64·width,H/4,W/4], after its BN
        and ReLU."""
        x = self.conv1(x)
        for stage in self.feature_info:
            x = self.get_submodule(stage["module"])(x)
        return self.act1(self.bn1(x))


default_cfgs = generate_default_cfgs(
    {name: config(pool_size=(8, 8)) for name in ("cifar_wrn16_4", "cifar_wrn28_4")}
)


def _wide_resnet(
    variant: str, pretrained: bool, depth: int, width: int, **options: Any
) -> nn.Module:
    features = {"out_indices": (0, 1, 2)}
    return build_model_with_cfg(
        WideResNet, variant, pretrained, feature_cfg=features, depth=depth, width=width, **options
    )


@register_model
def cifar_wrn16_4(pretrained: bool = False, **options: Any) -> nn.Module:
    """WRN-16-4, 2.75 M parameters."""
    return _wide_resnet("cifar_wrn16_4", pretrained, 16, 4, **options)


@register_model
def cifar_wrn28_4(pretrained: bool = False, **options: Any) -> nn.Module:
    """WRN-28-4, 5.85 M parameters."""
    return _wide_resnet("cifar_wrn28_4", pretrained, 28, 4, **options)
