"""One attacked image: the adversarial one is the attack's, the spikes are those of the nodes, the
picture is one whatever the names."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_robust import GradientView, SJRobustError, from_spikingjelly
from sj_robust.attack import Sources, parse_attack
from sj_robust.attack.loss import margin
from sj_robust.data import ImageDataset
from sj_robust.evaluation import show
from sj_robust.evaluation.ensemble import noise_seed
from sj_robust.evaluation.shown import first_right
from sj_robust.model import NormalizedClassifier, SpikingClassifier

EPS = 8 / 255
TURNS = ("PCW:1", "ASSG", "PCW:2", "ASSG", "rate-temporal", "PCW:1", "rate")


def png(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=("PNG",))
    image.load()
    return image


def test_the_adversarial_image_is_that_of_the_attack(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    index = first_right(snn, dataset)
    x, y = dataset.floats([index]), dataset.labels[[index]]
    shown = show(snn, x[0], int(y), seed=3, index=index, classes=dataset.classes)
    attack = parse_attack("rotating50", EPS)
    seen = {view: GradientView(snn, view) for view in TURNS}  # ASSG remembers both of its turns
    sources = Sources(snn, [seen[view] for view in TURNS])
    seed = noise_seed(3, attack, "rotation")
    expected = attack(sources, x, y, seed=seed, ids=torch.tensor([index]))
    assert torch.equal(shown.adversarial, expected[0])
    assert torch.equal(shown.image, x[0])
    assert 0 < shown.distance <= EPS + 1e-6
    with torch.no_grad():
        assert torch.equal(shown.logits, torch.cat([snn(x), snn(expected)]))
        margins = [float(margin(snn(each), y)) for each in (x, expected)]
    assert list(shown.margins) == margins
    assert shown.right and shown.broken == (margins[1] < 0)
    assert shown.views == tuple(dict.fromkeys(TURNS))
    assert shown.classes == dataset.classes


def test_views_take_turns_until_the_image_is_broken(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    index = first_right(snn, dataset)
    x, y = dataset.floats([index]), dataset.labels[[index]]
    attack = parse_attack("pgd3", 1 / 255)
    seen = {}
    for view in ("PCW:1", "rate"):
        x_adv = attack(
            GradientView(snn, view),
            x,
            y,
            seed=noise_seed(0, attack, view),
            ids=torch.tensor([index]),
        )
        with torch.no_grad():
            seen[view] = x_adv, float(margin(snn(x_adv), y))
    assert all(found > 0 for _, found in seen.values())  # so that none ends it
    shown = show(snn, x, eps="1/255", attack="pgd3", views=["PCW:1", "rate"], index=index)
    least = min(seen.values(), key=lambda pair: pair[1])
    assert torch.equal(shown.adversarial, least[0][0])
    assert shown.margins[1] == least[1]


def test_rates_and_spikes_are_those_of_the_nodes(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    shown = show(snn, dataset.floats([0])[0], attack="fgsm")
    outputs: dict[str, list[Tensor]] = {name: [] for name in snn.nodes()}
    handles = [
        node.register_forward_hook(
            lambda node, inputs, output, name=name: outputs[name].append(output)
        )
        for name, node in snn.nodes().items()
    ]
    with torch.no_grad():
        snn(shown.image[None])
        snn(shown.adversarial[None])
    for handle in handles:
        handle.remove()
    assert set(shown.spikes) == set(outputs) and outputs
    for name, (before, after) in outputs.items():
        assert torch.equal(
            shown.spikes[name].float(), torch.stack([before.flatten(1), after.flatten(1)])
        )
        assert shown.rates()[name] == pytest.approx((float(before.mean()), float(after.mean())))


def test_steps_of_spikingjelly_are_put_in_order() -> None:
    """In single-step mode a node is called step by step, and twice in each where it stands at two
    places."""

    class Twice(nn.Module):
        def __init__(self, mode: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = layer.Conv2d(3, 4, 3), layer.Conv2d(4, 4, 3)
            self.node = neuron.IFNode(v_threshold=0.3)
            self.head = layer.Linear(64, 2)
            functional.set_step_mode(self, mode)

        def forward(self, x: Tensor) -> Tensor:
            x = self.node(self.first(x))
            functional.reset_net(self.node)  # of another shape at its second place
            x = self.node(self.second(x))
            functional.reset_net(self.node)
            return self.head(x.flatten(-3))

    image = torch.rand(3, 8, 8)
    shown = {
        mode: show(
            from_spikingjelly(Twice(mode), timesteps=3, mean=[0.5] * 3, std=[0.2] * 3).eval(),
            image,
            attack="fgsm",
            views=["PCW:1"],
            eps=1e-5,
        ).spikes["node"]
        for mode in ("m", "s")
    }
    assert shown["m"].shape == shown["s"].shape == (2, 3, 4 * 36 + 4 * 16)
    assert shown["m"].any() and not shown["m"].all()
    assert torch.equal(shown["m"][:, 0], shown["s"][:, 0])  # later ones integrate in "m" alone


def test_an_image_that_is_wrong_as_it_is_is_left_alone(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    image = dataset.floats([0])[0]
    right = show(snn, image, attack="fgsm").label  # what the network takes it for
    other = dataset.classes[(right + 1) % len(dataset.classes)]
    shown = show(snn, image, other.upper(), classes=dataset.classes)
    assert (shown.right, shown.broken, shown.distance) == (False, False, 0)
    assert shown.margins[0] < 0 and other in shown.summary()
    assert "wrong as it is, not attacked" in shown.summary()
    png(shown.png())


def test_an_ann_has_no_spikes(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    index = first_right(ann, dataset, "2")
    assert dataset.labels[index] == 2
    shown = show(ann, dataset.floats([index])[0], 2, eps=EPS, attack="pgd5", index=index)
    assert (shown.spikes, shown.rates(), shown.views) == ({}, {}, ("exact",))
    width, height = shown.figure().get_size_inches()
    assert png(shown.png()).size == (200 * width, 200 * height)
    content, shown_at = shown._repr_png_()
    assert png(content).width == 1.5 * shown_at["width"]


def test_names_of_others_do_nothing_to_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(1, 2, 3, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        layer.Flatten(step_mode="m"),
        layer.Linear(72, 3, step_mode="m"),
    )
    snn = from_spikingjelly(net, timesteps=6, mean=[0.5], std=[0.2]).eval()
    snn.classes = ("$x^{2$ \x1b[2J\u202e", "模型 🐱 " + "long" * 99, "<b>\n")
    shown = show(snn, torch.rand(1, 8, 8), attack="fgsm")
    assert shown.summary().isprintable() and len(shown.summary()) < 300
    shown.save(tmp_path / "new" / "shown.png", title="$\\frac{ \x1b[2J" + "x" * 999)
    assert png((tmp_path / "new" / "shown.png").read_bytes()).size[0] == 1600
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["shown.png"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": "zebra"}, "the network has no class 'zebra': expected a name, or a number from"),
        ({"label": 4}, "no class 4"),
        ({"label": "9" * 5000}, "no class '999"),
        ({"eps": 2}, "2"),
        ({"attack": "magic"}, "unknown attack 'magic'"),
        ({"views": ["magic"]}, "magic"),
        ({"image": torch.rand(2, 3, 8, 8)}, r"the image is \[2, 3, 8, 8\]: expected one"),
        ({"image": torch.rand(3, 9, 8)}, r"the model cannot take the image, \[3, 9, 8\]"),
        ({"image": torch.rand(3, 8, 8) * 255}, "divide by 255"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(
    snn: SpikingClassifier, dataset: ImageDataset, wrong: dict[str, object], message: str
) -> None:
    given = {"image": dataset.floats([0])[0], "classes": dataset.classes, **wrong}
    with pytest.raises(SJRobustError, match=message):
        show(snn, **given)  # type: ignore[arg-type]


def test_a_class_without_right_images_is_said(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    none = dataset.subset((dataset.labels == 1).nonzero().flatten())
    with pytest.raises(SJRobustError, match="none of the 0 images of '2' of small test rightly"):
        first_right(snn, none, "2")
