"""A robust WRN-16-4 and its spiking network, in the time there is: a short run says how many images
a second are trained on, and with that the schedules end when they have to."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tally import BEGAN, Tally, main

from sj_robust import evaluate, load, load_dataset
from sj_robust.files import write_atomic
from sj_robust.recipes.network import open_ann
from sj_robust.recipes.spec import AnnSettings, CalibratedConversion
from sj_robust.recipes.steps import make_ann, make_converted, make_finetuned
from sj_robust.training import finetune, preset, train_ann
from sj_robust.training.log import read_log
from sj_robust.training.state import exists, load_state

EPS = 8 / 255
SAFE = 0.85  # of the time: saving, drawing and a slow start take some
AT_END = 40  # seconds for the conversion and the measurement


def train(tally: Tally, arguments: argparse.Namespace) -> None:
    end, quick, work = BEGAN + arguments.seconds, arguments.quick, arguments.work
    device = arguments.device
    data, test = (load_dataset(arguments.data, split) for split in ("train", "test"))  # type: ignore[arg-type]
    architecture, steps = ("cifar_resnet20", 2) if quick else ("cifar_wrn16_4", 8)
    if quick:
        data, test = data.first(240), test.first(8)
    common = dict(
        eps=EPS,
        precision="float32" if quick else "bf16",  # CPUs take long for bf16
        checkpoint_minutes=0.75,
        validation=10 if quick else 1000,
        validation_steps=1 if quick else 5,
        log_every=1 if quick else 10,
    )
    ann_config = preset("ann", batch_size=16 if quick else 256, lr=0.1, **common)
    snn_config = preset("finetune", batch_size=16 if quick else 128, lr=0.03, **common)
    settings = AnnSettings(architecture=architecture, train=ann_config)
    tally.keep(images=len(data), fingerprint=data.fingerprint)

    def left() -> float:
        return end - time.monotonic() - (2 if quick else AT_END)

    def planned(name: str, config: Any, run: Callable[..., Any], share: float) -> Any:
        """`config` with as many epochs as that share of the time left allows; or that of the run
        that is gone on with."""
        if exists(state := work / f"{name}.training"):
            return load_state(state)[0].config
        probe = config.model_copy(
            update={"epochs": config.batch_size * (3 if quick else 60) / len(data)}
        )
        folder = work / "probe"
        shutil.rmtree(folder, ignore_errors=True)
        run(probe, folder)
        rate, validating = measured(folder, config.batch_size)
        seconds = max(1.0, SAFE * share * left() - 6 * validating)
        epochs = max(
            config.batch_size / len(data), seconds * rate / (len(data) - config.validation)
        )
        epochs = min(epochs, 0.15) if quick else epochs
        facts = {
            "images a second": round(rate),
            "seconds of a validation": validating,
            "epochs": epochs,
        }
        tally.keep(**{name: facts})
        return config.model_copy(update={"epochs": epochs, "validate_every": epochs / 5})

    def fresh() -> Any:
        return open_ann(settings, data, seed=0)

    done = work / "ann"
    if not (done / "config.json").is_file():
        config = planned(
            "ann", ann_config, lambda c, f: train_ann(fresh(), data, c, f, device=device), 0.5
        )
        with_training = settings.model_copy(update={"train": config})
        result = make_ann(fresh(), with_training, data, done, device=device, resume=True)
        tally.keep(ann_trained=result and result.model_dump(mode="json", exclude={"config"}))
    conversion = CalibratedConversion(
        timesteps=steps,
        batches=1 if quick else 8,
        batch_size=8 if quick else 16,
        calibration_timesteps=4 if quick else 50,
    )
    snn = make_converted(load(done), conversion, data, work / "converted", device=device)  # type: ignore[arg-type]
    if left() > (1 if quick else 30):
        config = planned(
            "snn",
            snn_config,
            lambda c, f: finetune(load(work / "converted"), data, c, f, device=device),  # type: ignore[arg-type]
            1.0,
        )
        result = make_finetuned(snn, config, data, work / "snn", device=device, resume=True)
        tally.keep(snn_trained=result.model_dump(mode="json", exclude={"config"}))
    for name in ("snn", "ann", "converted"):
        remaining = end - time.monotonic() - 3
        if (work / name / "config.json").is_file() and remaining > 5:
            measure(tally, name, work, test, device, remaining / 2)


def measured(folder: Path, batch: int) -> tuple[float, float]:
    """Images a second after the first lines of the log, which have the start in them; seconds of
    the last validation."""
    lines = read_log(folder)
    steps = [line for line in lines if line["event"] == "train"]
    first, last = steps[min(2, len(steps) - 2)], steps[-1]
    rate = (last["step"] - first["step"]) * batch / max(1e-3, last["seconds"] - first["seconds"])
    return rate, round(lines[-1]["seconds"] - last["seconds"], 2)


def measure(tally: Tally, name: str, work: Path, test: Any, device: str, limit: float) -> None:
    try:
        report = evaluate(
            load(work / name),
            test,
            attacks=("pgd10",),
            views=None if name == "ann" else ("PCW:1", "ASSG"),
            eps=EPS,
            check_images=0,
            time_limit=limit,
            batch_size=250,
            device=device,
        )
    except Exception as error:  # of one network: the others are measured
        tally.keep(**{f"{name} measured": f"{type(error).__name__}: {error}"[:500]})
        return
    write_atomic(work / f"{name}.evaluation.json", report.to_json())
    tally.keep(**{f"{name} measured": report.summary().splitlines()[:12]})


if __name__ == "__main__":
    main({"train": train}, __doc__)
