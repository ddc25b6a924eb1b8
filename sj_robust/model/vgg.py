"""VGG-11 with batch norm and average pooling for small images, registered with timm (Simonyan & Zisserman 2015; pooling as usual in SNNs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.base import Classifier, config, init_weights, linear_or_identity

VGG11: tuple[int | str, ...] = (64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512)


class VGG(Classifier):
    """conv-BN-ReLU layers and 2×2 average pools, then two hidden linear layers with ReLU and the linear classifier.

    Args:
        layers: output channels of each 3×3 convolution, "A" for a pool.
        hidden: width of the hidden linear layers.
        img_size: height and width of the images, which fixes the size of the first linear layer.
        num_classes: logits; 0 for features alone.
        in_chans: image channels.
        drop_rate: dropout after each hidden linear layer.

    Raises:
        SJRobustError: an image size that the pools do not divide.
    """

    classifier_name: ClassVar[str] = "classifier.6"

    def __init__(
        self,
        layers: Sequence[int | str] = VGG11,
        hidden: int = 4096,
        *,
        img_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, num_features=[width for width in layers if isinstance(width, int)][-1])
        self.head_hidden_size = hidden
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        shrink = 2 ** sum(layer == "A" for layer in layers)
        if any(side < shrink or side % shrink for side in self.img_size):
            raise SJRobustError(f"image size {self.img_size}: this VGG halves it {shrink.bit_length() - 1} times, use multiples of {shrink}")
        self.features = nn.Sequential(*_features(layers, in_chans))
        self.classifier = nn.Sequential(
            nn.Linear(self.num_features * (self.img_size[0] // shrink) * (self.img_size[1] // shrink), hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            linear_or_identity(hidden, num_classes),
        )
        init_weights(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier of `num_classes` outputs in place (0: none). `global_pool` exists for timm; there is no such pool here."""
        self.num_classes = num_classes
        self.classifier[-1] = linear_or_identity(self.head_hidden_size, num_classes, like=self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images [N,C,*img_size] to the last feature map [N,512,H/8,W/8]."""
        if x.shape[-2:] != self.img_size:
            raise SJRobustError(f"images of {list(x.shape[-2:])} pixels, but this VGG was built for {list(self.img_size)}: pass img_size")
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [N,K], or to the last hidden layer [N,hidden] with `pre_logits`."""
        x = x.flatten(1)
        return self.classifier[:-1](x) if pre_logits else self.classifier(x)


def _features(layers: Sequence[int | str], in_channels: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            modules.append(nn.AvgPool2d(2))
            continue
        convolution = nn.Conv2d(in_channels, layer, 3, padding=1, bias=False)
        modules += [convolution, nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
        in_channels = layer
    return modules


def _config(size: int, **entries: Any) -> dict[str, Any]:
    return config(size, fixed_input_size=True, first_conv="features.0", classifier=VGG.classifier_name, **entries)


default_cfgs = generate_default_cfgs({"cifar_vgg11": _config(32), "tiny_vgg11": _config(64, num_classes=200)})


def _vgg(variant: str, pretrained: bool, **options: Any) -> nn.Module:
    return build_model_with_cfg(VGG, variant, pretrained, **options)


@register_model
def cifar_vgg11(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG-11 for 32×32 images, 58.5 M parameters."""
    return _vgg("cifar_vgg11", pretrained, **options)


@register_model
def tiny_vgg11(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG-11 for the 64×64 images and 200 classes of Tiny ImageNet."""
    return _vgg("tiny_vgg11", pretrained, **options)
