"""What a report's survivors lose to the same protocol with ten times the budget: whether its
figures are those of the network.

    python scripts/ten_times.py CHECKPOINT --data cifar10 [--transfer ANN] [--images 200]

Of the first images, those that the report left standing at an eps are attacked again there, with
other random numbers: every attack gets three times the steps and three times the attempts, Square
ten times the queries, rounds ten times their number. One row per eps.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from compare_protocols import survived

from sj_robust import load
from sj_robust.attack import Attack, Norm, Rounds, parse_attack
from sj_robust.data import load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import Protocol, Report, Stage, eps_name, evaluate
from sj_robust.evaluation.protocol import find_protocol

STEPS = ATTEMPTS = 3
QUERIES = ROUNDS = 10


def scaled(protocol: Protocol, norm: Norm) -> Protocol:
    """Every stage of `protocol` with about ten times its budget."""

    def larger(stage: Stage) -> Stage:
        assert isinstance(stage.attack, str)
        attack = parse_attack(stage.attack, 0.1, norm)
        if isinstance(attack, Rounds):
            return replace(stage, restarts=stage.restarts * ROUNDS)
        more = {
            name: getattr(attack, name) * factor
            for name, factor in (("steps", STEPS), ("queries", QUERIES))
            if hasattr(attack, name)
        }

        def make(eps: float, name: str = stage.attack) -> Attack:
            return replace(parse_attack(name, eps, norm), **more)

        attempts = ATTEMPTS if attack.starts_at_random and not attack.black_box else 1
        return replace(stage, attack=make, restarts=stage.restarts * attempts)

    return Protocol(
        f"{protocol.name}-x10",
        protocol.version,
        tuple(map(larger, protocol.stages)),
        protocol.about,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--transfer", help="the ANN whose gradients the report used")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "--report", default="evaluation.json", help="a file of the checkpoint's folder"
    )
    options = parser.parse_args()
    try:
        report = Report.from_json((options.checkpoint / options.report).read_text(encoding="utf-8"))
        model, dataset = load(options.checkpoint), load_dataset(options.data, "test")
        norm: Norm = "l2" if report.settings.norm == "l2" else "linf"
        protocol = scaled(find_protocol(report.settings.protocol or ""), norm)
        measure = partial(
            evaluate,
            model,
            protocol=protocol,
            norm=norm,
            check_images=0,
            batch_size=64,
            seed=1,
            transfer={"ann": load(options.transfer)} if options.transfer else None,
        )
        print(f"{options.checkpoint.name}, first {options.images} images\n")
        print(
            "| eps | standing | standing after ten times the budget | points lost |\n"
            "| --- | --- | --- | --- |"
        )
        for joint in report.joint:
            outcome = survived(report, joint.eps) or []
            standing = [image for image, left in enumerate(outcome[: options.images]) if left]
            again = (
                measure(dataset.subset(standing), eps=joint.eps).joint[0].accuracy.correct
                if standing
                else 0
            )
            lost = 100 * (len(standing) - again) / options.images
            print(f"| {eps_name(joint.eps)} | {len(standing)} | {again} | {lost:.1f} |", flush=True)
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
