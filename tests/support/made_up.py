"""Made-up evaluations, so that tests of comparisons do not change where the zoo is measured
again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sj_robust import list_models
from sj_robust.evaluation import Accuracy, Check, Report
from sj_robust.evaluation.protocol import PROTOCOLS
from sj_robust.evaluation.words import BLACK_BOX, EXACT, ROTATION, TRANSFER, verdict

PGD, TRADES, ANN = (
    "resnet20-snn-t4.made_up_pgd",
    "resnet20-snn-t4.made_up_trades",
    "resnet20.made_up",
)
Make = Callable[..., Path]

VIEWS = [f"PCW:{number}" for number in range(1, 20)]
RADII = (2 / 255, 4 / 255, 8 / 255)
SETTINGS = {"protocol": None, "norm": "linf", "restarts": 1, "attacks": ["fgsm", "pgd10"]}
DATASET = {"name": "cifar10", "split": "test", "size": 10_000, "fingerprint": "a" * 64}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a checkpoint folder without weights, with a made-up report; `correct`: images right at
    each eps."""

    def write(
        name: str,
        *,
        kind: str = "snn",
        clean: int = 317,
        correct: tuple[int, ...] = (142, 87, 47),
        eps: tuple[float, ...] = RADII,
        total: int = 500,
        checks: list[Check] | None = None,
        stopped: str | None = None,
        dataset: dict[str, Any] | None = None,
        energy: float | None = None,
        roughness: dict[str, Any] | None = None,
        measured: bool = True,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        source = next(
            entry for entry in list_models() if entry.kind == kind and entry.results
        ).folder
        shutil.copy(source / "config.json", folder)
        if not measured:
            return folder
        content = json.loads((source / "evaluation.json").read_text())
        content["dataset"] |= DATASET | {"evaluated": total} | (dataset or {})
        content["settings"] |= (
            SETTINGS | {"views": VIEWS if kind == "snn" else ["exact"]} | settings
        )
        content |= outcomes(
            kind, clean, correct, eps, content["dataset"]["evaluated"], content["settings"]
        )
        tried = content["settings"]["attacks"], content["settings"]["views"]
        content |= {
            "checks": [check.model_dump() for check in checks or []],
            "stopped": stopped,
            "verdict": verdict(checks, *tried, stopped is None) if checks else None,
        }
        content["roughness"] = roughness
        content["energy"] = None if energy is None else cost(kind, energy)
        (folder / "evaluation.json").write_text(
            Report.model_validate_json(json.dumps(content)).to_json()
        )
        return folder

    return write


def runs_of(kind: str, settings: dict[str, Any]) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Its attacks with their views and settings: those of the protocol that the settings name where
    there is one of that version, whose attacks and views become the settings'."""
    protocol = {str(one): one for one in PROTOCOLS.values()}.get(settings["protocol"])
    if protocol is None:
        return [(attack, settings["views"], {}) for attack in settings["attacks"]]
    runs: list[tuple[str, list[str], dict[str, Any]]] = []
    for stage in protocol.stages:
        if not stage.suits(spiking=kind == "snn"):
            continue
        attack, views = str(stage.attack), [view for view in stage.views if view != TRANSFER]
        if protocol.name == "autoattack" and views:
            views = [view for view in settings["views"] if view != BLACK_BOX]
        if not views:
            runs.append((attack, [BLACK_BOX], {}))
        elif kind == "ann":
            runs.append((attack, [EXACT], {}))
        elif attack.startswith("rotating"):
            runs.append((attack, [ROTATION], {"sources": views}))
        else:
            runs.append((attack, views, {}))
    settings["attacks"] = [attack for attack, *_ in runs]
    taken = [view for _, views, own in runs for view in own.get("sources", views)]
    settings["views"] = list(dict.fromkeys(taken))
    return runs


def outcomes(
    kind: str,
    clean: int,
    correct: tuple[int, ...],
    eps: tuple[float, ...],
    total: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What a report says of `total` images, the first `clean` of which are right; the first attack
    and view break all that are broken."""
    runs, clean = runs_of(kind, settings), max([clean, *correct])
    first = [
        next((at for at, right in enumerate(correct) if image >= right), len(eps))
        for image in range(clean)
    ]
    joint, robust, broken_by = [], [], []
    for at, (radius, right) in enumerate(zip(eps, correct, strict=True)):
        before = correct[at - 1] if at else clean
        joint.append(
            {
                "eps": radius,
                "accuracy": Accuracy.of(right, total).model_dump(),
                "carried": clean - before,
            }
        )
        by = f"{runs[0][0]} {runs[0][1][0]}"
        broken_by.append(
            [by if image < clean and first[image] <= at else None for image in range(total)]
        )
        for number, (attack, views, own) in enumerate(runs):
            idle = {"attempted": right, "broken": 0, "alone": None}
            per_view = dict.fromkeys(views, idle)
            if number == 0:
                per_view[views[0]] = {"attempted": before, "broken": before - right, "alone": None}
            robust.append(
                {
                    "eps": radius,
                    "attack": attack,
                    "settings": own,
                    "per_view": per_view,
                    "alone": None,
                    "joint": Accuracy.of(right, total).model_dump(),
                }
            )
    settings["eps"] = list(eps)
    predicted = [0] * clean + [1] * (total - clean)
    return {
        "clean": Accuracy.of(clean, total).model_dump(),
        "joint": joint,
        "robust": robust,
        "per_image": {"label": [0] * total, "predicted": predicted, "broken_by": broken_by},
    }


def cost(kind: str, energy: float) -> dict[str, Any]:
    """The operations of an inference of `energy` µJ."""
    mac, ac, of_ann = 4.6, 0.9, 186.5
    macs = min(4e5, energy * 1e6 / mac) if kind == "snn" else energy * 1e6 / mac
    beside = (
        {"ann_macs": of_ann * 1e6 / mac, "ann_microjoules": of_ann}
        if kind == "snn"
        else {"ann_macs": None, "ann_microjoules": None}
    )
    return {
        "images": 64,
        "acs": max(0.0, energy * 1e6 - macs * mac) / ac if kind == "snn" else 0.0,
        "macs": macs,
        "microjoules": energy,
        "picojoules": {"MAC": mac, "AC": ac},
        **beside,
    }


@pytest.fixture
def three(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders PGD and TRADES, alike, and ANN, in the current folder."""
    make(PGD, clean=341, correct=(182, 125, 56), energy=30.3)
    make(TRADES, energy=28.04)
    make(ANN, kind="ann", clean=406, correct=(333, 234, 88), energy=186.5)
    monkeypatch.chdir(tmp_path)


def check(name: str, status: Any) -> Check:
    return Check(name=name, status=status, found=f"{name} found", numbers={})
