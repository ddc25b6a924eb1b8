"""Which training attack pays: methods of finetuning on equal time, compared on held-out TRAINING
images.

    OMP_NUM_THREADS=1 python scripts/finetuning_methods.py --data PATH_OF_CIFAR10 --snn
    runs/zoo-t4/converted --out runs/methods

`--snn` is a converted network (sj-robust convert). Every method gets the number of images that
takes it about as long as the others; 500 training images are held out, the first 300 of them
measured: FGSM and PGD-7 through four views. The test split is not touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import sj_robust
from sj_robust.training import finetune, preset

HELD_OUT = 500
METHODS: dict[str, tuple[int, dict[str, Any]]] = {  # images and settings
    "PGD, one step": (6000, {"method": "pgd"}),
    "TRADES-RFGSM on the cross-entropy": (3500, {"method": "trades-rfgsm", "attack_loss": "ce"}),
    "TRADES-RFGSM on the KL": (3500, {"method": "trades-rfgsm"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or cifar10")
    parser.add_argument("--snn", required=True, help="checkpoint folder of the converted network")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    data = sj_robust.load_dataset(options.data, "train")
    held_out = data.split_off(HELD_OUT, 0)[1]
    print(
        "| method | images | time | clean | 2/255 | 4/255 | 8/255 |\n|---|---|---|---|---|---|---|"
    )
    for name, (images, changes) in METHODS.items():
        snn = sj_robust.load(options.snn)
        config = preset(
            "finetune",
            epochs=images / (len(data) - HELD_OUT),
            validation=HELD_OUT,
            validate_every=100,
            **changes,
        )
        result = finetune(snn, data, config, options.out / name.replace(" ", "-"), resume=True)
        report = sj_robust.evaluate(
            snn,
            held_out,
            eps=[2 / 255, 4 / 255, 8 / 255],
            attacks=["fgsm", "pgd7"],
            views=["PCW:1", "PCW:0.25", "PCW:2", "activation"],
            max_images=300,
            check_images=0,
        )
        robust = " | ".join(str(joint.accuracy) for joint in report.joint)
        print(
            f"| {name} | {images} | {result.seconds:.0f} s | {report.clean} | {robust} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
