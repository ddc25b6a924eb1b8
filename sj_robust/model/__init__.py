"""Classifiers: the spiking one, the normalised ANN, the CIFAR architectures registered with timm,
and weights from files."""

from sj_robust.model import resnet as resnet
from sj_robust.model.classifier import SpikingActivation, SpikingClassifier
from sj_robust.model.normalized import NormalizedClassifier
from sj_robust.model.purified import (
    PurifiedANN,
    PurifiedSNN,
    Purifier,
    load_purifier,
    purified,
    save_purifier,
)
from sj_robust.model.spiking import SpikingModel
from sj_robust.model.spikingjelly import SpikingJellyClassifier, from_spikingjelly
from sj_robust.model.unwrap import expose, unwrap
from sj_robust.model.weights import create_ann, load_weights, read_state_dict

__all__ = [
    "NormalizedClassifier",
    "PurifiedANN",
    "PurifiedSNN",
    "Purifier",
    "SpikingActivation",
    "SpikingClassifier",
    "SpikingJellyClassifier",
    "SpikingModel",
    "create_ann",
    "expose",
    "from_spikingjelly",
    "load_purifier",
    "load_weights",
    "purified",
    "read_state_dict",
    "save_purifier",
    "unwrap",
]
