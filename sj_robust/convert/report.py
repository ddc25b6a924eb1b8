"""What a conversion did: nodes and how they fire, what stayed analogue, and how far the logits are
from the ANN's."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from sj_robust.convert.activations import function_kind, module_kind
from sj_robust.convert.watch import Watch
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.model.mode import evaluation_mode
from sj_robust.model.unwrap import spiking, unwrap

DEAD = 0.9
"""A layer is called dead where at least this share of its neurons never fired on any image."""

SATURATED = 0.5
"""A layer is called saturated where at least this share of its neurons fired at every step on every
image."""


LISTED = 8
"""How many layers a summary lists that do not spike, those with most products first."""

LINES = 16
"""For how many time steps, at most, a summary tells the agreement with the ANN."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeFacts(_Facts):
    """One node. `rate`: spikes per neuron and step. `silent`, `always`: shares of neurons that
    fired never, and at every step.

    `threshold`: in the unit of its input, where weights hold such units. `worth`: what it emits for
    a spike; where that is not 1, what reads it multiplies.
    """

    name: str
    threshold: float
    neurons: int
    rate: float
    silent: float
    always: float
    worth: float = 1.0


class LayerFacts(_Facts):
    """One layer with products: per image `macs` by shape, in T steps as in an ANN T times; `share`
    of all layers' products.

    `spiking`: all its inputs were 0 or 1. `once`: it is computed once for all steps, its input
    being the same at every step.
    """

    name: str
    macs: int
    share: float
    spiking: bool
    once: bool


class Leftover(_Facts):
    """What is no spiking node and no layer with products: `what` is called `calls` times in the
    module `name`."""

    name: str
    what: str
    calls: int


class Agreement(_Facts):
    """The mean logits of the first `timesteps` steps beside the ANN's: equal first class (share of
    images), and mean cosine."""

    timesteps: int
    top1: float
    cosine: float


class ConversionReport(_Facts):
    """See `inspect_conversion`. `agreement` is empty where no ANN was given; the accuracies, shares
    of the images, are None without labels."""

    network: str
    timesteps: int
    images: int
    repeat_at: str
    replaced_activation: str | None
    folded: bool = False
    rewritten: list[str]
    nodes: list[NodeFacts]
    dead: list[str]
    saturated: list[str]
    layers: list[LayerFacts]
    analogue: list[Leftover]
    analogue_share: float
    agreement: list[Agreement]
    accuracy: float | None = None
    ann_accuracy: float | None = None
    advice: list[str]

    def to_json(self) -> str:
        """The report as JSON text."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> ConversionReport:
        """The report that `to_json` wrote."""
        return cls.model_validate_json(text)

    def summary(self) -> str:
        """A text of some lines: nodes, what stayed analogue, agreement with the ANN, and what to
        try."""
        nodes = [["node", "threshold", "rate", "never fire", "always fire"]]
        nodes += [
            [n.name, f"{n.threshold:.4g}", f"{n.rate:.3f}", f"{n.silent:.0%}", f"{n.always:.0%}"]
            for n in self.nodes
        ]
        dense = sorted(
            (layer for layer in self.layers if not layer.spiking), key=lambda layer: -layer.share
        )
        kept = [
            f"  {layer.name}: {layer.share:.1%} of the"
            f" products{', computed once' if layer.once else ''}"
            for layer in dense[:LISTED]
        ]
        kept += (
            [f"  and {len(dense) - LISTED} more: {sum(d.share for d in dense[LISTED:]):.1%}"]
            if len(dense) > LISTED
            else []
        )
        places: dict[str, list[str]] = defaultdict(list)
        for left in self.analogue:
            places[left.what].append(left.name or "the network itself")
        others = [f"  {len(names)} × {what}: {_few(names)}" for what, names in places.items()]
        every = -(-len(self.agreement) // LINES)
        shown = (
            [a for a in self.agreement if (self.timesteps - a.timesteps) % every == 0]
            if every
            else []
        )
        logits = [
            ["t", "same class", "cosine"],
            *([str(a.timesteps), f"{a.top1:.1%}", f"{a.cosine:.3f}"] for a in shown),
        ]
        return "\n".join(
            [
                (
                    f"{self.network}: {len(self.nodes)} spiking nodes, T={self.timesteps}, on"
                    f" {self.images} images"
                ),
                *(
                    [
                        "rewritten:"
                        f" {', '.join(name or 'the network itself' for name in self.rewritten)}"
                    ]
                    if self.rewritten
                    else []
                ),
                *([_worth(self.nodes)] if self.folded else []),
                *(
                    [f"activations other than ReLU were converted as {self.replaced_activation}"]
                    if self.replaced_activation
                    else []
                ),
                "",
                *_aligned(nodes),
                "",
                (
                    f"Not spiking: {self.analogue_share:.1%} of the products (inputs other than 0"
                    " and 1)"
                ),
                *kept,
                *(["and, without products of their own:", *others] if others else []),
                *(["", "Agreement with the ANN", *_aligned(logits)] if self.agreement else []),
                *self._accuracies(),
                *(["", *self.advice] if self.advice else []),
            ]
        )

    def _accuracies(self) -> list[str]:
        """Both, so that an ANN shows that gets its images in another form than it was trained
        with."""
        if self.accuracy is None:
            return []
        ann = "" if self.ann_accuracy is None else f"the ANN {self.ann_accuracy:.1%}, "
        return ["", f"Right on these images: {ann}the spiking network {self.accuracy:.1%}"]


@torch.no_grad()
def inspect_conversion(
    snn: SpikingClassifier,
    images: Tensor,
    ann: nn.Module | None = None,
    labels: Tensor | None = None,
) -> ConversionReport:
    """Run `snn` on `images` [N,C,H,W] in [0,1] and tell what spikes, what does not, and how the
    logits compare with the ANN's.

    `ann`: the network it was converted from, as it was given to `convert`: a NormalizedClassifier,
    or a backbone that takes images normalised as the spiking network's are. labels [N]: what is
    right, for the accuracy of both. Training flags are restored. Raises SJRobustError for images of
    another form.
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
        advice=_advice(snn, dead, saturated, len(nodes), agreement),
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


def _worth(nodes: list[NodeFacts]) -> str:
    """What holds the thresholds that spikes are worth, in a network without batch norms."""
    scaled = [f"{node.name} ({node.worth:.4g})" for node in nodes if node.worth != 1]
    held = (
        f"for want of batch norms, weights hold what the spikes of {len(nodes) - len(scaled)} of"
        f" {len(nodes)} nodes are worth"
    )
    return f"{held}; the others emit another number than 1: {', '.join(scaled)}" if scaled else held


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


def _advice(
    snn: SpikingClassifier,
    dead: list[str],
    saturated: list[str],
    nodes: int,
    agreement: list[Agreement],
) -> list[str]:
    """What to try, the likeliest first; empty where nothing looks wrong."""
    settings, advice = snn.settings, []
    if dead:
        advice.append(
            f"{len(dead)} of {nodes} layers hardly fire ({_few(dead)}): lower scale or percentile,"
            " or take more steps."
        )
    if saturated:
        advice.append(
            f"{len(saturated)} of {nodes} layers fire at every step ({_few(saturated)}): raise"
            " scale."
        )
    if not agreement or (agreement[-1].top1 >= 0.8 and agreement[-1].cosine >= 0.8):
        return advice
    last = agreement[-1]
    advice.append(
        f"The logits are far from the ANN's (same class {last.top1:.0%}, cosine {last.cosine:.2f}):"
        " finetune, as is usual."
    )
    if settings.get("scale") != "auto":
        advice.append("One factor is on all thresholds: scale='auto' finds each layer's own.")
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
    if settings.get("folded"):
        advice.append("Without batch norms thresholds decide alone: try reset='soft' first.")
    if len(agreement) > 1 and last.cosine > agreement[len(agreement) // 2 - 1].cosine + 0.02:
        advice.append(f"The agreement still grows at T={last.timesteps}: take more steps.")
    advice.append(
        "Calibrate with more images of the training set, check mean and std, and try reset='soft'."
    )
    return advice


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
