"""Roughness: how many right images random points change, of the model and of the others beside
it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Report, evaluate
from sj_robust.model import SpikingClassifier


class Step(nn.Module):
    """Right, unless the mean of the first row lies `margin` above what it is at the images given,
    of the mean 0.5."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(margin))

    def forward(self, x: Tensor) -> Tensor:
        above = x[:, 0, 0, :1].mean(1) - 0.5 - self.margin
        return torch.stack([-above, above], 1)


@pytest.fixture(scope="module")
def even() -> ImageDataset:
    """Twelve images of one value, 127/255, whose class is 0."""
    images = torch.full((12, 3, 4, 4), 127, dtype=torch.uint8)
    return ImageDataset(images, torch.zeros(12, dtype=torch.int64), ("low", "high"), "even", "test")


def measured(model: nn.Module, data: ImageDataset, images: int = 8, **settings: object) -> Report:
    return evaluate(
        model,
        data,
        attacks=["pgd2"],
        eps=8 / 255,
        check_images=0,
        roughness_images=images,
        **settings,
    )  # type: ignore[arg-type]


def test_points_within_each_radius_are_told_apart(even: ImageDataset) -> None:
    # the value is 0.5 - 0.5/255: half a level below the step or more, which one point of a hundred
    # reaches within 1/255
    near, far, never = (measured(Step(margin / 255), even).roughness for margin in (0.0, 4.0, 9.0))
    assert near and far and never
    assert [found.changed for found in near.model] == [8, 8]
    assert [found.changed for found in far.model] == [0, 8]
    assert [found.changed for found in never.model] == [0, 0]
    assert [found.eps for found in near.model] == [1 / 255, 8 / 255]
    assert (near.points, near.model[0].images, near.others) == (100, 8, {})


def test_it_depends_on_seed_and_image_alone(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    whole = measured(snn, dataset, 40, views=["PCW:1"]).roughness
    assert whole and 0 < whole.model[1].changed < 40
    assert measured(snn, dataset, 40, views=["PCW:1"], batch_size=7).roughness == whole
    first = measured(snn, dataset, 20, views=["PCW:1"]).roughness
    assert (
        first and first.model[1].images == 20 and first.model[1].changed <= whole.model[1].changed
    )


def test_the_models_to_transfer_from_stand_beside_it(even: ImageDataset) -> None:
    # of the first 8 right ones there are 6
    wrong = replace(even, labels=torch.tensor([0] * 6 + [1] * 6))
    report = measured(
        Step(4 / 255), wrong, transfer={"smooth": Step(9 / 255), "mistaken": Step(-9 / 255)}
    )
    assert report.roughness is not None
    assert [found.images for found in report.roughness.model] == [6, 6]
    assert {
        name: [found.changed for found in several]
        for name, several in report.roughness.others.items()
    } == {"smooth": [0, 0]}
    assert Report.from_json(report.to_json()) == report
    lines = [line for line in report.summary().splitlines() if line.startswith("roughness")]
    assert lines == [
        (
            "roughness  0.0 % [0.0, 39.0] within 1/255; 100.0 % [61.0, 100.0] within 8/255 "
            "(one of 100 random points changes the class; 6 images)"
        ),
        (
            "roughness  of smooth: 0.0 % [0.0, 39.0] within 1/255; 0.0 % [0.0, 39.0] within 8/255 "
            "(one of 100 random points changes the class; 6 images)"
        ),
    ]
    for place, value in (
        (("model", 0, "changed"), 3),
        (("model", 0, "images"), 7),
        (("model", 1, "low"), 0.0),
        (("model", 1, "eps"), 0.001),
        (("others", "smooth", 0, "value"), 0.5),
        (("model",), []),
        (("others",), {"other": []}),
        (("points",), 0),
    ):
        content = json.loads(report.to_json())
        inner = content["roughness"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with pytest.raises(SJRobustError, match="contradicts itself"):
            Report.from_json(json.dumps(content))


def test_by_default_protocols_have_it_and_attacks_by_name_do_not(even: ImageDataset) -> None:
    model = Step(9 / 255)
    quick = evaluate(model, even, protocol="quick", eps=8 / 255, check_images=0)
    assert quick.roughness is not None and quick.roughness.model[0].images == 12
    named = evaluate(model, even, attacks=["pgd2"], eps=8 / 255, check_images=0)
    assert named.roughness is None and "roughness" not in named.summary()
    with pytest.raises(SJRobustError, match="roughness_images is -1: expected at least 0"):
        measured(model, even, -1)
