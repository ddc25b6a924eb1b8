"""The main job in minutes: a robust ANN becomes a measured robust SNN, on embedded images alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from sj_robust.evaluation import Report, eps_name
from sj_robust.recipes.run import RunResult, run
from sj_robust.recipes.spec import Recipe, make_recipe

ANN = "vgg6.cifar10_linf_trades_eps8"
NAME = "vgg6-snn-t4.sample_linf_pgd_eps8"


def demo_recipe(ann: str = ANN, *, seed: int = 0) -> Recipe:
    """The demo as a recipe: small enough for 4 minutes on 2 cores, so few calibration images, one
    epoch of 29 steps, few views."""
    return make_recipe(
        {
            "name": NAME,
            "dataset": "sample",
            "seed": seed,
            "ann": {"checkpoint": ann},
            "convert": {
                "timesteps": 4,
                "reset": "soft",
                "scale": 0.5,
                "calibration_timesteps": 32,
                "batches": 4,
                "batch_size": 32,
            },
            "finetune": {
                "preset": "default",
                "eps": "8/255",
                "attack_steps": 1,
                "lr": 0.01,
                "schedule": "onecycle",
                "epochs": 1,
                "validation": 100,
                "validate_every": 1,
            },
            "evaluate": {
                "eps": ["2/255", "4/255", "8/255"],
                "attacks": ["fgsm", "pgd10"],
                "views": ["PCW:1", "activation", "rate"],
                "max_images": 64,
                "batch_size": 64,
                "check_images": 0,
                "converted": True,
            },
        },
        "demo",
    )


def demo(
    folder: str | os.PathLike[str] = "runs/demo",
    *,
    ann: str = ANN,
    seed: int = 0,
    device: Any = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run the demo recipe in `folder` (finished stages are kept). `ann`: a zoo name or the
    checkpoint folder of a CIFAR-10 ANN."""
    return run(demo_recipe(ann, seed=seed), Path(folder), device=device, say=say)


def table(result: RunResult) -> Table:
    """Clean and robust accuracy of ANN, converted and finetuned SNN with their Wilson 95 %
    intervals."""
    rows = {
        "robust ANN": result.ann_report,
        "SNN as converted": result.converted_report,
        "SNN finetuned": result.snn_report,
    }
    found = Table(title="accuracy, [95 % interval]", title_justify="left")
    for column in (
        "",
        "clean",
        *(f"eps {eps_name(joint.eps)}" for joint in result.snn_report.joint),
    ):
        found.add_column(column, no_wrap=True)
    for name, report in rows.items():
        if report is not None:
            found.add_row(
                name,
                str(report.clean).replace("[", r"\["),
                *(str(joint.accuracy).replace("[", r"\[") for joint in report.joint),
            )
    return found


def explain(report: Report) -> str:
    """What the table's numbers are and are not."""
    settings = report.settings
    return (
        f"{report.dataset.evaluated} test images of the embedded sample of CIFAR-10; an image"
        f" counts as robust only if it survives {' and '.join(settings.attacks)} through each of"
        f" {len(settings.views)} gradient views ({', '.join(settings.views)}). So few images leave"
        " wide intervals, and one short finetuning is a demonstration, not the method at its best:"
        " `sj-robust list` has the models trained and measured at length."
    )
