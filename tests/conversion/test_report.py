"""The conversion report against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from sj_robust.conversion import ConversionReport, convert, inspect_conversion
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


class Gated(nn.Module):
    """A stem, a gate, a convolution on the gated spikes, one on spikes, max pooling of spikes, and
    a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act1, self.se = nn.Conv2d(3, 8, 3), nn.ReLU(), SqueezeExcitation(8, 2)
        self.conv2, self.act2, self.conv3, self.act3 = (
            nn.Conv2d(8, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.ReLU(),
        )
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.se(self.act1(self.stem(x)))))
        return self.fc(self.pool(self.act3(self.conv3(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ann() -> Gated:
    return Gated().eval()


@pytest.fixture(scope="module")
def snn(ann: Gated, images: Tensor) -> SpikingClassifier:
    return convert(
        ann,
        images[None],
        3,
        mean=MEAN,
        std=STD,
        calibration_timesteps=4,
        percentile=95.0,
        scale=0.8,
    )


@pytest.fixture(scope="module")
def report(snn: SpikingClassifier, ann: Gated, images: Tensor) -> ConversionReport:
    return inspect_conversion(snn, images, ann)


def test_nodes_and_their_rates(
    report: ConversionReport, snn: SpikingClassifier, images: Tensor
) -> None:
    seen: dict[str, Tensor] = {}
    handles = [
        act.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
        for name, act in snn.nodes().items()
    ]  # type: ignore[misc]
    with torch.no_grad():
        snn(images)
    for handle in handles:
        handle.remove()
    assert [node.name for node in report.nodes] == ["act1", "act2", "act3"]
    for node in report.nodes:
        spikes = seen[node.name].view(3, 6, -1)
        assert node.neurons == spikes.shape[2]
        assert node.rate == pytest.approx(float(spikes.mean()))
        assert node.silent == pytest.approx(float((spikes.sum((0, 1)) == 0).float().mean()))
        assert node.always == pytest.approx(float((spikes.sum((0, 1)) == 18).float().mean()))
        assert node.threshold == pytest.approx(snn.thresholds()[node.name])
        assert node.worth == snn.worth.get(node.name, 1.0)


def test_layers_and_what_stayed_analogue(report: ConversionReport) -> None:
    layers = {layer.name: layer for layer in report.layers}
    macs = {
        "stem": 8 * 8 * 8 * 27,
        "se.fc1": 3 * 16,
        "se.fc2": 3 * 16,
        "conv2": 3 * 64 * 64,
        "conv3": 3 * 64 * 64,
        "fc": 3 * 40,
    }
    assert {name: layer.macs for name, layer in layers.items()} == macs
    assert [name for name, layer in layers.items() if layer.spiking] == ["conv3"]
    assert [name for name, layer in layers.items() if layer.once] == ["stem"]
    assert report.analogue_share == pytest.approx(1 - macs["conv3"] / sum(macs.values()))
    assert {(left.name, left.what) for left in report.analogue} == {
        ("se.avgpool", "AdaptiveAvgPool2d, an average"),
        ("se.activation", "ReLU"),
        ("se.scale_activation", "Sigmoid"),
        ("", "mean(), an average"),
        ("act1", "a factor on spikes, which weights could not hold"),
    }


def test_agreement_with_the_ann_at_every_step(
    report: ConversionReport, snn: SpikingClassifier, ann: Gated, images: Tensor
) -> None:
    with torch.no_grad():
        expected, sequence = (
            NormalizedClassifier(ann, MEAN, STD)(images),
            snn.forward_sequence(images),
        )
    assert [step.timesteps for step in report.agreement] == [1, 2, 3]
    for step in report.agreement:
        logits = sequence[: step.timesteps].mean(0)
        assert step.top1 == pytest.approx(
            float((logits.argmax(1) == expected.argmax(1)).float().mean())
        )
        assert step.cosine == pytest.approx(
            float(torch.cosine_similarity(logits, expected).mean()), abs=1e-6
        )
    assert (
        inspect_conversion(snn, images, NormalizedClassifier(ann, MEAN, STD)).agreement
        == report.agreement
    )
    assert inspect_conversion(snn, images).agreement == []
    steps = [report.agreement[0].model_copy(update={"timesteps": t}) for t in range(1, 51)]
    many = report.model_copy(update={"timesteps": 50, "agreement": steps})
    lines = many.summary().split("Agreement with the ANN\n")[1].split("\n\n")[0].splitlines()[1:]
    # of many steps a few, the last one always
    assert [int(line.split()[0]) for line in lines] == list(range(2, 51, 4))


def test_json_and_text(report: ConversionReport) -> None:
    assert ConversionReport.from_json(report.to_json()) == report
    text = report.summary()
    for expected in (
        "3 spiking nodes, T=3",
        "stem: ",
        "computed once",
        "1 × Sigmoid: se.scale_activation",
        "Agreement with the ANN",
    ):
        assert expected in text


def test_dead_and_saturated_layers_are_named_with_what_to_try(
    snn: SpikingClassifier, images: Tensor
) -> None:
    before = {name: node.v_threshold.data.clone() for name, node in snn.nodes().items()}
    try:
        snn.nodes()["act2"].v_threshold.data.fill_(1e6)
        snn.nodes()["act1"].v_threshold.data.fill_(1e-9)
        nn.init.constant_(snn.backbone.stem.bias, 100.0)  # type: ignore[arg-type]
        report = inspect_conversion(snn, images)
    finally:
        for name, node in snn.nodes().items():
            node.v_threshold.data.copy_(before[name])
        snn.backbone.stem.bias.data.copy_(Gated().stem.bias.data)  # type: ignore[union-attr]
    assert "act2" in report.dead
    assert report.saturated == ["act1"]
    assert any("hardly fire" in line and "scale" in line for line in report.advice)
    assert any("at every step" in line for line in report.advice)


def test_an_ann_near_chance_is_what_the_advice_names_first(
    snn: SpikingClassifier, ann: Gated, images: Tensor
) -> None:
    found = NormalizedClassifier(ann, MEAN, STD)(images)
    right, wrong = found.argmax(1), (found.argmax(1) + 1) % found.shape[1]
    first = inspect_conversion(snn, images, ann, wrong).advice[0]
    assert first.startswith("The ANN itself is right on 0% of the images")
    named = [line for line in inspect_conversion(snn, images, ann, right).advice if "ANN" in line]
    assert not any(line.startswith("The ANN itself") for line in named)


def test_images_of_another_form_are_named(snn: SpikingClassifier) -> None:
    with pytest.raises(SJRobustError, match=r"\[3, 10, 10\]"):
        inspect_conversion(snn, torch.rand(3, 10, 10))
