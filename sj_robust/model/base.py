"""What all architectures here share: the timm interface of a classifier, its configuration and its
initialisation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from sj_robust.known import KNOWN

Renames = Iterable[tuple[str, str]]


def config(size: int = 32, **entries: Any) -> dict[str, Any]:
    """A timm `pretrained_cfg` without weights for RGB images of `size` × `size` pixels and 10
    classes."""
    shared: dict[str, Any] = {
        "url": "",
        "num_classes": 10,
        "input_size": (3, size, size),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": KNOWN["cifar10"].mean,
        "std": KNOWN["cifar10"].std,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    return shared | entries


def init_weights(model: nn.Module) -> None:
    """Kaiming-normal weights (He et al. 2015) for convolutions (fan-out) and linear layers
    (fan-in), biases 0, batch norm 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def renamed(state: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """`state` with each (regular expression, replacement) applied to every key."""
    renames = tuple(renames)
    result = {}
    for key, value in state.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


class Classifier(nn.Module):
    """The part of timm's model interface that does not depend on the architecture: features, then a
    head, K = `num_classes` logits.

    A subclass sets `checkpoint_renames`, the key names used for this architecture elsewhere, as
    (regular expression, replacement): they are understood by `load_state_dict`, and so by timm's
    `create_model(checkpoint_path=...)` too.
    """

    checkpoint_renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    classifier_name = "fc"

    def __init__(self, num_classes: int, in_chans: int, num_features: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = num_features
        self.register_load_state_dict_pre_hook(_rename_foreign_keys)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The final linear layer, or its name."""
        return self.classifier_name if name_only else self.get_submodule(self.classifier_name)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images [N,C,H,W] to the last feature map [N,C',H',W']."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [N,K], or to the classifier's input [N,head_hidden_size] with
        `pre_logits`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N,C,H,W] to logits [N,K]."""
        return self.forward_head(self.forward_features(x))


class PooledClassifier(Classifier):
    """A `Classifier` whose head is global average pooling, dropout and one linear layer `fc`."""

    def add_head(self, global_pool: str, drop_rate: float) -> None:
        """Add the head; called last, so that the layers are registered in the order in which they
        compute."""
        self.global_pool = _pooling(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = linear_or_identity(self.num_features, self.num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier of `num_classes` outputs in place (0: none), and another pooling
        if named ("": none)."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _pooling(global_pool)
        self.fc = linear_or_identity(self.num_features, num_classes, like=self)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [N,K], or to pooled features [N,num_features] with
        `pre_logits`."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)


def linear_or_identity(
    in_features: int, num_classes: int, like: nn.Module | None = None
) -> nn.Module:
    """A classifier on the device and in the dtype and mode of `like`; the identity for 0 classes,
    as in timm."""
    if num_classes == 0:
        return nn.Identity()
    layer = nn.Linear(in_features, num_classes)
    if like is not None:
        parameter = next(like.parameters())
        layer.to(parameter.device, parameter.dtype).train(like.training)
    return layer


def _pooling(name: str) -> nn.Module:
    return SelectAdaptivePool2d(pool_type=name, flatten=bool(name))


def _rename_foreign_keys(
    module: Classifier, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename the keys of one module (those that begin with `prefix`) in place, as torch asks of
    this hook."""
    own = {
        key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)
    }
    state.update(
        {prefix + key: value for key, value in renamed(own, module.checkpoint_renames).items()}
    )
