"""An attacker who has to write a file: what the evaluation counts as broken is broken by the PNG
too."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sj_robust.attack import APGD, PGD, Square
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Report, evaluate
from sj_robust.evaluation.grid import on_grid, to_grid
from sj_robust.model import SpikingClassifier

KEPT: dict[tuple[str, int], Tensor] = {}  # what attacks returned, by attack and image


class Keeping:
    """An attack whose images are kept."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, **rest: Any) -> Tensor:
        x_adv: Tensor = super().__call__(model, x, y, **rest)  # type: ignore[misc]
        KEPT.update(
            {(self.name, int(image)): one for image, one in zip(rest["ids"], x_adv, strict=True)}
        )  # type: ignore[attr-defined]
        return x_adv


class KeepingPGD(Keeping, PGD): ...


class KeepingAPGD(Keeping, APGD): ...


class KeepingSquare(Keeping, Square): ...


ATTACKS = [
    partial(KeepingSquare, queries=40),
    partial(KeepingPGD, steps=8),
    partial(KeepingAPGD, steps=8),
]


def as_png(image: Tensor) -> Tensor:
    """uint8 [C, H, W] from a file of what `image` float32 [C, H, W] holds."""
    file = io.BytesIO()
    Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "png")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def test_a_success_is_one_after_a_round_trip_through_a_file(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    KEPT.clear()
    settings: dict[str, Any] = dict(attacks=ATTACKS, views=["PCW:1"], max_images=48, check_images=0)
    report = evaluate(snn, dataset, eps=[2.5 / 255, 9.9 / 255], grid="8bit", **settings)
    assert report.settings.eps == [2 / 255, 9 / 255]
    levels, broken = 9, report.per_image.broken_by[1]
    fallen = [
        (by.split()[0], image)
        for image, by in enumerate(broken)
        if by and report.per_image.broken_by[0][image] is None
    ]
    assert len(fallen) > 5
    files = torch.stack([as_png(KEPT[key]) for key in fallen])
    numbers = [image for _, image in fallen]
    assert int((files.int() - dataset.images[numbers].int()).abs().max()) <= levels
    stored = replace(dataset, images=files, labels=dataset.labels[numbers])
    with torch.no_grad():
        assert bool((snn(stored.floats()).argmax(1) != stored.labels).all())
    assert Report.from_json(report.to_json()) == report
    assert "adversarial images of 8 bits" in report.summary()
    assert any("256 values" in limit for limit in report.limits)


def test_models_see_the_grid_and_gradients_pass(snn: SpikingClassifier) -> None:
    seen: list[Tensor] = []

    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return (x * x).flatten(1).sum(1, keepdim=True)

    model, x = Squares(), torch.rand(4, 3, 5, 5).requires_grad_()
    with on_grid([model]):
        model(x).sum().backward()
        model(x.detach())
    every = torch.arange(256, dtype=torch.uint8).float().div_(255)  # as data sets make them
    assert all(bool(torch.isin(images, every).all()) for images in seen)
    assert torch.equal(x.grad, 2 * seen[0])
    assert torch.equal(to_grid(every), every)
    model(x)
    assert torch.equal(seen[-1], x)  # only while the block runs


def test_it_is_part_of_what_an_evaluation_is(
    snn: SpikingClassifier, dataset: ImageDataset, tmp_path: Path
) -> None:
    settings: dict[str, Any] = dict(
        attacks=["pgd2"], views=["PCW:1"], eps=4 / 255, max_images=12, check_images=0
    )
    plain = evaluate(snn, dataset, **settings, journal=tmp_path / "notes", roughness_images=12)
    assert plain.settings.grid is None
    with pytest.raises(SJRobustError, match=r"another evaluation has done \(not the same: grid"):
        evaluate(snn, dataset, **settings, journal=tmp_path / "notes", grid="8bit")
    gridded = evaluate(snn, dataset, **settings, grid="8bit", roughness_images=12)
    assert gridded.roughness == plain.roughness  # random points are not rounded
    with pytest.raises(SJRobustError, match=r"of another evaluation \(not the same: grid\)"):
        evaluate(snn, dataset, **settings, extend=gridded)
    with pytest.raises(SJRobustError, match="would lose what roughness_images found"):
        evaluate(snn, dataset, **settings, grid="8bit", extend=gridded)
    same = evaluate(snn, dataset, **settings, grid="8bit", extend=gridded, roughness_images=12)
    assert same is gridded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": "16bit"}, "grid is '16bit': expected 8bit"),
        ({"grid": "8bit", "norm": "l2"}, "a grid of 8 bits is for linf, not l2"),
        ({"grid": "8bit", "eps": 0.5 / 255}, "no other image is so near, expected at least 1/255"),
    ],
)
def test_what_has_no_grid_is_refused(
    snn: SpikingClassifier, dataset: ImageDataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        evaluate(
            snn, dataset, **{"attacks": ["pgd2"], "eps": 4 / 255, "check_images": 0, **settings}
        )
