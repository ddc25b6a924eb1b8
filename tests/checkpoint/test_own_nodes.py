"""Networks of SpikingJelly's own nodes as checkpoints: saved, described, published and loaded with
the code that builds them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sj_robust import SJRobustError, evaluate, from_spikingjelly, load, pull, push, save
from sj_robust.card import write_card
from sj_robust.checkpoint.config import read_config
from sj_robust.data import ImageDataset
from sj_robust.model import SpikingJellyClassifier

TAU = (
    "ParametricLIFNode(v_threshold=1.0, v_reset=0.0, detach_reset=False, tau=2.5, ATan(alpha=2.0,"
    " spiking=True))"
)


class Network(nn.Module):
    """A user's class: leaky nodes with a constant and with a learnt time constant."""

    def __init__(
        self, *, tau: float = 2.0, node: Callable[..., nn.Module] = neuron.ParametricLIFNode
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            layer.Conv2d(3, 8, 3, padding=1),
            layer.BatchNorm2d(8),
            neuron.LIFNode(tau=tau, surrogate_function=surrogate.ATan()),
            layer.Conv2d(8, 8, 3, stride=2, padding=1),
            layer.BatchNorm2d(8),
            node(surrogate_function=surrogate.ATan()),
            layer.Flatten(),
            layer.Linear(8 * 256, 10),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def wrapped(network: nn.Module, timesteps: int = 3) -> SpikingJellyClassifier:
    return from_spikingjelly(
        network, timesteps=timesteps, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )


@pytest.fixture
def snn() -> SpikingJellyClassifier:
    """With statistics and a time constant that no fresh network has."""
    model = wrapped(Network())
    model(torch.rand(16, 3, 32, 32))
    with torch.no_grad():
        model.backbone.layers[5].w.copy_(-torch.log(torch.tensor(1.5)))  # type: ignore[index, union-attr]
    return model.eval()


@pytest.fixture
def folder(snn: SpikingJellyClassifier, dataset: ImageDataset, tmp_path: Path) -> Path:
    report = evaluate(
        snn, dataset, attacks=["fgsm"], views=["own"], eps=[4 / 255], max_images=8, check_images=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said what builds it
        save(
            snn,
            tmp_path / "mine",
            report=report,
            builder="my_networks:robust",
            input_size=(3, 32, 32),
            classes=dataset.classes,
            training={"dataset": "cifar10", "images": 16},
        )
    return tmp_path / "mine"


def test_it_comes_back_bit_for_bit(
    snn: SpikingJellyClassifier, folder: Path, dataset: ImageDataset
) -> None:
    images = dataset.floats()[:8]
    for build in (Network, Network(), lambda: wrapped(Network(), timesteps=7)):
        loaded = load(folder, model=build)
        assert isinstance(loaded, SpikingJellyClassifier)
        assert not any(module.training for module in loaded.modules())
        assert torch.equal(loaded(images), snn(images))
        assert (loaded.timesteps, loaded.num_classes, loaded.settings["nodes"]) == (
            3,
            10,
            snn.settings["nodes"],
        )
    config = read_config(folder)
    assert (config.kind, config.architecture, config.timesteps, config.model) == (
        "snn",
        None,
        3,
        "my_networks:robust",
    )
    assert config.thresholds == {"layers.2": 1.0, "layers.5": 1.0}
    assert config.layers_by_node[TAU] == ["layers.5"]


def test_it_says_that_it_needs_its_code(folder: Path) -> None:
    with pytest.raises(
        SJRobustError,
        match=r"your own network \(it was made by 'my_networks:robust'\): name the function that",
    ):
        load(folder)


def test_another_network_is_not_taken_for_it(folder: Path) -> None:
    with pytest.warns(
        UserWarning,
        match=(
            r"layers.2 of .* was LIFNode\(.* tau=2.0, .*now it is LIFNode\(.* tau=3.0, .*may not"
            r" hold"
        ),
    ):
        load(folder, model=lambda: Network(tau=3.0))
    with pytest.raises(
        SJRobustError, match=r"does not fit Network: unexpected backbone.layers.5.w"
    ):
        load(folder, model=lambda: Network(node=neuron.LIFNode))

    class Renamed(neuron.ParametricLIFNode):  # type: ignore[misc]  # SpikingJelly has no types
        """Fits in every tensor."""

    with pytest.raises(
        SJRobustError, match=r"layers.5 was ParametricLIFNode\(.* now it is Renamed\("
    ):
        load(folder, model=lambda: Network(node=Renamed))
    with pytest.raises(SJRobustError, match="has no spiking node"):
        load(folder, model=nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))


def test_the_card_describes_its_nodes(folder: Path) -> None:
    text = write_card(folder).read_text()
    metadata = ModelCard(text).data.to_dict()
    assert "spikingjelly" in metadata["tags"] and "ann2snn" not in metadata["tags"]
    assert (
        "built of the nodes listed below and not converted from an ANN, trained as recorded below"
        in text
    )
    assert f"| `{TAU}` | layers.5 |" in text
    assert 'load("mine", model=build)' in text
    for word in ("conversion", "The ANN it came from"):
        assert word not in text


def test_it_travels_through_the_hub(
    hub: Any, snn: SpikingJellyClassifier, folder: Path, dataset: ImageDataset, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="whoever pulls it needs its code"):
        push(folder, "alice/mine")
    loaded = load(pull("alice/mine", to=tmp_path / "copy"), model=Network)
    assert torch.equal(loaded(dataset.floats()[:8]), snn(dataset.floats()[:8]))


@pytest.mark.parametrize("nodes", [["LIFNode"], {"layers.2": 1}, "LIFNode"])
def test_a_config_with_odd_nodes_is_refused(folder: Path, nodes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["settings"]["nodes"] = nodes
    path.write_text(json.dumps(content))
    with pytest.raises(SJRobustError, match=r"nodes is .*, expected a text for each"):
        load(folder, model=Network)
