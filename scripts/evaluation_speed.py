"""What regrouping survivors and the fused node save: a PGD-10 evaluation through 17 surrogates,
done both ways in one process.

    OMP_NUM_THREADS=1 python scripts/evaluation_speed.py --images 32

The plain way attacks every image that is right as it is through every view, batch by batch, with a
node written as a loop over time and the network repeated T times; ours is `sj_robust.evaluate`.
Same weights, images, eps, attack and views (the 19 without rate and activation, which the plain
node lacks). Prints both times, their ratio and both joint accuracies.
"""

from __future__ import annotations

import argparse
import time

import torch

import sj_robust
from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import PGD
from sj_robust.benchmark.sides import LoopNode, Merged, RepeatedClassifier
from sj_robust.neuron import ENSEMBLE_VIEWS, Surrogate

VIEWS = [view for view in ENSEMBLE_VIEWS if isinstance(view, Surrogate)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20-snn-t4.cifar10_linf_pgd")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eps", type=float, default=8 / 255)
    options = parser.parse_args()
    dataset = sj_robust.load_dataset(options.data, "test").first(options.images)
    snn = sj_robust.load(options.model).to(memory_format=torch.channels_last)

    start = time.perf_counter()
    report = sj_robust.evaluate(
        snn,
        dataset,
        eps=[options.eps],
        attacks=["pgd10"],
        views=VIEWS,
        batch_size=options.batch_size,
        check_images=0,
    )
    ours = time.perf_counter() - start

    nodes = []
    for name, node in snn.nodes().items():
        nodes.append(LoopNode(float(node.v_threshold.detach())))
        snn.backbone.set_submodule(name, Merged(nodes[-1], snn.timesteps))
    plain = RepeatedClassifier(snn).eval()
    standing = 0
    start = time.perf_counter()
    with keep_large_blocks():
        for ids in torch.arange(len(dataset)).split(options.batch_size):
            x, y = (
                dataset.floats(ids).contiguous(memory_format=torch.channels_last),
                dataset.labels[ids],
            )
            with torch.no_grad():
                right = plain(x).argmax(1) == y
            x, y, ids = x[right], y[right], ids[right]
            robust = torch.ones(len(x), dtype=torch.bool)
            for view in VIEWS:
                for node in nodes:
                    node.surrogate = view
                x_adv = PGD(eps=options.eps)(plain, x, y, ids=ids)
                with torch.no_grad():
                    robust &= plain(x_adv).argmax(1) == y
            standing += int(robust.sum())
    theirs = time.perf_counter() - start
    print(
        f"{len(dataset)} images, {len(VIEWS)} views, T={snn.timesteps}, {torch.get_num_threads()}"
        " threads"
    )
    print(
        f"plain: {theirs:.0f} s, joint {100 * standing / len(dataset):.1f} %; ours: {ours:.0f} s,"
        f" joint {report.joint[0].accuracy}"
    )
    print(f"{theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
