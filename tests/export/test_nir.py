"""The NIR graph, run by a small interpreter of NIR's own equations, spikes as the network does;
what NIR cannot say is refused."""

from __future__ import annotations

from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust import SJRobustError, export_nir
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.neuron import Reset, ThresholdLIF

SIZE = (3, 8, 8)
SpikesOf = Callable[[SpikingClassifier, Tensor], tuple[Tensor, dict[str, Tensor]]]

nir = pytest.importorskip("nir", reason="the extra nir is not installed")


def interpret(graph: Any, image: Tensor, steps: int, dt: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of each step [T,K] and what every node gave [T,*]: Euler's method on NIR's equations,
    edges into a node added up."""
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    order = list(TopologicalSorter(sources).static_order())
    potentials: dict[str, Tensor] = {}
    record: dict[str, list[Tensor]] = {name: [] for name in order}
    for _ in range(steps):
        for name in order:
            node = graph.nodes[name]
            x = (
                image
                if isinstance(node, nir.Input)
                else sum((record[source][-1] for source in sources[name]), torch.zeros(()))
            )
            record[name].append(_run(node, x, name, potentials, dt))
    (output,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Output))
    return torch.stack(record[output]), {
        name: torch.stack(values) for name, values in record.items()
    }


def _run(node: Any, x: Tensor, name: str, potentials: dict[str, Tensor], dt: float) -> Tensor:
    t = torch.as_tensor
    match node:
        case nir.Input() | nir.Output():
            return x
        case nir.Conv2d():
            options = (
                tuple(map(int, node.stride)),
                tuple(map(int, node.padding)),
                tuple(map(int, node.dilation)),
                int(node.groups),
            )
            return F.conv2d(x[None], t(node.weight), t(node.bias), *options)[0]
        case nir.Affine():
            return F.linear(x, t(node.weight), t(node.bias))
        case nir.AvgPool2d():
            return F.avg_pool2d(
                x[None],
                *(tuple(map(int, size)) for size in (node.kernel_size, node.stride, node.padding)),
            )[0]
        case nir.Flatten():
            return x.flatten(int(node.start_dim), int(node.end_dim))
        case nir.IF():
            v = potentials.get(name, torch.zeros_like(x)) + dt * t(node.r) * x
        case nir.LIF():
            v = potentials.get(name, torch.zeros_like(x))
            v = v + dt / t(node.tau) * (t(node.v_leak) - v + t(node.r) * x)
        case _:
            raise AssertionError(f"{type(node).__name__} was not to be written")
    fired = v > t(node.v_threshold)
    potentials[name] = torch.where(fired, t(node.v_reset), v)
    return fired.to(x.dtype)


def compare(
    spikes_of: SpikesOf, snn: SpikingClassifier, images: Tensor, path: Path, **options: Any
) -> Any:
    """In double precision no rounding decides about a spike: all of them have to be the same."""
    snn, images = snn.double(), images.double()
    done = export_nir(snn, path, **options)
    graph = nir.read(path)
    logits, spikes = spikes_of(snn, images)
    fired = 0.0
    for index, image in enumerate(images):
        found, record = interpret(graph, image, snn.timesteps, done.dt or 0)
        for name, expected in spikes.items():
            assert torch.equal(record[name], expected[:, index]), name
        torch.testing.assert_close(found, logits[:, index], rtol=1e-9, atol=1e-9)
    for expected in spikes.values():
        fired = float(expected.mean())
        assert 0.01 < fired < 0.9  # the comparison is about something
    return graph


def test_the_zoo_network_spikes_the_same(
    resnet: SpikingClassifier, images: Tensor, spikes_of: SpikesOf, tmp_path: Path
) -> None:
    graph = compare(spikes_of, resnet, images[:1], tmp_path / "resnet.nir")
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    # normalisation, convolutions, shortcuts that change shape
    assert (kinds.count("IF"), kinds.count("Conv2d")) == (19, 1 + 19 + 2)
    assert {("layer1.0.act2", "layer1.1.act2"), ("layer1.1.conv2", "layer1.1.act2")} <= set(
        graph.edges
    )
    assert int(graph.metadata["timesteps"]) == 4


def test_small_networks_spike_the_same(
    network: SpikingClassifier, small: Tensor, spikes_of: SpikesOf, tmp_path: Path
) -> None:
    compare(spikes_of, network, small, tmp_path / "small.nir", input_size=SIZE, dt=1e-3)


def test_spikes_worth_another_number_are_multiplied(
    feed_forward: SpikingClassifier, small: Tensor, tmp_path: Path
) -> None:
    feed_forward.worth = {"2": 0.37}
    snn = feed_forward.double()
    done = export_nir(snn, tmp_path / "worth.nir", input_size=SIZE)
    graph = nir.read(done.file)
    with torch.no_grad():
        expected = snn.forward_sequence(small[:2].double())
    for index, image in enumerate(small[:2].double()):
        torch.testing.assert_close(
            interpret(graph, image, 4, 1.0)[0], expected[:, index], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 3)])
@pytest.mark.parametrize(
    "pooling",
    [
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d((2, 3), (3, 1), (1, 0), ceil_mode=True),
        nn.AvgPool2d((3, 1), (2, 2), (1, 0), count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    ],
)
def test_padded_average_pooling(
    pooling: nn.Module, size: tuple[int, int], images: Tensor, spikes_of: SpikesOf, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    images = images[:3, :, 8 : 8 + size[0], 8 : 8 + size[1]]
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        spike(0.3),
        pooling,
        nn.Conv2d(4, 6, 1),
        spike(0.2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    network(images.repeat(4, 1, 1, 1))
    snn = SpikingClassifier(network, timesteps=4, mean=[0.5] * 3, std=[0.2] * 3)
    graph = compare(spikes_of, snn, images, tmp_path / "pooled.nir", input_size=(3, *size))
    # read in different ways
    assert not any(
        node.padding.any() for node in graph.nodes.values() if isinstance(node, nir.AvgPool2d)
    )


def test_channels_and_pixels_are_gathered(
    small: Tensor, spikes_of: SpikesOf, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    snn = SpikingClassifier(Gathered(), timesteps=4, mean=[0.5] * 3, std=[0.2] * 3).eval()
    compare(spikes_of, snn, small, tmp_path / "gathered.nir", input_size=SIZE)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 4, (1, 5), padding=(0, 2)),
        nn.Conv2d(3, 4, (5, 3), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(3, 4, (2, 3), stride=2),
        nn.Conv2d(3, 4, 3, padding="same", dilation=2),
        nn.Conv2d(3, 4, 2, padding="same"),
        nn.Conv2d(3, 4, 3, padding="valid"),
    ],
)
def test_convolutions_of_every_shape(
    convolution: nn.Module, small: Tensor, spikes_of: SpikesOf, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(convolution, spike(0.3), nn.Flatten(), nn.LazyLinear(2))
    network(small.repeat(4, 1, 1, 1))
    snn = SpikingClassifier(network, timesteps=4, mean=[0.5] * 3, std=[0.2] * 3)
    compare(spikes_of, snn, small, tmp_path / "shaped.nir", input_size=SIZE)


def test_values_are_in_the_precision_of_the_network(
    feed_forward: SpikingClassifier, small: Tensor, tmp_path: Path
) -> None:
    done = export_nir(feed_forward, tmp_path / "single.nir", input_size=SIZE)
    graph = nir.read(done.file)
    assert {str(graph.nodes[name].v_threshold.dtype) for name in ("2", "6")} == {"float32"}
    found = torch.stack([interpret(graph, image, 4, 1.0)[0].mean(0) for image in small])
    with torch.no_grad():
        assert torch.equal(found.argmax(1), feed_forward(small).argmax(1))


def test_a_potential_at_the_threshold_fires(tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 1, 1, bias=False), spike(0.75), nn.Flatten(), nn.Linear(64, 1)]
    nn.init.constant_(layers[0].weight, 0.25)  # type: ignore[arg-type]
    nn.init.constant_(layers[3].weight, 1 / 64)  # type: ignore[arg-type]
    nn.init.zeros_(layers[3].bias)  # type: ignore[arg-type]
    snn = SpikingClassifier(nn.Sequential(*layers), timesteps=4, mean=[0.0] * 3, std=[1.0] * 3)
    export_nir(snn, tmp_path / "at.nir", input_size=SIZE)
    for brightness, expected in ((1.0, [1, 1, 1, 1]), (0.5, [0, 1, 0, 1]), (0.25, [0, 0, 0, 1])):
        image = torch.full(SIZE, brightness)
        found, _ = interpret(nir.read(tmp_path / "at.nir"), image, 4, 1.0)
        assert (
            found.flatten().tolist()
            == snn.forward_sequence(image[None]).flatten().tolist()
            == expected
        )


def spike(threshold: float = 0.7, reset: Reset = "hard") -> SpikingActivation:
    return SpikingActivation(ThresholdLIF(threshold, reset=reset), 4)


def test_thresholds_per_channel_below_zero_too(
    small: Tensor, spikes_of: SpikesOf, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    node = ThresholdLIF(0.3, channels=4)
    with torch.no_grad():
        node.v_threshold.copy_(torch.tensor([0.2, -0.1, 0.0, 0.5]))
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), SpikingActivation(node, 4), nn.Flatten(), nn.Linear(144, 3)
    )
    snn = SpikingClassifier(network, timesteps=4, mean=[0.5] * 3, std=[0.2] * 3)
    compare(spikes_of, snn, small, tmp_path / "own.nir", input_size=SIZE)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.gate, self.fc = (
            nn.Conv2d(3, 4, 1),
            spike(),
            nn.Conv2d(4, 4, 1),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.fc((x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))


class Gathered(nn.Module):
    """Channels put together and taken apart; a sum with a factor, and one of a value with itself;
    pixels left out, zeros put around."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act1, self.conv2 = (
            nn.Conv2d(3, 4, 1),
            spike(0.4),
            nn.Conv2d(8, 7, (1, 3), padding=(0, 1)),
        )
        self.norm, self.act2, self.fc = nn.BatchNorm2d(8), spike(0.2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv(x))
        first, second, third = self.conv2(torch.cat([x, 1 - x], 1)).split([3, 3, 1], 1)
        x = torch.add(
            first[:, :, 1:6:2, ::2],
            second[:, :, 1:6:2, ::2] + 0.5 * first[:, :, 1:6:2, ::2],
            alpha=-0.7,
        )
        x = F.pad(torch.cat([x, third[:, :, ::3, ::2]], 1), (1, 2, 0, 1, 1, 3))
        x = self.act2(self.norm(x)).mean((2, 3))
        return self.fc(torch.cat([x, x + x], 1))


class Rowwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 1), spike(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.fc(torch.cat([x, 1 - x], 2).mean((2, 3)))


def sequential(*middle: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 1), *middle, nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (sequential(spike(reset="soft")), "soft reset of 1"),
        (
            sequential(spike(), nn.MaxPool2d(2)),
            r"max_pool2d.*\(2\); convert with pooling='average'",
        ),
        (sequential(spike(), nn.AvgPool2d(5, 1, 2, count_include_pad=False)), r"average \(2\)"),
        (sequential(spike(), nn.AvgPool2d(2, divisor_override=3)), r"average \(2\)"),
        (sequential(spike(), nn.AdaptiveAvgPool2d(3)), r"average \(2\)"),
        (sequential(spike(), nn.GELU()), r"gelu \(2\)"),
        (Gated, "sigmoid"),
        (sequential(spike(), nn.ReflectionPad2d(1)), r"pad.* \(2\)"),
        (sequential(spike(), nn.ConstantPad2d(1, 0.5)), r"pad.* \(2\)"),
        (sequential(spike(), nn.Conv2d(4, 4, (2, 1))), r"convolution \(2\)"),
        (Rowwise, "cat"),
    ],
)
def test_what_nir_cannot_say_is_refused_by_name(
    backbone: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    made = backbone()
    made(torch.zeros(4, *SIZE))  # lazy layers take their shape
    snn = SpikingClassifier(made, timesteps=4, mean=[0.5] * 3, std=[0.2] * 3)
    with pytest.raises(SJRobustError, match=f"NIR cannot say .*{message}") as refused:
        export_nir(snn, tmp_path / "no.nir", input_size=SIZE)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments(
    feed_forward: SpikingClassifier, ann: NormalizedClassifier, tmp_path: Path
) -> None:
    file = tmp_path / "no.nir"
    for model, options, message in [
        (ann, {"input_size": SIZE}, "this one is an ANN"),
        (ann.backbone, {"input_size": SIZE}, "cannot export a Sequential"),
        (feed_forward, {}, "pass input_size"),
        (feed_forward, {"input_size": (1, 8, 8)}, "expected \\[3, H, W\\]"),
        (feed_forward, {"input_size": (3, 20, 20)}, "Sequential cannot be traced"),
        (feed_forward, {"input_size": SIZE, "dt": 0}, "dt is 0"),
    ]:
        with pytest.raises(SJRobustError, match=message):
            export_nir(model, file, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
