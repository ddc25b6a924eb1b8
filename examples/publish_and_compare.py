"""Save a network with what was measured, write its card, see what a push would send, and compare it
with another one on a page. Nothing is sent and no network is needed.

    python examples/publish_and_compare.py --out runs/publish
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports; without it push asks the Hub what is there

import sj_robust
from sj_robust.card import write_card
from sj_robust.compare import compare, write_page

ANN, SNN = "resnet20.cifar10_linf_pgd", "resnet20-snn-t4.cifar10_linf_pgd"


def main() -> None:
    parser = argparse.ArgumentParser(description="From a network to its page.")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/publish"))
    options = parser.parse_args()
    test = sj_robust.load_dataset(options.data, "test")

    # Two checkpoints measured alike: the same images, eps and attacks.
    folders = []
    for name, timesteps in ((SNN, 4), (SNN, 2), (ANN, None)):
        model, folder = sj_robust.load(name), options.out / name
        if isinstance(model, sj_robust.SpikingClassifier) and timesteps:
            model.timesteps = timesteps  # the same weights, read after fewer steps
            folder = options.out / name.replace("t4", f"t{timesteps}")
        report = sj_robust.evaluate(
            model,
            test,
            attacks=["pgd10"],
            views=["ASSG"] if timesteps else None,
            eps=["2/255", "8/255"],
            max_images=options.images,
            check_images=0,
        )
        # Config, weights and evaluation; the evaluation has to be of these very weights.
        sj_robust.save(model, folder, report=report)
        print(f"{write_card(folder)}: clean {report.clean}", flush=True)
        folders.append(folder)

    # A push checks the folder as whoever pulls it would: it loads the network, recomputes hashes.
    try:
        sj_robust.push(folders[0], "owner/my-snn", dry_run=True)
    except sj_robust.SJRobustError as error:
        print(error)

    # One table, one self-contained page; what was not measured alike is not ranked.
    comparison = compare(folders)
    print(comparison.to_markdown())
    write_page(comparison, options.out / "comparison.html")
    print(f"page: {options.out / 'comparison.html'}")


if __name__ == "__main__":
    main()
