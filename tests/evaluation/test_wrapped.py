"""A spiking network inside of something else is measured as the spiking network it is, or not at
all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sj_robust import (
    GradientView,
    SJRobustError,
    convert,
    export_torch,
    finetune,
    from_spikingjelly,
    load,
    save,
    train_ann,
)
from sj_robust.attack import PGD
from sj_robust.conversion import inspect_conversion
from sj_robust.data import ImageDataset
from sj_robust.evaluation import evaluate
from sj_robust.evaluation.certificate import certify
from sj_robust.evaluation.corrupted import evaluate_corruptions
from sj_robust.evaluation.energy import measure_energy
from sj_robust.evaluation.latency import measure_latency
from sj_robust.model import NormalizedClassifier, SpikingClassifier, SpikingModel, expose
from sj_robust.neuron import Surrogate
from sj_robust.training import TrainConfig

NONE, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Own(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class Listed(nn.Module):
    """Keeps its networks where no module shows them."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = list(networks)

    def forward(self, x: Tensor) -> Any:
        return torch.stack([network(x) for network in self.networks]).mean(0)


class Remembered(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.call = lambda x: network(x)

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


class Halved(nn.DataParallel):
    def forward(self, x: Tensor) -> Any:
        return self.module(x / 2)


def hooked(snn: nn.Module) -> nn.Module:
    wrapper = nn.DataParallel(snn)
    wrapper.register_forward_hook(lambda module, inputs, output: output.flip(1))
    return wrapper


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "torch.compile": lambda snn: torch.compile(snn, backend="eager"),  # type: ignore[return-value]
    "Sequential": nn.Sequential,
    "Sequential, Identity": lambda snn: nn.Sequential(nn.Identity(), snn),
    "AveragedModel": AveragedModel,
    "ModelEmaV2": ModelEmaV2,
    "ModelEmaV3": ModelEmaV3,
    "normalised by 0 and 1": lambda snn: NormalizedClassifier(snn, NONE, ONE),
    "two wrappers": lambda snn: nn.DataParallel(torch.compile(nn.Sequential(snn), backend="eager")),  # type: ignore[arg-type]
    "normalised in a wrapper": lambda snn: nn.DataParallel(
        NormalizedClassifier(nn.DataParallel(snn), NONE, ONE)
    ),
}
REFUSED: dict[str, Callable[[SpikingClassifier], nn.Module]] = {
    "own": Own,
    "own in a wrapper": lambda snn: nn.DataParallel(Own(snn)),
    "normalised twice": lambda snn: NormalizedClassifier(snn, (0.5,) * 3, (0.25,) * 3),
    "another normalisation before": lambda snn: nn.Sequential(nn.BatchNorm2d(3).eval(), snn),
    "a view": lambda snn: GradientView(snn, Surrogate("PCW", 1.0)),
    "a view that changes the forward pass": lambda snn: GradientView(snn, "activation"),
    "derived from a wrapper": Halved,
    "a wrapper with a hook": hooked,
    "the backbone": lambda snn: nn.Sequential(snn.backbone),
    "in a list": Listed,
    "two in a list": lambda snn: Listed(snn, snn),
    "remembered by a function": Remembered,
    "among other networks": lambda snn: Own(nn.ModuleDict({"a": nn.Identity(), "b": snn})),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_known_wrappers_are_seen_through(
    name: str, snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    arguments: dict[str, Any] = dict(
        protocol="quick", eps=[2 / 255], max_images=40, check_images=0, show_progress=False
    )
    found, alone = (
        evaluate(WRAPPED[name](snn), dataset, **arguments),
        evaluate(snn, dataset, **arguments),
    )
    assert found.model == alone.model and found.model.kind == "snn"
    assert found.settings.views == alone.settings.views and len(alone.settings.views) == 4
    assert found.per_image == alone.per_image
    assert found.activity == alone.activity


@pytest.mark.parametrize("name", REFUSED)
def test_a_spiking_network_in_anything_else_is_refused(
    name: str, snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    model = REFUSED[name](snn)
    measures: list[Callable[[], Any]] = [
        lambda: evaluate(
            model, dataset, eps=[2 / 255], attacks=["fgsm"], max_images=8, check_images=0
        ),
        lambda: measure_energy(model, dataset, max_images=8),
        lambda: certify(model, dataset, sigma=0.1, n0=10, n=20, max_images=2),
        lambda: evaluate_corruptions(
            model, dataset, names=["contrast"], severities=[1], max_images=8
        ),
    ]
    for measure in measures:
        with pytest.raises(
            SJRobustError, match=r"holds a spiking network.*would be taken for an ANN"
        ) as refusal:
            measure()
        assert "\n" not in str(refusal.value)


def test_networks_of_spikingjelly_in_wrappers(dataset: ImageDataset) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), neuron.LIFNode(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    functional.set_step_mode(network, "s")
    snn = from_spikingjelly(network, timesteps=2, mean=NONE, std=ONE)
    for name in ("DataParallel", "torch.compile", "Sequential"):
        assert expose(WRAPPED[name](snn)) is snn
    with pytest.raises(SJRobustError, match="would be taken for an ANN"):
        expose(Own(snn))


def test_an_ann_in_a_wrapper_is_described_as_itself(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    arguments: dict[str, Any] = dict(attacks=["fgsm"], eps=[2 / 255], max_images=20, check_images=0)
    alone = evaluate(ann, dataset, **arguments)
    inside = NormalizedClassifier(nn.DataParallel(ann.backbone), ann.mean, ann.std)
    for model in (nn.DataParallel(ann), torch.compile(ann, backend="eager"), inside):
        assert evaluate(model, dataset, **arguments).model == alone.model  # type: ignore[arg-type]


def test_everything_that_takes_a_spiking_network_takes_it_wrapped(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    wrapped, x, y = nn.DataParallel(snn), dataset.floats()[:8], dataset.labels[:8]
    view = GradientView(wrapped, "activation")
    assert torch.equal(view(x), GradientView(snn, "activation")(x))
    attack = PGD(eps=8 / 255, steps=2)
    assert torch.equal(attack(nn.DataParallel(view), x, y), attack(view, x, y))
    assert (
        measure_latency(wrapped, dataset, max_images=8).clean
        == measure_latency(snn, dataset, max_images=8).clean
    )
    assert (
        measure_energy(wrapped, dataset, max_images=8).snn
        == measure_energy(snn, dataset, max_images=8).snn
    )
    assert certify(wrapped, dataset, sigma=0.1, n0=10, n=20, max_images=2).model.kind == "snn"
    assert inspect_conversion(wrapped, x, nn.DataParallel(ann)) == inspect_conversion(snn, x, ann)  # type: ignore[arg-type]
    save(wrapped, tmp_path / "snn", input_size=(3, 8, 8))  # type: ignore[arg-type]
    again = load(tmp_path / "snn", model=nn.Sequential(*_fresh()))
    assert isinstance(again, SpikingModel) and torch.equal(again(x), snn(x))
    assert (
        export_torch(wrapped, tmp_path / "snn.pt2", input_size=(3, 8, 8)).timesteps == snn.timesteps
    )  # type: ignore[arg-type]
    with pytest.raises(SJRobustError, match="spiking already"):
        convert(wrapped, x[None])
    with pytest.raises(SJRobustError, match="taken for an ANN"):
        convert(Own(snn), x[None])


def test_training_takes_a_wrapped_spiking_network_for_one(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    snn = convert(
        nn.Sequential(*_fresh()),
        dataset.floats()[None, :16],
        2,
        mean=NONE,
        std=ONE,
        calibration_timesteps=2,
    )
    wrapped = nn.DataParallel(snn)
    config = TrainConfig(
        epochs=0.2, batch_size=16, method="natural", validation=16, augmentation="none"
    )
    before = wrapped.module.thresholds()
    assert finetune(wrapped, dataset, config, tmp_path / "run").kind == "finetune"  # type: ignore[arg-type]
    assert wrapped.module.thresholds() != before
    with pytest.raises(SJRobustError, match="train_ann takes a network without spiking nodes"):
        train_ann(wrapped, dataset, config, tmp_path / "other")  # type: ignore[arg-type]


def test_what_is_no_module_is_said_to_be_none(dataset: ImageDataset) -> None:
    with pytest.raises(
        SJRobustError, match=r"got a function: expected the network, a torch\.nn\.Module"
    ):
        evaluate(lambda x: x, dataset)  # type: ignore[arg-type]


def _fresh() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 4),
    ]


def test_what_torch_exported_is_refused(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    exported = torch.export.export(snn, (dataset.floats()[:2],), strict=False).module()
    with pytest.raises(SJRobustError, match="exported from"):
        evaluate(
            exported, dataset, attacks=["fgsm"], max_images=4, check_images=0, show_progress=False
        )


def test_hidden_nodes_of_spikingjelly_are_warned_of(dataset: ImageDataset) -> None:
    channels = dataset.images[0].numel()
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(channels, 10), neuron.IFNode())
    clean = partial(evaluate, attacks=[], max_images=1, check_images=0, show_progress=False)
    corrupted = partial(
        evaluate_corruptions, names=["contrast"], severities=[1], max_images=1, show_progress=False
    )
    for network, measure in ((Listed(hidden), clean), (hidden, clean), (Listed(hidden), corrupted)):
        functional.reset_net(hidden)
        with pytest.warns(UserWarning, match="holds nodes of SpikingJelly") as warned:
            measure(network, dataset)  # type: ignore[operator]
        assert [warning.filename for warning in warned] == [__file__]  # the caller's line, not ours
