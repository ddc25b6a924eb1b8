"""Networks as users bring them: wrapped, compiled, of other precisions, with weights that are
computed, frozen, without weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from sj_robust import SJRobustError, finetune, load, save, train_ann
from sj_robust.conversion import convert
from sj_robust.data import ImageDataset
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.training import TrainConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
IMAGES = torch.rand(2, 6, 3, 12, 12, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(weight_norm|torch.jit|cannot be rebuilt from a timm name)"
)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def converted(ann: nn.Module, **options: Any) -> SpikingClassifier:
    return convert(
        ann, IMAGES, 2, **{"mean": MEAN, "std": STD, "calibration_timesteps": 4, **options}
    )


def with_changes(change: Callable[[nn.Sequential], Any]) -> nn.Sequential:
    ann = network()
    change(ann)
    return ann


def as_ann(snn: SpikingClassifier) -> Tensor:
    with torch.no_grad(), snn.gradient("activation"):
        return snn(IMAGES[0])


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(0)) / 2


class Keeping(nn.Module):
    """Remembers what it computed."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x: Tensor) -> Any:
        self.last = self.inner[0](x)
        self.seen.append({"features": [self.last]})
        return self.inner(x)


class Sharing(nn.Module):
    """Shows the original of a parametrised weight under another name too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        parametrizations.spectral_norm(self.inner[3])
        self.extra = self.inner[3].parametrizations.weight.original  # type: ignore[union-attr,index]

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + 0 * self.extra.sum()


def trained_norm(ann: nn.Sequential) -> None:
    """Its estimate moves in training mode, and must not when it is taken away."""
    ann[3] = spectral_norm(ann[3])
    ann.train()(IMAGES[0])
    ann.eval()


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: with_changes(lambda ann: ann.__setitem__(0, weight_norm(ann[0]))),
    "weight_norm after a pass": lambda: with_changes(
        lambda ann: (ann.__setitem__(0, weight_norm(ann[0])), ann(IMAGES[0]))
    ),
    "weight_norm, parametrised": lambda: with_changes(
        lambda ann: [parametrizations.weight_norm(ann[at]) for at in (0, 3, 8)]
    ),
    "spectral_norm": lambda: with_changes(trained_norm),
    "spectral_norm, parametrised": lambda: with_changes(
        lambda ann: parametrizations.spectral_norm(ann[3])
    ),
    "orthogonal": lambda: with_changes(lambda ann: parametrizations.orthogonal(ann[8])),
    "own parametrisation": lambda: with_changes(
        lambda ann: parametrize.register_parametrization(ann[0], "weight", Symmetric())
    ),
    "two parametrisations": lambda: with_changes(
        lambda ann: (
            parametrize.register_parametrization(ann[3], "weight", Symmetric()),
            parametrizations.spectral_norm(ann[3]),
        )
    ),
    "pruned": lambda: with_changes(
        lambda ann: (prune.l1_unstructured(ann[0], "weight", 0.3), ann(IMAGES[0]))
    ),
    "pruned twice": lambda: with_changes(
        lambda ann: [prune.random_unstructured(ann[0], "weight", 0.3) for _ in range(2)]
    ),
    "sharing": Sharing,
    "keeping": lambda: (lambda ann: (ann(IMAGES[0]), ann)[1])(Keeping(network())),
}
WRAPPED: dict[str, Callable[[], Any]] = {
    "compiled": lambda: torch.compile(network(), backend="eager"),
    "compiled in place": lambda: with_changes(lambda ann: ann.compile(backend="eager")),
    "a compiled layer": lambda: with_changes(
        lambda ann: ann.__setitem__(3, torch.compile(ann[3], backend="eager"))
    ),
    "DataParallel": lambda: nn.DataParallel(network()),
    "a layer in DataParallel": lambda: with_changes(
        lambda ann: ann.__setitem__(3, nn.DataParallel(ann[3]))
    ),
    "AveragedModel": lambda: AveragedModel(network()),
    "normalised in DataParallel": lambda: nn.DataParallel(
        NormalizedClassifier(nn.DataParallel(network()), MEAN, STD)
    ),
    "traced by fx": lambda: torch.fx.symbolic_trace(network()),
    "in training mode": lambda: network().train(),
}


@pytest.mark.parametrize("norm", ["integrate", "fuse", "omit"])
@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed_become_weights(name: str, norm: str) -> None:
    ann = COMPUTED[name]()
    x = (IMAGES[0] - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        expected, names = ann(x), ann.state_dict().keys()
    snn = converted(ann, norm=norm, norm_statistics="calibrate")
    if norm == "fuse":  # elsewhere batch norms take other statistics, or are left out
        assert torch.allclose(as_ann(snn), expected, atol=1e-5)
    assert not any(
        key.endswith(("_orig", "_g", "_v", "original", "original0", "_mask", "weight_u"))
        for key in snn.state_dict()
    )
    with torch.no_grad():
        assert torch.equal(ann(x), expected)  # and the network is what it was
    assert ann.state_dict().keys() == names


@pytest.mark.parametrize("name", ["weight_norm, parametrised", "spectral_norm", "pruned"])
@pytest.mark.parametrize("norm", ["integrate", "fuse"])
def test_such_a_network_is_saved_and_loaded_by_what_built_it(
    name: str, norm: str, tmp_path: Path
) -> None:
    snn = converted(COMPUTED[name](), norm=norm)
    save(snn, tmp_path / "snn", input_size=(3, 12, 12))
    again = load(tmp_path / "snn", model=COMPUTED[name])
    assert torch.equal(again(IMAGES[0]), snn(IMAGES[0]))


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off(name: str, tmp_path: Path) -> None:
    plain, snn = converted(network()), converted(WRAPPED[name]())
    assert snn.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(snn(IMAGES[0]), plain(IMAGES[0]))
    save(snn, tmp_path / "snn", input_size=(3, 12, 12))
    assert torch.equal(load(tmp_path / "snn", model=WRAPPED[name])(IMAGES[0]), snn(IMAGES[0]))


def test_an_ann_is_saved_out_of_its_wrapper(tmp_path: Path) -> None:
    ann = NormalizedClassifier(network(), MEAN, STD)
    for number, model in enumerate(
        (nn.DataParallel(ann), NormalizedClassifier(nn.DataParallel(network()), MEAN, STD))
    ):
        config = save(model, tmp_path / str(number), input_size=(3, 12, 12))  # type: ignore[arg-type]
        assert (
            config.weights.state_sha256
            == save(ann, tmp_path / "plain", input_size=(3, 12, 12)).weights.state_sha256
        )
        assert torch.equal(load(tmp_path / str(number), model=network)(IMAGES[0]), ann(IMAGES[0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ann: ann.half(), "float16"),
        (lambda ann: ann.bfloat16(), "bfloat16"),
        (lambda ann: ann.double(), "float64"),
        (lambda ann: ann[3].double(), "float64"),
        (lambda ann: (ann[0].half(), ann[8].bfloat16()), "bfloat16, float16"),
    ],
)
def test_other_precisions_become_float32(
    change: Callable[[nn.Module], Any], said: str, tmp_path: Path
) -> None:
    ann, plain = with_changes(change), with_changes(change).float()
    with pytest.warns(UserWarning, match=rf"has weights in {said}: taken as float32"):
        snn = converted(ann)
    assert torch.equal(snn(IMAGES[0]), converted(plain)(IMAGES[0]))
    save(snn, tmp_path / "snn", input_size=(3, 12, 12))
    assert torch.equal(
        load(tmp_path / "snn", model=lambda: with_changes(change))(IMAGES[0]), snn(IMAGES[0])
    )
    assert {tensor.dtype for tensor in ann.state_dict().values()} == {
        tensor.dtype for tensor in with_changes(change).state_dict().values()
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.jit.script(network()),
            r"the network was compiled by torch\.jit \(from Sequential\)",
        ),
        (lambda: torch.jit.trace(network(), IMAGES[0]), r"the network was compiled by torch\.jit"),
        (
            lambda: torch.jit.freeze(torch.jit.script(network())),
            r"the network was compiled by torch\.jit",
        ),
        (
            lambda: with_changes(lambda ann: ann.__setitem__(0, torch.jit.script(ann[0]))),
            r"0 was compiled by torch\.jit \(from Conv2d\)",
        ),
        (lambda: nn.DataParallel(torch.jit.script(network())), r"compiled by torch\.jit"),
        (lambda: network().to("meta"), "0.weight of Sequential is on the meta device"),
        (lambda: network().to(torch.complex64), "0.weight of Sequential is complex"),
        (
            lambda: with_changes(lambda ann: ann.__setitem__(8, nn.LazyLinear(5))),
            "8.weight of Sequential has no size yet",
        ),
        (
            lambda: with_changes(lambda ann: ann.append(nn.Unflatten(1, (5, 1)))),
            r"returns \[2, 5, 1\].*expected a classifier's logits",
        ),
        (lambda: network, r"got a function: expected the network, a torch\.nn\.Module"),
        (lambda: network().state_dict(), "got a OrderedDict: expected the network"),
    ],
)
def test_what_cannot_be_converted_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SJRobustError, match=message) as refusal:
        converted(make())
    assert "\n" not in str(refusal.value)


def test_what_is_frozen_stays_frozen(tmp_path: Path) -> None:
    ann = network()
    ann[0].requires_grad_(False)
    for norm in ("integrate", "fuse", "omit"):
        snn = converted(ann, norm=norm)
        frozen = {
            name
            for name, parameter in snn.backbone.named_parameters()
            if not parameter.requires_grad
        }
        assert {"0.weight"} <= frozen <= {"0.weight", "0.bias"}
        assert all(node.v_threshold.requires_grad for node in snn.nodes().values())
    parametrised = with_changes(
        lambda ann: [parametrizations.weight_norm(ann[at]) for at in (0, 3)]
    )
    parametrised[0].requires_grad_(False)
    snn = converted(parametrised)
    assert not snn.backbone[0].weight.requires_grad and snn.backbone[3].weight.requires_grad  # type: ignore[index,union-attr]


def test_training_says_where_nothing_trains(tmp_path: Path) -> None:
    data = ImageDataset(
        (IMAGES.flatten(0, 1) * 255).byte(), torch.arange(12) % 5, tuple("abcde"), "mine", "train"
    )
    config = TrainConfig(
        epochs=1, batch_size=4, method="natural", validation=4, augmentation="none"
    )
    snn = converted(network().requires_grad_(False))
    with pytest.raises(
        SJRobustError, match=r"nothing of the network trains.*requires_grad_\(True\)"
    ):
        finetune(snn, data, config.model_copy(update={"learn_thresholds": False}), tmp_path / "a")
    with pytest.raises(SJRobustError, match="nothing of the network trains"):
        train_ann(
            NormalizedClassifier(network().requires_grad_(False), MEAN, STD),
            data,
            config,
            tmp_path / "b",
        )
    with pytest.raises(SJRobustError, match=r"0\.weight is float16: expected float32"):
        train_ann(NormalizedClassifier(network().half(), MEAN, STD), data, config, tmp_path / "c")
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    with pytest.warns(UserWarning, match="only the firing thresholds train"):
        finetune(snn, data, config, tmp_path / "d")
    changed = {
        name for name, value in snn.state_dict().items() if not torch.equal(value, before[name])
    }
    assert (
        any(name.endswith("v_threshold") for name in changed) and "backbone.0.weight" not in changed
    )


class Gated(nn.Module):
    """Its head comes first, and last the linear layers of a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


def test_classes_are_counted_at_the_logits(tmp_path: Path) -> None:
    ann = NormalizedClassifier(Gated(), MEAN, STD)
    assert ann.num_classes == 5
    snn = converted(ann)
    assert snn.num_classes == 5
    assert save(snn, tmp_path / "snn", input_size=(3, 12, 12)).num_classes == 5
    assert load(tmp_path / "snn", model=Gated).num_classes == 5
    without_linear = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert NormalizedClassifier(without_linear, MEAN, STD).num_classes == 7
