"""What a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sj_robust import SJRobustError
from sj_robust.recipes.run import run
from sj_robust.recipes.spec import make_recipe


def fields(**parts: Any) -> dict[str, Any]:
    ann = {"architecture": "cifar_resnet20", "scratch": True}
    return {"name": "any", "dataset": "sample", "ann": ann, **parts}


def test_radii_under_l2_may_exceed_1(tmp_path: Path) -> None:
    recipe = make_recipe(fields(evaluate={"norm": "l2", "eps": [2.0], "max_images": 10**6}))
    with pytest.raises(SJRobustError, match="images"):  # and not the radius
        run(recipe, tmp_path / "run")
    with pytest.raises(SJRobustError, match="write 2/255, not 2"):
        make_recipe(fields(evaluate={"eps": [2.0]}))


def test_a_wrong_setting_is_named_with_its_place() -> None:
    for convert, message in (
        ({"surrogate": "FOO"}, "convert.surrogate: unknown surrogate 'FOO'"),
        ({"scale": 20}, "convert.scale: expected auto or a number above 0, at most 10, not 20"),
        ({"reset": "none"}, "convert.reset: .*'hard' or 'soft'.*'none'"),
    ):
        with pytest.raises(SJRobustError, match=message):
            make_recipe(fields(convert=convert))


def test_null_is_the_default_pooling() -> None:
    assert make_recipe(fields(convert={"pooling": None})).convert.pooling == "max"
