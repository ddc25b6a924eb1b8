"""What one inference costs: operations counted, energy estimated from them, beside the ANN of the
same shape."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode
from torch import nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import evaluation_mode
from sj_robust.data import ImageDataset, as_dataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import facts
from sj_robust.evaluation.activity import count_spikes
from sj_robust.evaluation.judge import Judge, check_fit, device_of, image_count, true_forward
from sj_robust.evaluation.latency import IMAGES
from sj_robust.evaluation.operations import LayerCounter, Tally
from sj_robust.evaluation.report import Activity, EnergyEstimate, Facts, Measurement
from sj_robust.model import NormalizedClassifier, SpikingModel, expose
from sj_robust.phrases import ruled
from sj_robust.progress import Bar, bar

ESTIMATED_ON = 64  # images, for the figure in a report
E_MAC, E_AC = 4.6, 0.9
"""pJ for a 32-bit float multiplication with addition, and for an addition, in 45 nm CMOS (Horowitz,
ISSCC 2014, figure 1.1.9)."""

PICOJOULES = {"MAC": E_MAC, "AC": E_AC}


class Cost(Facts):
    """Operations of one inference, and the estimate from E_MAC and E_AC."""

    acs: float
    macs: float
    microjoules: float

    @classmethod
    def of(cls, acs: float, macs: float) -> Cost:
        return cls(acs=acs, macs=macs, microjoules=(macs * E_MAC + acs * E_AC) / 1e6)


class LayerCost(Facts):
    """One convolution or matrix product, per image, over all its steps.

    Attributes:
        passes: T, or 1 where its input is the same at every step.
        rate: spikes per input, above 1 where these are sums; times `passes` it is
            `spikes_per_neuron`. None where the inputs are not spikes.
        summed: they are sums or means of spikes, so that on hardware that has only one number for
            each these are `passes` × `ann_macs` MACs instead.
    """

    acs: float
    macs: float
    ann_macs: int
    passes: int
    rate: float | None
    spikes_per_neuron: float | None
    summed: bool = False


class Energy(Measurement):
    """The result of `measure_energy`: means per image.

    Attributes:
        snn: with everything computed as often as it is here.
        snn_repeated: with what sees the constant image repeated at every step, where that makes a
            difference.
        snn_dense: with sums and means of spikes multiplied, where there are some.
        ann: the same architecture with dense activations. All others are None for an ANN.
        ratio: energy of `snn` over that of `ann`.
        activity: spikes at the nodes.
        updates: of a membrane potential.
    """

    snn: Cost | None
    snn_repeated: Cost | None
    snn_dense: Cost | None = None
    ann: Cost
    ratio: float | None
    layers: dict[str, LayerCost]
    activity: Activity | None
    updates: int | None
    picojoules: dict[str, float]
    batch_size: int
    device: str

    def estimate(self) -> EnergyEstimate:
        """The few figures that a report of `evaluate` carries."""
        return _estimate(self.dataset.evaluated, self.snn, self.ann, self.snn_dense)

    def summary(self) -> str:
        """A text table: the networks, then the layers, then what the figures leave out."""
        names = {
            "SNN": self.snn,
            "SNN, stem at every step": self.snn_repeated,
            "SNN, sums multiplied": self.snn_dense,
            "ANN of the same shape" if self.snn else "ANN": self.ann,
        }
        costs = [
            [name, _millions(cost.acs), _millions(cost.macs), f"{cost.microjoules:.2f}"]
            for name, cost in names.items()
            if cost
        ]
        layers = [["layer", "ACs", "MACs", "ANN's MACs", "passes", "rate", "spikes per input"]]
        for name, at in self.layers.items():
            spikes = (
                ["", ""] if at.rate is None else [f"{at.rate:.3f}", f"{at.spikes_per_neuron:.3f}"]
            )
            layers.append(
                [
                    name,
                    _millions(at.acs),
                    _millions(at.macs),
                    _millions(at.ann_macs),
                    str(at.passes),
                    *spikes,
                ]
            )
        layers = layers if self.snn else [[row[0], row[2]] for row in layers]
        ratio = [] if self.ratio is None else ["", f"SNN / ANN  {self.ratio:.3f}"]
        return "\n".join(
            [
                f"{self.heading()}, per image",
                "",
                *ruled([["", "ACs", "MACs", "µJ (estimate)"], *costs]),
                *ratio,
                "",
                *ruled(layers),
                "",
                *self.limits,
            ]
        )


def measure_energy(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    max_images: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> Energy:
    """Synaptic operations and multiplications of one inference, layer by layer, and their energy.

    A layer whose inputs are spikes adds one weight per spike and connection (an AC). Average pools
    and sums of spikes, as on a residual path, are linear and folded into the weights behind them:
    each spike is one AC for each connection of each place that it came to. Where an input is made
    of anything else (the image) all products are multiplications (MACs), zeros included.
    `snn_dense` has the products of sums as MACs too. An ANN has MACs alone, from one image.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K]. Its training flags are
            restored.
        max_images: the first so many images; default 256, or all where there are fewer.
        device: the model is moved there; default: where it is.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: data and model do not fit, or settings are out of range.
    """
    started = time.monotonic()
    model = expose(model)
    dataset = as_dataset(dataset)
    total = image_count(dataset, min(IMAGES, len(dataset)) if max_images is None else max_images)
    if batch_size < 1:
        raise SJRobustError(f"batch_size is {batch_size}: expected at least 1")
    where = device_of(model, device)
    judge = Judge(model.to(where), dataset, where, batch_size)
    with keep_large_blocks(), evaluation_mode(model), true_forward(model):
        num_classes = check_fit(judge, total)
        found = count_operations(judge, total, show_progress)
    snn, ann, layers = found.snn, found.ann, found.layers
    steps = model.timesteps if isinstance(model, SpikingModel) else 1
    updates = found.activity.neurons * steps if found.activity else None
    return Energy(
        model=facts.model_facts(model, num_classes),
        dataset=facts.dataset_facts(dataset, found.images),
        snn=snn,
        snn_repeated=(
            _total(layers, steps)
            if any(layer.passes < steps for layer in layers.values())
            else None
        ),
        snn_dense=found.dense,
        ann=ann,
        ratio=snn.microjoules / ann.microjoules if snn and ann.microjoules else None,
        layers=layers,
        activity=found.activity,
        updates=updates,
        picojoules=PICOJOULES,
        limits=_limits(layers, steps, updates, found.padding, found.images, len(dataset)),
        batch_size=batch_size,
        device=facts.device_name(where),
        seconds=time.monotonic() - started,
        versions=facts.versions(),
    )


def estimate_energy(judge: Judge, total: int) -> EnergyEstimate | None:
    """What `measure_energy` finds on the first images of an evaluation; None for a network that
    cannot be counted.

    The model is in eval mode and emits spikes already. A robust accuracy of hours must not be lost
    for this figure, so no network that is odd enough to break the counting raises; `measure_energy`
    says what is wrong with it.
    """
    try:
        found = count_operations(judge, min(ESTIMATED_ON, total), show_progress=False)
    except Exception:
        return None
    if not found.ann.macs:
        return None
    return _estimate(found.images, found.snn, found.ann, found.dense)


def _estimate(images: int, snn: Cost | None, ann: Cost, dense: Cost | None) -> EnergyEstimate:
    own, beside = (snn, ann) if snn else (ann, None)
    return EnergyEstimate(
        images=images,
        acs=own.acs,
        macs=own.macs,
        microjoules=own.microjoules,
        ann_macs=beside and beside.macs,
        ann_microjoules=beside and beside.microjoules,
        dense_acs=dense and dense.acs,
        dense_macs=dense and dense.macs,
        dense_microjoules=dense and dense.microjoules,
        picojoules=PICOJOULES,
    )


@dataclass(frozen=True)
class Operations:
    """What `count_operations` found, per image. `snn` and `activity` are None for an ANN, `dense`
    where nothing is summed; `padding`: share of the ANN's MACs."""

    images: int
    layers: dict[str, LayerCost]
    ann: Cost
    snn: Cost | None
    dense: Cost | None
    activity: Activity | None
    padding: float


def count_operations(judge: Judge, total: int, show_progress: bool | None) -> Operations:
    """Of one inference on the first `total` images, or on one for an ANN. The model is in eval mode
    and emits spikes already."""
    model, tallies, activity = judge.model, None, None
    with model.as_ann() if isinstance(model, SpikingModel) else nullcontext():
        dense = _count(judge, 1, Bar())
    if isinstance(model, SpikingModel):
        with count_spikes(model) as spikes, bar("energy", total, show=show_progress) as progress:
            tallies = _count(judge, total, progress)
        activity = spikes.activity(model.timesteps, total)
    images = total if activity else 1
    layers = {
        name: _layer(tallies[name] if tallies else None, images, tally.products)
        for name, tally in dense.items()
    }
    ann = Cost.of(0, sum(layer.ann_macs for layer in layers.values()))
    padding = sum(tally.padding for tally in dense.values()) / max(1, ann.macs)
    summed = activity and any(layer.summed for layer in layers.values())
    return Operations(
        images,
        layers,
        ann,
        _total(layers) if activity else None,
        _total(layers, dense=True) if summed else None,
        activity,
        padding,
    )


def _count(judge: Judge, images: int, progress: Bar) -> dict[str, Tally]:
    """Tallies of the first images, by the layers' names in the order in which they compute."""
    counter = LayerCounter()
    for chosen, x, _ in judge.batches(torch.arange(images)):
        with DispatchCounterMode([counter]):
            judge.predict(x)
        progress.advance(len(chosen))
    # left out, as in the names of nodes
    inner = "backbone." if isinstance(judge.model, NormalizedClassifier) else ""
    return {
        name.partition(".")[2].removeprefix(inner) or name: tally
        for name, tally in counter.tallies.items()
    }


def _layer(tally: Tally | None, images: int, ann_macs: int) -> LayerCost:
    passes = tally.products // (images * ann_macs) if tally else 1
    if tally is None or tally.analogue:
        return LayerCost(
            acs=0,
            macs=passes * ann_macs,
            ann_macs=ann_macs,
            passes=passes,
            rate=None,
            spikes_per_neuron=None,
        )
    rate = tally.spikes / tally.inputs
    return LayerCost(
        acs=tally.acs / images,
        macs=0,
        ann_macs=ann_macs,
        passes=passes,
        rate=rate,
        spikes_per_neuron=rate * passes,
        summed=tally.summed,
    )


def _total(layers: dict[str, LayerCost], steps: int | None = None, *, dense: bool = False) -> Cost:
    """The sum over layers, each as often as it is computed, or `steps` times; `dense`: with sums of
    spikes multiplied."""
    scaled = [((steps or layer.passes) / layer.passes, layer) for layer in layers.values()]
    if dense:
        scaled = [
            (
                times,
                (
                    layer.model_copy(update={"acs": 0, "macs": layer.passes * layer.ann_macs})
                    if layer.summed
                    else layer
                ),
            )
            for times, layer in scaled
        ]
    return Cost.of(
        sum(times * layer.acs for times, layer in scaled),
        sum(times * layer.macs for times, layer in scaled),
    )


def _limits(
    layers: dict[str, LayerCost],
    steps: int,
    updates: int | None,
    padding: float,
    evaluated: int,
    size: int,
) -> list[str]:
    """Honest statements on what the numbers do not show."""
    statements = [
        (
            f"The energy is an estimate from counts: {E_MAC} pJ a MAC and {E_AC} pJ an AC (32-bit"
            " float, 45 nm CMOS, Horowitz 2014)."
        ),
        (
            "Memory traffic, which costs more than arithmetic on most hardware, is left out, and"
            " with it the cost of moving spikes."
        ),
        (
            "Counted are convolutions and matrix products; normalisation, biases, residual"
            " additions and pooling are not, on either side."
        ),
        (
            f"MACs are dense: zeros count, of the padding ({padding:.1%} of the ANN's MACs) and of"
            " activations. ACs are those of spikes alone."
        ),
    ]
    if updates is None:
        return statements
    statements.append(
        f"Left out are {_millions(updates)} updates of potentials; a MAC each would add"
        f" {updates * E_MAC / 1e6:.2f} µJ."
    )
    if once := [name for name, layer in layers.items() if layer.passes < steps]:
        statements.append(
            "Computed once per image, because the input is the same at every step:"
            f" {', '.join(once)}."
        )
    if analogue := [name for name, layer in layers.items() if layer.macs and layer.passes == steps]:
        statements.append(
            f"Inputs that are not made of spikes, hence MACs at every step: {', '.join(analogue)}."
        )
    if summed := [name for name, layer in layers.items() if layer.summed]:
        statements.append(
            "Sums or means of spikes, folded into the weights behind them, an AC for each spike"
            f" and connection: {', '.join(summed)}."
        )
    if evaluated < size:
        statements.append(f"Spikes were counted on the first {evaluated} of {size} images.")
    return statements


def _millions(count: float) -> str:
    return f"{count / 1e6:.3f} M"
