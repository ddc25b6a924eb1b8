"""Looking at a converted network at work: what spikes, what does not, and what to try."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.conversion.activations import function_kind, module_kind
from sj_robust.conversion.report import (
    Agreement,
    ConversionReport,
    LayerFacts,
    Leftover,
    NodeFacts,
)
from sj_robust.conversion.watch import Watch
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.model.mode import evaluation_mode
from sj_robust.model.unwrap import spiking, unwrap
from sj_robust.phrases import few

DEAD = 0.9
"""A layer is called dead where at least this share of its neurons never fired on any image."""

SATURATED = 0.5
"""A layer is called saturated where at least this share of its neurons fired at every step on every
image."""


@torch.no_grad()
def inspect_conversion(
    snn: SpikingClassifier,
    images: Tensor,
    ann: nn.Module | None = None,
    labels: Tensor | None = None,
) -> ConversionReport:
    """Run `snn` and tell what spikes, what does not, and how its logits compare with the ANN's.

    Training flags are restored.

    Args:
        images: [N,C,H,W] in [0,1].
        ann: the network it was converted from, as it was given to `convert`: a
            NormalizedClassifier, or a backbone that takes images normalised as the spiking
            network's are.
        labels: [N], what is right, for the accuracy of both.

    Raises:
        SJRobustError: images of another form.
    """
    if images.dim() != 4 or len(images) < 1:
        raise SJRobustError(
            f"images of shape {list(images.shape)}: expected [N,C,H,W] with at least one image in"
            " [0,1]"
        )
    snn = spiking(snn)  # type: ignore[assignment]
    with evaluation_mode(snn), _Inspection(snn, len(images)) as seen:
        sequence = snn.forward_sequence(images)
    agreement: list[Agreement] = []
    expected = None
    if ann is not None:
        ann = unwrap(ann)
        with evaluation_mode(ann):
            expected = ann(
                images if isinstance(ann, NormalizedClassifier) else snn.normalize(images)
            )
        agreement = [
            _agreement(t, sequence[:t].mean(0), expected) for t in range(1, len(sequence) + 1)
        ]
    plan = snn.settings.get("plan") or {}
    nodes = [_node(name, snn, spikes) for name, spikes in seen.counts.items()]
    total = sum(seen.macs.values()) or 1
    layers = [
        LayerFacts(
            name=name,
            macs=macs // len(images),
            share=macs / total,
            spiking=name not in seen.dense,
            once=name in seen.once,
        )
        for name, macs in seen.macs.items()
    ]
    dead = [node.name for node in nodes if node.silent >= DEAD]
    saturated = [node.name for node in nodes if node.always >= SATURATED]
    return ConversionReport(
        network=type(snn.backbone).__name__,
        timesteps=snn.timesteps,
        images=len(images),
        repeat_at=snn.repeat_at,
        replaced_activation=snn.settings.get("replace_activation"),
        folded=snn.settings.get("folded", False),
        rewritten=[*plan.get("rewrites", {}), *plan.get("turns", {})],
        nodes=nodes,
        dead=dead,
        saturated=saturated,
        layers=layers,
        analogue=[
            Leftover(name=name, what=what, calls=calls)
            for (name, what), calls in seen.leftovers.items()
        ]
        + _unused(snn, seen),
        analogue_share=sum(layer.share for layer in layers if not layer.spiking),
        agreement=agreement,
        accuracy=_accuracy(sequence.mean(0), labels),
        ann_accuracy=_accuracy(expected, labels),
        advice=[
            *_of_the_ann(_accuracy(expected, labels), expected),
            *_advice(snn, dead, saturated, len(nodes), agreement),
        ],
    )


class _Inspection(Watch):
    """Spikes per neuron and products per layer, over T steps, with the layers some of whose inputs
    were neither 0 nor 1."""

    def __init__(self, snn: SpikingClassifier, images: int) -> None:
        super().__init__(snn.backbone)
        self.steps, self.images = snn.timesteps, images
        self.nodes, self.worth = snn.nodes(), snn.worth
        self.counts: dict[str, Tensor] = {}
        self.macs: dict[str, int] = {}
        self.dense: set[str] = set()
        self.once: set[str] = set()
        self.leftovers: dict[tuple[str, str], int] = defaultdict(int)

    def on_leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        if name in self.nodes:  # [T·N, *] → spikes of each neuron on each image [N, *]
            self.counts[name] = (output != 0).view(self.steps, -1, *output.shape[1:]).sum(0)
            if name in self.worth:
                self.leftovers[name, "a factor on spikes, which weights could not hold"] += 1
        elif module_kind(module) is not None:
            self.leftovers[name, type(module).__name__] += 1
        elif isinstance(module, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
            self.leftovers[
                name, f"{type(module).__name__}, with statistics of each image at each step"
            ] += 1
        elif "Pool" in type(module).__name__ and not list(module.children()):
            self._pooling(name, inputs[0])

    def on_function(self, name: str, args: Any, kwargs: Any, output: Any) -> Any:
        where = self.stack[-1]
        if (products := _products(name, args, output)) is not None:
            x = args[0]
            self.macs[where] = self.macs.get(where, 0) + products
            if not bool(((x == 0) | (x == 1)).all()):
                self.dense.add(where)
            if self.steps > 1 and len(x) == self.images:
                self.once.add(where)
        elif (
            function_kind(name) is not None
            and module_kind(self.network.get_submodule(where)) is None
        ):
            self.leftovers[where, f"{name}()"] += 1
        elif (
            name in ("mean", "avg_pool2d", "adaptive_avg_pool2d")
            and "Pool" not in type(self.network.get_submodule(where)).__name__
        ):
            self.leftovers[where, f"{name}(), an average"] += 1
        return output

    def _pooling(self, name: str, x: Any) -> None:
        kind = type(self.network.get_submodule(name)).__name__
        binary = isinstance(x, Tensor) and bool(((x == 0) | (x == 1)).all())
        if "Max" not in kind:
            self.leftovers[name, f"{kind}, an average"] += 1
        elif not binary:
            self.leftovers[name, f"{kind} over values other than 0 and 1"] += 1


def _products(name: str, args: Any, output: Any) -> int | None:
    """Multiplications by shape of a convolution or matrix product, None for anything else."""
    if name in ("conv1d", "conv2d", "conv3d", "linear"):
        return int(output.numel() * prod(args[1].shape[1:]))
    if name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return int(args[0].numel() * prod(args[1].shape[1:]))
    if name in ("matmul", "__matmul__", "bmm", "mm"):
        return int(output.numel() * args[0].shape[-1])
    return None


def _node(name: str, snn: SpikingClassifier, spikes: Tensor) -> NodeFacts:
    most, least = spikes.amax(0), spikes.amin(0)  # over images
    return NodeFacts(
        name=name,
        threshold=snn.thresholds()[name],
        neurons=most.numel(),
        rate=float(spikes.double().mean()) / snn.timesteps,
        silent=float((most == 0).double().mean()),
        always=float((least == snn.timesteps).double().mean()),
        worth=snn.worth.get(name, 1.0),
    )


def _unused(snn: SpikingClassifier, seen: _Inspection) -> list[Leftover]:
    idle = [
        (name, module)
        for name, module in snn.backbone.named_modules()
        if module_kind(module) is not None and not seen.calls[name]
    ]
    return [
        Leftover(name=name, what=f"{type(module).__name__}, never called", calls=0)
        for name, module in idle
    ]


def _agreement(t: int, logits: Tensor, expected: Tensor) -> Agreement:
    same = float((logits.argmax(1) == expected.argmax(1)).double().mean())
    return Agreement(
        timesteps=t,
        top1=same,
        cosine=float(nn.functional.cosine_similarity(logits, expected, dim=1).double().mean()),
    )


def _accuracy(logits: Tensor | None, labels: Tensor | None) -> float | None:
    return (
        None
        if logits is None or labels is None
        else float((logits.argmax(1).cpu() == labels.cpu()).double().mean())
    )


def _of_the_ann(accuracy: float | None, logits: Tensor | None) -> list[str]:
    """What to try where the ANN itself hardly tells its classes apart."""
    if accuracy is None or logits is None or accuracy > 2 / logits.shape[1]:
        return []
    return [
        f"The ANN itself is right on {accuracy:.0%} of the images, not clearly above chance: train"
        " it first, or see to its weights, mean and std."
    ]


def _advice(
    snn: SpikingClassifier,
    dead: list[str],
    saturated: list[str],
    nodes: int,
    agreement: list[Agreement],
) -> list[str]:
    """What to try, the likeliest first; empty where nothing looks wrong."""
    settings, advice = snn.settings, []
    fixed, hard = settings.get("scale") != "auto", settings.get("reset") != "soft"
    if dead:
        advice.append(
            f"{len(dead)} of {nodes} layers hardly fire ({few(dead)}): lower"
            f" {'scale or ' if fixed else ''}percentile, or take more steps."
        )
    if saturated:
        advice.append(
            f"{len(saturated)} of {nodes} layers fire at every step ({few(saturated)}): "
            + ("raise scale." if fixed else "try a fixed scale, above their thresholds.")
        )
    if not agreement or (agreement[-1].top1 >= 0.8 and agreement[-1].cosine >= 0.8):
        return advice
    last = agreement[-1]
    advice.append(
        f"The logits are far from the ANN's (same class {last.top1:.0%}, cosine {last.cosine:.2f}):"
        " finetune, as is usual."
    )
    if fixed:
        advice.append(
            "One factor is on all thresholds: --scale auto (scale='auto') finds each layer's own."
        )
    if settings.get("replace_activation"):
        advice.append(
            "Activations other than ReLU were taken for ReLU: finetune the ANN with nn.ReLU in"
            " their place first."
        )
    if settings.get("pooling") == "average":
        advice.append(
            "Max pooling became average pooling, which the weights do not know: keep pooling='max'"
            " or finetune."
        )
    if settings.get("norm") == "omit":
        advice.append(
            "Batch norms were left out: keep them with norm='integrate' unless this is the"
            " ablation."
        )
    if settings.get("norm_statistics") == "reset":
        advice.append(
            "Batch norms have no statistics yet: finetune, or convert with"
            " norm_statistics='calibrate'."
        )
    if settings.get("folded") and hard:
        advice.append(
            "Without batch norms thresholds decide alone: try --reset soft (reset='soft') first."
        )
    if len(agreement) > 1 and last.cosine > agreement[len(agreement) // 2 - 1].cosine + 0.02:
        advice.append(f"The agreement still grows at T={last.timesteps}: take more steps.")
    advice.append("Calibrate with more images of the training set.")
    if hard and not settings.get("folded"):
        advice.append("Try --reset soft (reset='soft').")
    return advice
