"""Made-up evaluations, so that tests of comparisons do not change where the zoo is measured again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sj_robust.evaluate import Accuracy, Check, Report
from sj_robust.evaluate.checks import verdict
from sj_robust.hub import list_models

PGD, TRADES, ANN = "resnet20-snn-t4.made_up_pgd", "resnet20-snn-t4.made_up_trades", "resnet20.made_up"
Make = Callable[..., Path]

VIEWS = [f"PCW:{number}" for number in range(1, 20)]
RADII = (2 / 255, 4 / 255, 8 / 255)
SETTINGS = {"protocol": None, "norm": "linf", "restarts": 1, "attacks": ["fgsm", "pgd10"]}
ANN_MACS = 40_551_040
DATASET = {"name": "cifar10", "split": "test", "size": 10_000, "fingerprint": "a" * 64}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a checkpoint folder without weights, with a made-up report; `correct`: images right at each eps."""

    def write(name: str, *, kind: str = "snn", clean: int = 317, correct: tuple[int, ...] = (142, 87, 47), eps: tuple[float, ...] = RADII,
              total: int = 500, checks: list[Check] | None = None, stopped: str | None = None, dataset: dict[str, Any] | None = None,
              energy: float | None = None, measured: bool = True, **settings: Any) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        source = next(entry for entry in list_models() if entry.kind == kind and entry.results).folder
        shutil.copy(source / "config.json", folder)
        if not measured:
            return folder
        content = json.loads((source / "evaluation.json").read_text())
        content["dataset"] |= DATASET | {"evaluated": total} | (dataset or {})
        content["settings"] |= SETTINGS | {"views": VIEWS if kind == "snn" else ["exact"]} | settings
        content |= {"checks": [check.model_dump() for check in checks or []], "stopped": stopped,
                    "verdict": verdict(checks, stopped is None) if checks else None}
        content["clean"] = Accuracy.of(clean, total).model_dump()
        content["joint"] = [{"eps": radius, "accuracy": Accuracy.of(right, total).model_dump(), "carried": 0}
                            for radius, right in zip(eps, correct, strict=True)]
        beside = {"ann_macs": ANN_MACS, "ann_microjoules": 186.5} if kind == "snn" else {"ann_macs": None, "ann_microjoules": None}
        content["energy"] = None if energy is None else {
            "images": 64, "acs": 3e7, "macs": 4e5, "microjoules": energy, "picojoules": {"MAC": 4.6, "AC": 0.9}, **beside}
        (folder / "evaluation.json").write_text(Report.model_validate_json(json.dumps(content)).to_json())
        return folder

    return write


@pytest.fixture
def three(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders PGD and TRADES, alike, and ANN, in the current folder."""
    make(PGD, clean=341, correct=(182, 125, 56), energy=30.3)
    make(TRADES, energy=28.04)
    make(ANN, kind="ann", clean=406, correct=(333, 234, 88), energy=186.5)
    monkeypatch.chdir(tmp_path)


def check(name: str, status: Any) -> Check:
    return Check(name=name, status=status, found=f"{name} found", numbers={})
