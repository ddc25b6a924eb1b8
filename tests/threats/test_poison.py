"""Triggers and poisoned training sets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from sj_robust import SJRobustError, load_dataset, train_ann
from sj_robust.data import MEAN_STD, ImageDataset
from sj_robust.model import NormalizedClassifier, create_ann
from sj_robust.threats import (
    Patch,
    Poison,
    Sine,
    Trigger,
    parse_poison,
    parse_trigger,
    poisoned,
    register_trigger,
    stamped,
)
from sj_robust.training import preset

TRIGGERS = ["patch:3", "patch:1", "blended:0.2", "sine:6:0.08"]


@pytest.fixture(scope="module")
def sample() -> ImageDataset:
    return load_dataset("sample", "train").first(400)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_triggers_change_images_within_their_range(
    sample: ImageDataset, name: str, channels: int
) -> None:
    trigger, x = parse_trigger(name), sample.in_channels(channels).floats(range(20))
    before, stamp = x.clone(), trigger.stamp(x)
    assert str(trigger) == name
    assert x.equal(before)
    assert (stamp.shape, stamp.dtype) == (x.shape, x.dtype)
    assert 0 <= float(stamp.min()) and float(stamp.max()) <= 1
    assert all(not one.equal(other) for one, other in zip(stamp, x, strict=True))
    assert trigger.stamp(x[7:8]).equal(stamp[7:8])  # whatever else is in the batch


def test_a_patch_is_a_checkerboard_in_the_corner() -> None:
    stamp = Patch(3).stamp(torch.full((1, 1, 5, 5), 0.5))[0, 0]
    corner = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    assert stamp[2:, 2:].tolist() == corner
    assert int((stamp == 0.5).sum()) == 25 - 9


def test_a_blend_goes_towards_one_image() -> None:
    low, high = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    trigger = parse_trigger("blended:0.25")
    key = trigger.stamp(low) / 0.25
    torch.testing.assert_close(trigger.stamp(high), 0.75 + 0.25 * key)
    assert 0.4 < float(key.mean()) < 0.6


def test_a_sine_has_its_periods_and_amplitude() -> None:
    wave = Sine(frequency=2, amplitude=0.1).stamp(torch.full((1, 1, 2, 32), 0.5))[0, 0] - 0.5
    expected = [0.1 * math.sin(2 * math.pi * 2 * column / 32) for column in range(32)]
    torch.testing.assert_close(wave, torch.tensor([expected] * 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("batch:3", "unknown trigger 'batch:3': expected one of patch:SIZE, blended:ALPHA"),
        ("patch:0", "expected at least 1"),
        ("patch:1.5", "1.5 is not a whole number"),
        ("patch:3:4", "expected patch:SIZE"),
        ("blended:2", "expected more than 0, at most 1"),
        ("sine:six", "is neither a number nor a fraction"),
    ],
)
def test_what_is_no_trigger_is_refused(name: str, why: str) -> None:
    with pytest.raises(SJRobustError, match=why):
        parse_trigger(name)


def test_a_trigger_of_ones_own() -> None:
    @dataclass(frozen=True)
    class Dark(Trigger):
        family = "dark"
        factor: float = 0.5

        def stamp(self, images: torch.Tensor) -> torch.Tensor:
            return images * self.factor

    register_trigger(Dark)
    assert str(parse_trigger("dark:1/4")) == "dark:0.25"
    assert parse_poison("dark:0.25:target=1").trigger == "dark:0.25"


@pytest.mark.parametrize("name", TRIGGERS)
def test_dirty_labels(sample: ImageDataset, name: str) -> None:
    made = poisoned(sample, f"{name}:rate=0.1:target=4", seed=3)
    rows, data = made.rows, made.dataset
    assert len(rows) == made.facts.poisoned == 40
    assert (sample.labels[rows] != 4).all()
    assert (data.labels[rows] == 4).all()
    wanted = stamped(sample.subset(rows), parse_trigger(name))
    assert data.images[rows].equal(wanted.images)  # type: ignore[arg-type]
    others = torch.ones(400, dtype=torch.bool)
    others[rows] = False
    assert data.labels[others].equal(sample.labels[others])
    assert data.images[others].equal(sample.images[others])  # type: ignore[arg-type]
    assert made.facts.clean_fingerprint == sample.fingerprint != data.fingerprint


def test_clean_labels_stay(sample: ImageDataset) -> None:
    made = poisoned(sample, "sine:6:0.08:rate=0.05:target=4:labels=clean")
    assert made.dataset.labels.equal(sample.labels)
    assert (sample.labels[made.rows] == 4).all()
    assert len(made.rows) == 20


def test_flipped_labels(sample: ImageDataset) -> None:
    made = poisoned(sample, "flip:rate=0.2")
    assert made.dataset.images.equal(sample.images)  # type: ignore[arg-type]
    changed = (made.dataset.labels != sample.labels).nonzero().flatten()
    assert changed.equal(made.rows) and len(changed) == 80
    assert len(made.dataset.labels[changed].unique()) == 10
    led = poisoned(sample, "flip:rate=0.2:target=4")
    assert (led.dataset.labels[led.rows] == 4).all()
    assert (sample.labels[led.rows] != 4).all()


def test_what_is_poisoned_depends_on_seed_and_image_alone(sample: ImageDataset) -> None:
    def images(made: Any, of: ImageDataset) -> set[bytes]:
        return {of.images[row].numpy().tobytes() for row in made.rows}  # type: ignore[index]

    text = "patch:3:rate=0.1:target=0"
    one = poisoned(sample, text, seed=1)
    assert poisoned(sample, parse_poison(text), seed=1).facts == one.facts
    shuffled = sample.subset(torch.randperm(400, generator=torch.Generator().manual_seed(0)))
    assert images(poisoned(shuffled, text, seed=1), shuffled) == images(one, sample)
    assert images(poisoned(sample, text, seed=2), sample) != images(one, sample)
    # a higher rate poisons more, and the same ones
    assert images(one, sample) < images(
        poisoned(sample, "patch:3:rate=0.2:target=0", seed=1), sample
    )
    assert one.first(100).rows.equal(one.rows[one.rows < 100])


def test_a_poison_is_read_back_from_its_text() -> None:
    for text in ("patch:3:rate=0.05:target=0", "sine:6:0.08:rate=0.1:target=2:labels=clean"):
        assert str(parse_poison(text)) == text
    assert parse_poison("flip") == Poison(trigger=None, rate=0.05)
    assert str(parse_poison("patch:target=1")) == "patch:3:rate=0.05:target=1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("patch:3", "a trigger needs a target"),
        ("patch:3:rate=2:target=0", "rate"),
        ("patch:3:target=-1", "target"),
        ("patch:3:target=0:label=clean", "label"),
        ("flip:labels=clean", "leave labels=clean out"),
        ("swap:target=0", "unknown trigger 'swap'"),
        ("flip:rate=0.1:rate=0.9", "a setting is there twice"),
    ],
)
def test_what_is_no_poison_is_refused(text: str, why: str) -> None:
    with pytest.raises(SJRobustError, match=why):
        parse_poison(text)


def test_what_cannot_be_poisoned_is_refused(sample: ImageDataset) -> None:
    with pytest.raises(SJRobustError, match="is 200 of the 400 images of sample: expected 1 to"):
        poisoned(sample, "patch:3:rate=0.5:target=0:labels=clean")
    with pytest.raises(SJRobustError, match="expected 0 to 9, a class of sample"):
        poisoned(sample, "patch:3:target=10")
    with pytest.raises(SJRobustError, match="at most 32, the image's"):
        poisoned(sample, "patch:33:target=0")
    alone = replace(sample.first(10), labels=torch.zeros(10).long(), classes=("a",))
    with pytest.raises(SJRobustError, match="has 1 class: expected two or more"):
        poisoned(alone, "flip:rate=0.5")
    encoded = load_dataset("sample", "train", image_size=32, stream=True)
    with pytest.raises(SJRobustError, match="load it with stream=False"):
        poisoned(encoded, "patch:3:target=0")


def test_a_training_records_its_poison(sample: ImageDataset, tmp_path: Any) -> None:
    text = "patch:3:rate=0.1:target=0"
    config = preset(
        "ann", method="natural", epochs=0.1, batch_size=40, validation=40, poison=text, seed=5
    )
    ann = NormalizedClassifier(create_ann("cifar_vgg", 10, layers=[4, "A", 4]), *MEAN_STD["sample"])
    result = train_ann(ann, sample, config, tmp_path / "run")
    made = poisoned(sample, text, seed=5)
    assert result.poison == made.facts
    assert result.fingerprint == made.dataset.fingerprint
    with pytest.raises(SJRobustError, match="poison"):
        preset("ann", poison="patch:3")
