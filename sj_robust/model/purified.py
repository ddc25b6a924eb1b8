"""A classifier behind a purifier, which takes noise off an image before it is classified."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sj_robust.errors import SJRobustError, first_line
from sj_robust.files import write_atomic
from sj_robust.model.base import init_weights
from sj_robust.model.images import values_known
from sj_robust.model.normalized import NormalizedClassifier
from sj_robust.model.spiking import SpikingModel
from sj_robust.model.unwrap import expose
from sj_robust.neuron import View

_WIDEST = 1024


class Purifier(nn.Module):
    """A small convolutional denoising autoencoder (Gu & Rigazio 2014), 50,572 parameters.

    Images [N, C, H, W] of even sides → the same without noise. It halves the image and predicts
    what to add to it (Zhang et al. 2017), nothing before it is trained. What it returns is not
    clamped to [0, 1]: where it were, an attack would find no gradient.

    Args:
        channels: of the images.
        width: channels of its layers.

    Raises:
        SJRobustError: a width out of range; in `forward`, images of an odd side.
    """

    def __init__(self, channels: int = 3, width: int = 32) -> None:
        if not (1 <= channels <= _WIDEST and 1 <= width <= _WIDEST):
            raise SJRobustError(
                f"a purifier of {channels} image channels and width {width}: expected 1 to"
                f" {_WIDEST} of each"
            )
        super().__init__()
        self.channels, self.width = channels, width
        last = nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.encode = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.decode = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            last,
            nn.PixelShuffle(2),
        )
        init_weights(self)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to images.

        Raises:
            SJRobustError: an odd side.
        """
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise SJRobustError(
                f"images of {list(x.shape[-2:])} pixels: the purifier takes even sides"
            )
        return x + self.decode(self.encode(x))


class PurifiedSNN(SpikingModel):
    """A spiking network behind a purifier; what `purified` makes of one.

    Its nodes, time steps and gradient views are those of `snn`: gradients flow through them and on
    through the purifier. The image is purified once, not in each step.

    Args:
        purifier: images to images.
        snn: shared, not copied.
    """

    def __init__(self, purifier: nn.Module, snn: SpikingModel) -> None:
        channels = len(snn.mean)
        super().__init__(nn.Sequential(purifier, snn), [0.0] * channels, [1.0] * channels)
        self.num_classes = snn.num_classes
        self.classes = snn.classes
        self.source = snn.source

    @property
    def purifier(self) -> nn.Module:
        """What is in front."""
        return self.backbone[0]  # type: ignore[index,no-any-return]

    @property
    def snn(self) -> SpikingModel:
        """What is behind it."""
        return self.backbone[1]  # type: ignore[index,no-any-return]

    @property
    def timesteps(self) -> int:
        """T of `snn`."""
        return self.snn.timesteps  # type: ignore[no-any-return]

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        self.snn.timesteps = value

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `snn`, and the purifier's name."""
        return {**self.snn.settings, "purifier": type(self.purifier).__name__}

    def nodes(self) -> Mapping[str, nn.Module]:
        return self.snn.nodes()

    @contextmanager
    def gradient(self, view: View | str) -> Iterator[PurifiedSNN]:
        """Within the block gradients flow by `view`."""
        with self.snn.gradient(view):
            yield self

    @contextmanager
    def as_ann(self) -> Iterator[PurifiedSNN]:
        """Within the block `snn` is the ANN of its shape."""
        with self.snn.as_ann():
            yield self

    def forward_sequence(self, x: Tensor) -> Tensor:
        x = self.purifier(self.normalize(x))
        with values_known():  # a purifier may leave [0, 1]
            return self.snn.forward_sequence(x)


class PurifiedANN(NormalizedClassifier):
    """A network without spikes behind a purifier; what `purified` makes of one.

    Args:
        purifier: images to images.
        classifier: shared, not copied.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        inner = classifier if isinstance(classifier, NormalizedClassifier) else None
        channels = len(inner.mean) if inner else getattr(purifier, "channels", 3)
        super().__init__(nn.Sequential(purifier, classifier), [0.0] * channels, [1.0] * channels)
        if inner:
            self.num_classes, self.classes = inner.num_classes, inner.classes

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone[0](self.normalize(x))  # type: ignore[index]
        with values_known():
            # past its hooks: who attacks it as well would count the pass twice
            return self.backbone[1].forward(x)  # type: ignore[index,no-any-return]


def purified(purifier: nn.Module, classifier: nn.Module) -> NormalizedClassifier:
    """`classifier` behind `purifier`, one model for `evaluate` and any attack library.

    An attack sees both: its gradients are those of the classifier at the purified image, taken
    back through the purifier. A purifier outside of the attack is no defence (Athalye, Carlini &
    Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018).

    Args:
        purifier: images [N, C, H, W] in [0, 1] → images.
        classifier: of such images, spiking or not; shared, not copied.

    Raises:
        SJRobustError: a classifier that holds a spiking network in another way.
    """
    classifier = expose(classifier)
    if isinstance(classifier, SpikingModel):
        return PurifiedSNN(purifier, classifier)
    return PurifiedANN(purifier, classifier)


def save_purifier(purifier: Purifier, path: str | os.PathLike[str]) -> None:
    """Write a `Purifier` as one safetensors file, whole or not at all."""
    made = json.dumps({"channels": purifier.channels, "width": purifier.width})
    tensors = {name: value.detach().cpu() for name, value in purifier.state_dict().items()}
    write_atomic(path, safetensors.torch.save(tensors, metadata={"purifier": made}))


def load_purifier(path: str | os.PathLike[str]) -> Purifier:
    """The purifier that `save_purifier` wrote, in eval mode.

    Raises:
        SJRobustError: there is none at `path`, or it is damaged.
    """
    advice = "train one with scripts/purifier.py"
    if not Path(path).is_file():
        raise SJRobustError(f"{path}: no such file; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            made = json.loads((file.metadata() or {})["purifier"])
        purifier = Purifier(int(made["channels"]), int(made["width"]))
        purifier.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SJRobustError(
            f"{path} is damaged, or no purifier ({first_line(error)}); {advice}"
        ) from error
    return purifier.eval()
