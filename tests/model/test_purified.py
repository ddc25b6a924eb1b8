"""A classifier behind a purifier is one model: attacks see both, and spikes stay in sight."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from sj_robust import SJRobustError, convert, evaluate, save
from sj_robust.attack import PGD, GradientView
from sj_robust.data import ImageDataset, load_dataset
from sj_robust.evaluation import measure_latency
from sj_robust.model import (
    NormalizedClassifier,
    PurifiedSNN,
    Purifier,
    SpikingClassifier,
    from_spikingjelly,
    load_purifier,
    purified,
    save_purifier,
)
from sj_robust.training import train_purifier

SCALES = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def network() -> NormalizedClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return NormalizedClassifier(backbone.eval(), *SCALES)


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    return load_dataset("sample", "train").first(48)


@pytest.fixture(scope="module")
def snn(images: ImageDataset) -> SpikingClassifier:
    return convert(network(), images.floats()[None, :16], 3, calibration_timesteps=4).eval()


def blurring() -> Purifier:
    """One that has some effect without training."""
    torch.manual_seed(1)
    purifier = Purifier(width=4)
    nn.init.normal_(purifier.decode[4].weight, 0, 0.3)
    return purifier.eval()


def test_it_begins_as_nothing_and_has_the_size_it_says() -> None:
    purifier, x = Purifier(), torch.rand(2, 3, 8, 6)
    assert torch.equal(purifier(x), x)
    count = sum(parameter.numel() for parameter in purifier.parameters())
    assert f"{count:,} parameters" in Purifier.__doc__
    with pytest.raises(SJRobustError, match="even sides"):
        purifier(torch.rand(1, 3, 7, 8))
    with pytest.raises(SJRobustError, match="width 0"):
        Purifier(width=0)


@pytest.mark.filterwarnings("ignore:images lie more than")
@pytest.mark.parametrize("view", ["PCW:1", "rate", "ASSG", "activation", "own"])
def test_gradients_go_through_the_view_and_the_purifier(snn: SpikingClassifier, view: str) -> None:
    purifier, x, y = blurring(), torch.rand(4, 3, 32, 32), torch.arange(4)
    model = purified(purifier, snn)
    assert isinstance(model, PurifiedSNN) and model.nodes() == snn.nodes()
    with torch.no_grad():
        assert torch.equal(model(x), snn(purifier(x)))

    def gradient(inner: nn.Module, outer: nn.Module | None) -> Tensor:
        at = x.clone().requires_grad_()
        logits = inner(at if outer is None else outer(at))
        return torch.autograd.grad(nn.functional.cross_entropy(logits, y), at)[0]

    together = gradient(GradientView(model, view), None)
    assert together.abs().sum() > 0
    assert torch.allclose(together, gradient(GradientView(snn, view), purifier), atol=1e-7)
    # which is not that of the network alone, at the purified image
    assert not torch.allclose(together, gradient(GradientView(snn, view), None), atol=1e-4)


def test_both_kinds_are_measured_as_what_they_are(
    snn: SpikingClassifier, images: ImageDataset
) -> None:
    for classifier in (network(), snn):
        kind = "snn" if classifier is snn else "ann"
        arguments = dict(eps="2/255", max_images=24, check_images=0)
        report = evaluate(purified(blurring(), classifier), images, protocol="strong", **arguments)
        assert report.model.kind == kind
        assert (report.activity is not None) == (kind == "snn")
        assert report.energy is not None
        if kind == "snn":
            assert "PCW:1" in report.settings.views and len(report.settings.views) > 3
            assert report.model.settings["purifier"] == "Purifier"
            assert report.model.timesteps == 3
        # a purifier that does nothing changes nothing, of what was found and of how
        quick = dict(protocol="quick", **arguments)
        through, alone = (
            evaluate(model, images, **quick)
            for model in (purified(Purifier(), classifier), classifier)
        )
        assert through.per_image == alone.per_image


def test_the_attack_sees_more_than_one_on_the_classifier_alone(images: ImageDataset) -> None:
    """The loss that PGD finds through both is above that of the classifier's own adversarial
    images, as they come out of the purifier."""
    purifier, classifier = blurring(), network()
    model = purified(purifier, classifier).eval()
    x, y = images.floats()[:24], classifier(images.floats()[:24]).argmax(1)
    attack = PGD(eps=4 / 255, steps=10, keep="last")
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(model(attack(source, x, y)), y)
            for source in (model, classifier)
        ]
    assert losses[0] > 1.01 * losses[1]


def smooth(count: int, seed: int) -> ImageDataset:
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size=16, mode="bilinear", align_corners=True)
    return ImageDataset(
        fine.mul(255).to(torch.uint8), torch.arange(count) % 2, ("a", "b"), "smooth", "train"
    )


def test_it_learns_to_take_noise_off() -> None:
    torch.manual_seed(0)
    purifier = Purifier(width=16)
    errors = train_purifier(purifier, smooth(240, 0), eps="24/255", epochs=20, batch_size=12)
    x = smooth(32, 1).floats()
    noisy = x + 24 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (purifier(noisy) - x).square().mean() < 0.8 * (noisy - x).square().mean()
    assert errors[-1] < 0.8 * errors[0] and len(errors) == 20
    assert not purifier.training


def test_attacks_of_its_training_leave_the_classifier_as_it_was(
    images: ImageDataset, snn: SpikingClassifier
) -> None:
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        purifier = Purifier(width=4)
        train_purifier(purifier, images, snn, steps=1, epochs=1, batch_size=12, seed=seed)
        weights.append(purifier.decode[4].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
    assert not snn.training
    with pytest.raises(SJRobustError, match="epochs is 0"):
        train_purifier(Purifier(), images, epochs=0)


def test_it_is_saved_and_read(tmp_path: Path, snn: SpikingClassifier) -> None:
    purifier, x = blurring(), torch.rand(2, 3, 8, 8)
    save_purifier(purifier, tmp_path / "purifier.safetensors")
    again = load_purifier(tmp_path / "purifier.safetensors")
    assert torch.equal(again(x), purifier(x)) and not again.training
    (tmp_path / "broken").write_bytes(b"no")
    for name, message in (("broken", "damaged, or no purifier"), ("none", "no such file")):
        with pytest.raises(SJRobustError, match=message):
            load_purifier(tmp_path / name)
    for classifier in (snn, network(), network().backbone):
        with pytest.raises(SJRobustError, match="without its purifier"):
            save(purified(purifier, classifier), tmp_path / "saved")


@pytest.mark.filterwarnings("error")
def test_what_it_puts_out_may_lie_outside(snn: SpikingClassifier) -> None:
    """Images are checked where they come in."""
    purifier, x = blurring(), torch.rand(4, 3, 32, 32)
    nn.init.constant_(purifier.decode[4].bias, 0.9)
    assert purifier(x).max() > 1.5
    for classifier in (snn, network()):
        model = purified(purifier, classifier).eval()
        assert torch.isfinite(model(x)).all()
        with pytest.raises(SJRobustError, match="images reach from"):
            model(255 * x)


def test_the_network_alone_may_be_transferred_from(
    snn: SpikingClassifier, images: ImageDataset
) -> None:
    """It shares its layers with the one behind the purifier: nothing is counted twice, and no view
    is another one."""
    few = dict(eps="2/255", attacks=["fgsm"], max_images=24, check_images=0)
    for classifier in (network(), snn):
        behind = purified(blurring(), classifier)
        shared, apart = (
            evaluate(behind, images, transfer={"alone": other}, **few)
            for other in (classifier, copy.deepcopy(classifier))
        )
        assert shared.forward_images == apart.forward_images
        assert shared.backward_images == apart.backward_images
        assert shared.per_image == apart.per_image
        assert shared.settings == apart.settings


def test_latency_of_one_whose_steps_see_later_ones_is_refused(images: ImageDataset) -> None:
    class Whole(nn.Module):
        """Of every step the mean over all of them."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.node = nn.Linear(3072, 10), neuron.IFNode(step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            logits = self.node(self.layer(x.flatten(2)))
            return logits + logits.flip(0).cumsum(0).flip(0)

    torch.manual_seed(0)
    snn = from_spikingjelly(Whole(), timesteps=4, mean=SCALES[0], std=SCALES[1])
    for model in (snn, purified(Purifier(), snn)):
        with pytest.raises(SJRobustError, match="see later ones"):
            measure_latency(model, images, max_images=4)
