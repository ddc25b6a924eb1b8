"""What a conversion did: nodes and how they fire, what stayed analogue, and how far the logits are
from the ANN's."""

from __future__ import annotations

from collections import defaultdict

from sj_robust.phrases import aligned, few
from sj_robust.settings import Strict

LISTED = 8
"""How many layers a summary lists that do not spike, those with most products first."""

LINES = 16
"""For how many time steps, at most, a summary tells the agreement with the ANN."""


class NodeFacts(Strict):
    """One node.

    Attributes:
        threshold: in the unit of its input, where weights hold such units.
        rate: spikes per neuron and step.
        silent: share of neurons that never fired.
        always: share of neurons that fired at every step.
        worth: what it emits for a spike; where that is not 1, what reads it multiplies.
    """

    name: str
    threshold: float
    neurons: int
    rate: float
    silent: float
    always: float
    worth: float = 1.0


class LayerFacts(Strict):
    """One layer with products.

    Attributes:
        macs: per image, by shape; in T steps as in an ANN T times.
        share: of all layers' products.
        spiking: all its inputs were 0 or 1.
        once: it is computed once for all steps, its input being the same at every step.
    """

    name: str
    macs: int
    share: float
    spiking: bool
    once: bool


class Leftover(Strict):
    """What is no spiking node and no layer with products.

    Attributes:
        name: of the module it is called in.
        what: what is called, `calls` times.
    """

    name: str
    what: str
    calls: int


class Agreement(Strict):
    """The mean logits of the first `timesteps` steps beside the ANN's.

    Attributes:
        top1: share of images with an equal first class.
        cosine: mean over the images.
    """

    timesteps: int
    top1: float
    cosine: float


class ConversionReport(Strict):
    """What a conversion did: the result of `inspect_conversion`.

    Attributes:
        agreement: empty where no ANN was given.
        accuracy: share of the images; None without labels.
        ann_accuracy: share of the images; None without labels or ANN.
    """

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
        """Some lines of text: nodes, what stayed analogue, agreement with the ANN, what to try."""
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
        others = [f"  {len(names)} × {what}: {few(names)}" for what, names in places.items()]
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
                *aligned(nodes, numbers=True),
                "",
                (
                    f"Not spiking: {self.analogue_share:.1%} of the products (inputs other than 0"
                    " and 1)"
                ),
                *kept,
                *(["and, without products of their own:", *others] if others else []),
                *(
                    ["", "Agreement with the ANN", *aligned(logits, numbers=True)]
                    if self.agreement
                    else []
                ),
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


def _worth(nodes: list[NodeFacts]) -> str:
    """What holds the thresholds that spikes are worth, in a network without batch norms."""
    scaled = [f"{node.name} ({node.worth:.4g})" for node in nodes if node.worth != 1]
    held = (
        f"for want of batch norms, weights hold what the spikes of {len(nodes) - len(scaled)} of"
        f" {len(nodes)} nodes are worth"
    )
    return f"{held}; the others emit another number than 1: {', '.join(scaled)}" if scaled else held
