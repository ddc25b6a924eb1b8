"""Networks of SpikingJelly's own nodes, measured as ours are: every view, checks, activity,
energy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn import functional as F

from sj_robust import SJRobustError, convert, finetune, from_spikingjelly, train_ann
from sj_robust.data import MEAN_STD, ImageDataset
from sj_robust.evaluation import Report, evaluate
from sj_robust.evaluation.energy import measure_energy
from sj_robust.evaluation.latency import measure_latency
from sj_robust.model import SpikingJellyClassifier
from sj_robust.training import TrainConfig

MEAN, STD = MEAN_STD["sample"]


def network(step_mode: str = "m") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(3, 12, 3, padding=1, bias=False),
        layer.BatchNorm2d(12),
        neuron.LIFNode(decay_input=False),
        layer.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.LIFNode(decay_input=False),
        layer.Flatten(),
        layer.Linear(256, 4),
    )
    functional.set_step_mode(net, step_mode)
    return net


@pytest.fixture(scope="module")
def state(dataset: ImageDataset) -> dict[str, torch.Tensor]:
    """Weights that are right on most training images."""
    snn = from_spikingjelly(network(), timesteps=4, mean=MEAN, std=STD)
    optimizer = torch.optim.Adam(snn.parameters(), 3e-3)
    x, y = dataset.floats(), dataset.labels
    for _ in range(30):
        loss = F.cross_entropy(snn(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {key: value.clone() for key, value in snn.backbone.state_dict().items()}


def trained(state: dict[str, torch.Tensor], step_mode: str = "m") -> SpikingJellyClassifier:
    net = network(step_mode)
    net.load_state_dict(state)
    return from_spikingjelly(net.eval(), timesteps=4, mean=MEAN, std=STD)


def test_a_surrogate_too_narrow_to_attack_through_hides_nothing(
    state: dict[str, torch.Tensor], dataset: ImageDataset
) -> None:
    snn = trained(state)
    for node in snn.nodes().values():
        node.surrogate_function = surrogate.Sigmoid(alpha=400.0)

    def robust(report: Report) -> float:
        return report.joint[0].accuracy.value

    common = {"eps": [8 / 255], "max_images": 80}
    naive = evaluate(snn, dataset, attacks=["pgd10"], views=["own"], check_images=48, **common)  # type: ignore[arg-type]
    seen = evaluate(
        snn,
        dataset,
        attacks=["pgd10", "sapgd100-dlr"],
        views=["PCW:1", "ASSG"],
        check_images=48,
        **common,
    )  # type: ignore[arg-type]
    assert naive.clean.value == seen.clean.value > 0.7
    assert robust(seen) < robust(naive) - 0.2
    assert naive.verdict is not None and naive.verdict.startswith("Do not trust")
    assert next(check for check in naive.checks if check.name == "another attack").status == "fail"
    assert seen.verdict is not None and not seen.verdict.startswith("Do not trust")


def test_the_report_says_what_it_is(state: dict[str, torch.Tensor], dataset: ImageDataset) -> None:
    snn = trained(state)
    report = evaluate(snn, dataset, protocol="quick", eps=[8 / 255], max_images=16, check_images=0)
    assert (report.model.kind, report.model.timesteps, report.model.architecture) == (
        "snn",
        4,
        "Sequential",
    )
    assert report.model.settings is not None
    node = (
        "LIFNode(v_threshold=1.0, v_reset=0.0, detach_reset=False, tau=2.0, Sigmoid(alpha=4.0,"
        " spiking=True))"
    )
    assert report.model.settings["nodes"] == {"2": node, "5": node}
    assert report.activity is not None
    assert {name: facts.neurons for name, facts in report.activity.layers.items()} == {
        "2": 12 * 64,
        "5": 16 * 16,
    }
    assert report.energy is not None
    assert report.energy.ann_macs == 12 * 64 * 27 + 16 * 16 * 108 + 256 * 4
    assert Report.from_json(report.to_json()) == report


def test_steps_and_sequences_give_the_same_report(
    state: dict[str, torch.Tensor], dataset: ImageDataset
) -> None:
    found = [
        evaluate(
            trained(state, mode),
            dataset,
            protocol="quick",
            eps=[4 / 255],
            max_images=32,
            check_images=0,
        )
        for mode in "ms"
    ]
    assert found[0].joint == found[1].joint
    assert found[0].per_image == found[1].per_image
    assert found[0].activity == found[1].activity
    assert found[0].energy == found[1].energy


class OwnSteps(nn.Module):
    """A network that repeats its images itself and returns the mean."""

    def __init__(self, inner: nn.Module, steps: int = 4) -> None:
        super().__init__()
        self.inner, self.steps = inner, steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.repeat(self.steps, 1, 1, 1, 1)).mean(0)  # type: ignore[no-any-return]


def test_a_network_that_makes_its_own_steps(
    state: dict[str, torch.Tensor], dataset: ImageDataset
) -> None:
    expected = trained(state)
    snn = from_spikingjelly(
        OwnSteps(expected.backbone), timesteps=4, mean=MEAN, std=STD, input="images"
    )
    x = dataset.floats()[:8]
    assert torch.equal(snn(x), expected(x))
    report = evaluate(snn, dataset, protocol="quick", eps=[4 / 255], max_images=16, check_images=0)
    assert (
        report.joint
        == evaluate(
            expected, dataset, protocol="quick", eps=[4 / 255], max_images=16, check_images=0
        ).joint
    )
    assert report.energy is None
    with pytest.raises(SJRobustError, match="makes its own time steps has no single pass"):
        measure_energy(snn, dataset, max_images=4)
    with pytest.raises(SJRobustError, match="cannot take the images"):
        evaluate(
            from_spikingjelly(expected.backbone, timesteps=4, mean=MEAN, std=STD, input="step"),
            dataset,
            max_images=4,
        )


def test_finetune_trains_it_through_its_own_surrogate(
    dataset: ImageDataset, tmp_path: Path
) -> None:
    snn = from_spikingjelly(network(), timesteps=4, mean=MEAN, std=STD)
    config = TrainConfig(
        method="pgd",
        eps=2 / 255,
        attack_steps=1,
        epochs=4,
        batch_size=16,
        lr=0.05,
        validation=32,
        validation_steps=2,
        augmentation="none",
    )
    result = finetune(snn, dataset, config, tmp_path / "run")
    assert result.best.clean > 0.4 and (result.best.robust or 0) > 0.3
    with pytest.raises(
        SJRobustError, match="consistency and checkpointing take converted networks"
    ):
        finetune(snn, dataset, config.model_copy(update={"consistency": 1.0}), tmp_path / "other")


@pytest.mark.parametrize("mode", ["m", "s"])
def test_reading_early_is_running_fewer_steps(
    state: dict[str, torch.Tensor], dataset: ImageDataset, mode: str
) -> None:
    snn, short = trained(state, mode), trained(state, mode)
    found = measure_latency(
        snn, dataset, eps=[4 / 255], attack="fgsm", max_images=32, robust_images=8
    )
    assert (len(found.clean), snn.timesteps) == (4, 4)
    for t in (1, 3):
        short.timesteps = t
        at = evaluate(
            short,
            dataset,
            attacks=["fgsm"],
            views=["PCW:1"],
            eps=[4 / 255],
            max_images=8,
            check_images=0,
        )
        assert found.robust[0].accuracy[t - 1] == at.joint[0].accuracy
        assert found.clean[t - 1].value == float(
            (short(dataset.floats()[:32]).argmax(1) == dataset.labels[:32]).float().mean()
        )


def test_steps_that_cannot_be_cut_off_have_no_latency(
    state: dict[str, torch.Tensor], dataset: ImageDataset
) -> None:
    parallel = network()
    parallel[2] = neuron.PSN(4)  # one weight for each pair of steps
    seeing = network()
    seeing[0] = nn.Sequential(seeing[0], Backwards())
    for net, message in (
        (parallel, "does not run for 1 steps"),
        (seeing, "steps of this network see later ones"),
    ):
        with pytest.raises(SJRobustError, match=message):
            measure_latency(
                from_spikingjelly(net.eval(), timesteps=4, mean=MEAN, std=STD),
                dataset,
                max_images=4,
            )
    own = from_spikingjelly(
        OwnSteps(trained(state).backbone), timesteps=4, mean=MEAN, std=STD, input="images"
    )
    with pytest.raises(SJRobustError, match="returns no logits of every step"):
        measure_latency(own, dataset, max_images=4)


class Backwards(nn.Module):
    """Each step sees the mean of those after it too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(len(x), 0, -1).view(-1, *(1,) * (x.dim() - 1))


def test_what_is_for_converted_networks_says_so(
    state: dict[str, torch.Tensor], dataset: ImageDataset, tmp_path: Path
) -> None:
    snn = trained(state)
    with pytest.raises(SJRobustError, match="spiking already"):
        convert(snn, [dataset.floats()[:8]], timesteps=4)
    with pytest.raises(SJRobustError, match="use finetune for a spiking one"):
        train_ann(snn, dataset, folder=tmp_path / "run")


def test_a_bare_network_is_warned_about(
    state: dict[str, torch.Tensor], dataset: ImageDataset
) -> None:
    class Bare(OwnSteps):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            functional.reset_net(self)
            return super().forward(x)

    with pytest.warns(UserWarning, match="wrap it with sj_robust.from_spikingjelly"):
        evaluate(Bare(trained(state).backbone), dataset, attacks=[], max_images=4, check_images=0)
