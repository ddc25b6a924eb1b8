"""What a report's survivors lose to ten times the budget, or to another protocol: whether its
figures are those of the network.

    python scripts/on_survivors.py CHECKPOINT --data cifar10 [--transfer ANN] [--images 200]
    python scripts/on_survivors.py CHECKPOINT --data cifar10 --protocol autoattack --eps 8/255

Of the first images, those that the report left standing at an eps are attacked again there, with
other random numbers. Without --protocol it is the report's own, where every attack gets three times
the steps and three times the attempts, Square ten times the queries, rounds ten times their number.
One row per eps. The other protocol's own figure on all images is at least what both leave.
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
from sj_robust.budget import radius
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
    parser.add_argument("--protocol", help="another one, in place of ten times the budget")
    parser.add_argument("--eps", nargs="+", help="of those of the report; default all")
    parser.add_argument("--journals", type=Path, help="a folder that keeps what is done")
    parser.add_argument(
        "--report", default="evaluation.json", help="a file of the checkpoint's folder"
    )
    options = parser.parse_args()
    try:
        report = Report.from_json((options.checkpoint / options.report).read_text(encoding="utf-8"))
        model, dataset = load(options.checkpoint), load_dataset(options.data, "test")
        norm: Norm = "l2" if report.settings.norm == "l2" else "linf"
        own = find_protocol(report.settings.protocol or "")
        protocol = find_protocol(options.protocol) if options.protocol else scaled(own, norm)
        radii = [radius(eps, norm) for eps in options.eps or ()]
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
        what = options.protocol or "ten times the budget"
        print(f"{options.checkpoint.name}, first {options.images} images, {own}\n")
        print(
            f"| eps | standing | standing after {what} | points lost |\n| --- | --- | --- | --- |"
        )
        for joint in report.joint:
            if radii and not any(abs(eps - joint.eps) < 1e-9 for eps in radii):
                continue
            place = f"{options.checkpoint.name}.{protocol}.{round(255 * joint.eps, 6)}.partial"
            journal = options.journals / place if options.journals else None
            outcome = survived(report, joint.eps) or []
            standing = [image for image, left in enumerate(outcome[: options.images]) if left]
            again = (
                measure(dataset.subset(standing), eps=joint.eps, journal=journal)
                .joint[0]
                .accuracy.correct
                if standing
                else 0
            )
            lost = 100 * (len(standing) - again) / options.images
            print(f"| {eps_name(joint.eps)} | {len(standing)} | {again} | {lost:.1f} |", flush=True)
    except (SJRobustError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
