"""VGG-11 and the shallow, wide VGG-5 and VGG-6, with batch norm and average pooling, for timm
(Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.base import Classifier, config, init_weights, linear_or_identity

SHALLOW_LAYERS = (48, "A", 96, "A", 192, 192, "A")
WIDE_LAYERS = (64, "A", 128, 128, "A", 256, 256, "A")
CIFAR_LAYERS = (64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512)
TINY_LAYERS = (64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512)


class VGG(Classifier):
    """conv-BN-ReLU layers and 2×2 average pools, then hidden linear layers and the classifier.

    The hidden layers have ReLU, the classifier is linear.

    Args:
        layers: output channels of each 3×3 convolution, "A" for a pool.
        pool_first: whether a pool comes before the ReLU of the convolution in front of it, so that
            a spiking node gets averages and is not averaged itself.
        hidden: widths of the hidden linear layers; none where the classifier reads the features.
        pooled: average the last feature map over its pixels, so that any image size will do; else
            all of it goes to the linear layers.
        img_size: height and width of the images where they are not pooled: it fixes the size of the
            first linear layer.
        num_classes: logits; 0 for features alone.
        in_chans: image channels.
        drop_rate: dropout after each hidden linear layer.

    Raises:
        SJRobustError: an image size that the pools do not divide; in `forward`, images of another
            size.
    """

    def __init__(
        self,
        layers: Sequence[int | str],
        hidden: Sequence[int],
        *,
        pooled: bool = False,
        pool_first: bool = False,
        img_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        if not _are_layers(layers):
            raise SJRobustError(
                f'layers is {layers!r}: expected channels of convolutions and "A" for a pool,'
                " beginning with channels"
            )
        super().__init__(
            num_classes,
            in_chans,
            num_features=[width for width in layers if isinstance(width, int)][-1],
        )
        self.head_hidden_size = hidden[-1] if hidden else self.num_features
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = None if pooled else (height, width)
        pools = sum(layer == "A" for layer in layers)
        if not pooled and (min(height, width) < 2**pools or height % 2**pools or width % 2**pools):
            raise SJRobustError(
                f"images of {height}×{width}: this VGG halves them {pools} times, use multiples of"
                f" {2**pools}"
            )
        pixels = 1 if pooled else (height >> pools) * (width >> pools)
        head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
        head.append(nn.Flatten())
        for before, after in pairwise((self.num_features * pixels, *hidden)):
            head += [nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(drop_rate)]
        self.features = nn.Sequential(*_features(layers, in_chans, pool_first))
        self.classifier = nn.Sequential(
            *head, linear_or_identity(self.head_hidden_size, num_classes)
        )
        self.classifier_name = f"classifier.{len(head)}"
        init_weights(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier of `num_classes` outputs in place (0: none). `global_pool` is for
        timm's sake: the pooling stays."""
        self.num_classes = num_classes
        self.classifier[-1] = linear_or_identity(self.head_hidden_size, num_classes, like=self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images [N,C,H,W] to the last feature map [N,C',H/2^pools,W/2^pools]."""
        if self.img_size is not None and x.shape[-2:] != self.img_size:
            raise SJRobustError(
                f"images of {list(x.shape[-2:])} pixels, but this VGG was built for"
                f" {list(self.img_size)}: pass img_size"
            )
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [N,K], or to the last hidden layer [N,hidden[-1]] with
        `pre_logits`."""
        return self.classifier[:-1](x) if pre_logits else self.classifier(x)


def _are_layers(layers: object) -> bool:
    if not isinstance(layers, Sequence) or not layers or layers[0] == "A":
        return False
    return all(layer == "A" or (type(layer) is int and layer > 0) for layer in layers)


def _features(layers: Sequence[int | str], in_channels: int, pool_first: bool) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            first = pool_first and isinstance(modules[-1], nn.ReLU)
            modules.insert(len(modules) - first, nn.AvgPool2d(2))
            continue
        convolution = nn.Conv2d(in_channels, layer, 3, padding=1, bias=False)
        modules += [convolution, nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
        in_channels = layer
    return modules


default_cfgs = generate_default_cfgs(
    {
        "cifar_vgg": config(32, first_conv="features.0", classifier="classifier.2"),
        "cifar_vgg5": config(32, first_conv="features.0", classifier="classifier.2"),
        "cifar_vgg6": config(32, first_conv="features.0", classifier="classifier.2"),
        "cifar_vgg11": config(
            32, fixed_input_size=True, first_conv="features.0", classifier="classifier.7"
        ),
        "tiny_vgg11": config(
            64, num_classes=200, first_conv="features.0", classifier="classifier.5"
        ),
    }
)


@register_model
def cifar_vgg(
    pretrained: bool = False, layers: Sequence[int | str] = SHALLOW_LAYERS, **options: Any
) -> nn.Module:
    """A VGG of any depth and width for 32×32 images, with a global average pool: `layers` and
    `pool_first` as of `VGG`; without them VGG-5."""
    return build_model_with_cfg(
        VGG, "cifar_vgg", pretrained, layers=layers, hidden=(), pooled=True, **options
    )


@register_model
def cifar_vgg5(pretrained: bool = False, **options: Any) -> nn.Module:
    """A shallow, wide VGG for 32×32 images: 4 convolutions and a global average pool, 0.54 M
    parameters, made to be converted: spiking layers add quantisation noise with depth, width and
    the average pooling of their spikes take it out again.
    """
    return build_model_with_cfg(
        VGG, "cifar_vgg5", pretrained, layers=SHALLOW_LAYERS, hidden=(), pooled=True, **options
    )


@register_model
def cifar_vgg6(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG-5 with a layer more and a third wider: 5 convolutions and a global average pool, 1.1 M
    parameters, 2.6 times its multiplications."""
    return build_model_with_cfg(
        VGG, "cifar_vgg6", pretrained, layers=WIDE_LAYERS, hidden=(), pooled=True, **options
    )


@register_model
def cifar_vgg11(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG-11 for 32×32 images: 8 convolutions, hidden linear layers of 4096 and 4096, 61.4 M
    parameters."""
    return build_model_with_cfg(
        VGG, "cifar_vgg11", pretrained, layers=CIFAR_LAYERS, hidden=(4096, 4096), **options
    )


@register_model
def tiny_vgg11(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG for the 64×64 images and 200 classes of Tiny ImageNet as in arXiv 2311.09266: 8
    convolutions and one hidden linear layer after a global average pool, 12.2 M parameters."""
    return build_model_with_cfg(
        VGG, "tiny_vgg11", pretrained, layers=TINY_LAYERS, hidden=(4096,), pooled=True, **options
    )
