"""Make the zoo's models from their recipes, one after the other; what a run has finished is kept,
so that it can be stopped at any time.

    python scripts/train_zoo.py --data PATH_OF_CIFAR10                 # every recipe in zoo/recipes
    python scripts/train_zoo.py --data PATH_OF_CIFAR10 resnet20-snn-t4.cifar10_linf_pgd

The finished ones enter the zoo with their cards (scripts/add_to_zoo.py). Recipes of another data
set than --data are passed over, and on a CPU those that finetune for more than ten epochs, unless
they are named.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import add_to_zoo

from sj_robust.data import load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.recipes.run import run
from sj_robust.recipes.spec import read_recipe

RECIPES = Path(__file__).parent.parent / "zoo" / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="recipes by name; default: all")
    parser.add_argument("--data", required=True, help="a named data set or its path")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    options = parser.parse_args()
    print("| model | outcome | seconds |", flush=True)
    for path in sorted(RECIPES.glob("*.yaml")):
        if options.names and path.stem not in options.names:
            continue
        started = time.monotonic()
        try:
            recipe = read_recipe(path)
            found = load_dataset(options.data, "test").name
            if found != recipe.dataset:
                outcome = f"passed over: made for {recipe.dataset}, --data is {found}"
            elif (
                options.device == "cpu"
                and not options.names
                and recipe.finetune
                and recipe.finetune.epochs > 10
            ):
                outcome = (
                    f"passed over: {recipe.finetune.epochs:g} epochs of finetuning want a GPU, name"
                    " it to run it here"
                )
            else:
                result = run(
                    recipe, options.out / path.stem, data=options.data, device=options.device
                )
                add_to_zoo.main(options.out / path.stem)
                outcome = f"clean {result.snn_report.clean}, " + ", ".join(
                    str(joint.accuracy) for joint in result.snn_report.joint
                )
        except SJRobustError as error:
            outcome = f"failed: {error}"
        print(f"| {path.stem} | {outcome} | {time.monotonic() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main()
