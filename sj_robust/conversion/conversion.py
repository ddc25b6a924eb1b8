"""Conversion of a trained ANN into a spiking classifier, as a SpikingJelly recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from spikingjelly.activation_based.ann2snn import ModuleConversionRecipe, ModuleConverter
from torch import Tensor, nn

from sj_robust.conversion.agreement import agree_thresholds
from sj_robust.conversion.balance import balance_thresholds
from sj_robust.conversion.calibration import calibration_batches
from sj_robust.conversion.fold import fold_thresholds
from sj_robust.conversion.norms import norm_names, prepare_norms, reestimate_statistics
from sj_robust.conversion.pooling import replace_pooling
from sj_robust.conversion.rewrite import Plan
from sj_robust.conversion.scan import Scan, scan, separate
from sj_robust.conversion.settings import ConversionSettings, Norm, Pooling, Replace, Scale
from sj_robust.conversion.watch import recorded_calls
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier, SpikingModel, expose
from sj_robust.model.classifier import SpikingActivation
from sj_robust.model.layout import layout_of
from sj_robust.model.normalized import unit_scale
from sj_robust.model.plain import as_float32, check_convertible, copied, make_plain
from sj_robust.model.unwrap import unwrap
from sj_robust.neuron import Reset, Surrogate, ThresholdLIF
from sj_robust.settings import Growing, checked

_WHAT = "conversion setting "


class ConvertedFacts(Growing):
    """What holds of a converted network beside the settings that were chosen: with both it is
    rebuilt. A checkpoint records them as one flat mapping."""

    LATE = ("folded", "worth", "plan")

    mean: tuple[float, ...] = Field(min_length=1, max_length=64)
    std: tuple[float, ...] = Field(min_length=1, max_length=64)
    # activation → channel count, where it has one threshold per channel
    channels: dict[str, int] | None = None
    repeat_at: str | None = None
    # a spike is worth its node's threshold, see conversion.fold
    folded: bool = False
    # what is emitted in place of 1, by node
    worth: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field({})
    # None: every nn.ReLU module is a node, and no forward pass was rewritten
    plan: Plan | None = None


def convert(
    ann: nn.Module,
    calibration: Tensor | Iterable[Any],
    timesteps: int = 8,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    percentile: float = 99.7,
    scale: Scale = 0.3,
    calibration_timesteps: int = 100,
    leak: float = 1.0,
    reset: Reset = "hard",
    norm: Norm = "integrate",
    norm_statistics: Literal["calibrate", "reset"] = "calibrate",
    per_channel: bool = False,
    surrogate: Surrogate = Surrogate("PCW", 1.0),
    replace_activation: Replace | None = None,
    pooling: Pooling = "max",
    source: dict[str, Any] | None = None,
    on_layer: Callable[[str, float], None] | None = None,
) -> SpikingClassifier:
    """Turn a ReLU network into a spiking classifier with calibrated thresholds.

    Every ReLU becomes a ThresholdLIF node: a module, one inside a norm, a function call (F.relu,
    x.relu_()), or each call of a module that is called several times; forward passes are rewritten
    where that takes it, see `conversion.rewrite`. What only feeds a gate (squeeze-and-excitation)
    stays analogue; `conversion.inspect_conversion` lists it.

    A node's threshold is the maximum over the calibration batches of the `percentile` of its input,
    with T = `calibration_timesteps` and spikes flowing through the layers before it, times `scale`
    (Özdenizci & Legenstein, TMLR 2024, section 4.1). See `balance_thresholds` for cost and memory.
    In a network without batch norms, which would make up for it, a spike is worth that much: the
    weights around the nodes hold it, see `conversion.fold`. With norm="omit" it is worth 1.

    Args:
        ann: a classifier whose input is normalised images [N,C,H,W], or a NormalizedClassifier
            (then mean and std are its own). It is left as it is.
        calibration: batches of float images [N,C,H,W] in [0,1] from the training set: a tensor
            [B,N,C,H,W], one batch, or an iterable such as a DataLoader, whose labels are left
            aside.
        timesteps: T of the converted network.
        mean: per channel, of images in [0,1].
        std: per channel, of images in [0,1].
        scale: the factor on all balanced thresholds, above 0; "auto" finds each layer's own, and
            lower ones for all where that brings the logits nearer, see `agree_thresholds`.
        norm: what becomes of batch norm: "integrate" keeps it as a layer (tdBN), "fuse" folds it
            into the layer before, "omit" leaves it out (for ablations).
        norm_statistics: running statistics of integrated batch norms: "calibrate" re-estimates them
            on the calibration batches at T, so that the network can be used at once; "reset" leaves
            0 and 1, as the authors' code does.
        per_channel: one learnable threshold per channel, all of a layer starting at the layer's
            value.
        replace_activation: "relu" also converts other activations (ReLU6, LeakyReLU, Hardswish,
            SiLU, GELU, ...), as if they were ReLU; None refuses them. The network then computes
            something else, and has to be finetuned. Where the activation has a ceiling (ReLU6: 6),
            the raw threshold is at most that.
        pooling: "max" keeps max pooling, on spikes an OR; "average" makes it average pooling.
        on_layer: called with each node's name and balanced threshold, before `scale`.

    Raises:
        SJRobustError: no calibration images, values out of bounds, an activation that cannot become
            a node, attention, layer norm.
    """
    if isinstance(ann := expose(ann), SpikingModel):
        raise SJRobustError("the network is spiking already: convert takes an ANN")
    classes = None
    if isinstance(ann := unwrap(ann), NormalizedClassifier):
        classes = ann.classes
        mean = ann.mean.flatten().tolist() if mean is None else mean
        std = ann.std.flatten().tolist() if std is None else std
        ann = unwrap(ann.backbone)
    if mean is None or std is None:
        raise SJRobustError(
            "convert needs mean and std, one value a channel, that the network's input is"
            " normalised with"
        )
    mean, std = unit_scale(mean, std)
    check_convertible(ann)
    batches = calibration_batches(calibration)
    settings = checked(
        ConversionSettings,
        dict(
            timesteps=timesteps,
            percentile=percentile,
            scale=scale,
            calibration_timesteps=calibration_timesteps,
            leak=leak,
            reset=reset,
            norm=norm,
            norm_statistics=norm_statistics,
            surrogate=str(surrogate),
            per_channel=per_channel,
            replace_activation=replace_activation,
            pooling=pooling,
        ),
        _WHAT,
    )
    recipe = ThresholdBalancing(
        settings, batches, mean=mean, std=std, source=source, on_layer=on_layer
    )
    converted = ModuleConverter(recipe).convert(ann)
    assert isinstance(converted, SpikingClassifier)
    converted.classes = classes
    return converted


def rebuild(
    backbone: nn.Module,
    settings: dict[str, Any],
    *,
    source: dict[str, Any] | None = None,
    input_size: Sequence[int] | None = None,
) -> SpikingClassifier:
    """The spiking structure that `settings` describes, around a fresh ANN, without calibration.

    Batch norms are integrated, or replaced by the identity where the settings fused or omitted
    them; a fused convolution gets the bias that the folding gave it. Weights and thresholds are to
    be loaded afterwards.

    Args:
        settings: those of a SpikingClassifier.
        input_size: [C,H,W] of its images, asked for where norms were fused; default: as the
            backbone's pretrained_cfg has it, else 32×32.

    Raises:
        SJRobustError: settings that are not valid.
    """
    known = ConvertedFacts.model_fields
    chosen = checked(
        ConversionSettings,
        {key: value for key, value in settings.items() if key not in known},
        _WHAT,
    )
    facts = checked(
        ConvertedFacts, {key: value for key, value in settings.items() if key in known}, _WHAT
    )
    if chosen.norm != "integrate":
        size = input_size or getattr(backbone, "pretrained_cfg", {}).get(
            "input_size", (len(facts.mean), 32, 32)
        )
        prepare_norms(backbone, chosen.norm, torch.zeros(1, len(facts.mean), *size[1:]))
    replace_pooling(backbone, chosen.pooling)
    return _structure(backbone, chosen, facts, source or {})


class ThresholdBalancing(ModuleConversionRecipe):
    """The recipe that `convert` runs.

    Use it with SpikingJelly's ModuleConverter to convert within a larger program.
    """

    def __init__(
        self,
        settings: ConversionSettings,
        batches: Sequence[Tensor],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        source: dict[str, Any] | None = None,
        on_layer: Callable[[str, float], None] | None = None,
    ) -> None:
        self.settings, self.batches = settings, batches
        self.facts = checked(ConvertedFacts, {"mean": mean, "std": std}, _WHAT)
        self.source, self.on_layer = source or {}, on_layer

    def convert_module(self, converter: ModuleConverter, ann: nn.Module) -> nn.Module:
        """Return the SpikingClassifier; `ann` is copied, not changed."""
        settings = self.settings
        # Layouts round differently, a spike flips, and after 100 steps a threshold is off by a
        # percent: one layout for all, so that it does not matter how the network was opened.
        dense, layout = torch.contiguous_format, layout_of(ann)
        batches = [batch.to(converter.device, memory_format=dense) for batch in self.batches]
        backbone = (
            as_float32(make_plain(copied(ann))).to(converter.device).to(memory_format=dense).eval()
        )
        sample = (
            NormalizedClassifier(backbone, self.facts.mean, self.facts.std)
            .to(converter.device)
            .normalize(batches[0][:2])
        )
        prepare_norms(backbone, settings.norm, sample)
        replace_pooling(backbone, settings.pooling)
        found = scan(backbone, sample, settings.replace_activation, settings.pooling)
        _check_training(backbone, sample)
        facts = self.facts.model_copy(
            update={
                "plan": _recorded(backbone, found),
                "channels": found.channels if settings.per_channel else None,
            }
        )
        model = _structure(backbone, settings, facts, self.source).to(converter.device)
        model.num_classes = found.logits.shape[1]
        _check(model, batches[0][:2], found)
        model.repeat_at = _find_repeat(model, batches[0][:2])
        model.folded = settings.norm != "omit" and not norm_names(backbone)

        def set_worth(name: str, threshold: float) -> None:
            if model.folded:
                model.activations()[name].worth = threshold

        def on_layer(name: str, threshold: float) -> None:
            set_worth(name, threshold)
            if self.on_layer:
                self.on_layer(name, threshold)

        balance_thresholds(
            model,
            batches,
            q=settings.percentile,
            timesteps=settings.calibration_timesteps,
            on_layer=on_layer,
            ceilings=found.ceilings,
        )
        if settings.scale == "auto":
            agree_thresholds(model, batches, on_layer=set_worth)
        else:
            with torch.no_grad():
                for node in model.nodes().values():
                    node.v_threshold.mul_(settings.scale)
        if model.folded:
            fold_thresholds(model, batches[0][:2])
        if settings.norm_statistics == "calibrate":
            reestimate_statistics(model, batches)
        else:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.reset_running_stats()
        for node in model.nodes().values():
            node.v_threshold.requires_grad_(True)
        return model.to(memory_format=layout).eval()


def _structure(
    backbone: nn.Module, settings: ConversionSettings, facts: ConvertedFacts, source: dict[str, Any]
) -> SpikingClassifier:
    separate(backbone)
    surrogate, channels = Surrogate.parse(settings.surrogate), facts.channels or {}

    def node(name: str) -> SpikingActivation:
        lif = ThresholdLIF(
            leak=settings.leak,
            reset=settings.reset,
            surrogate=surrogate,
            channels=channels.get(name),
        )
        return SpikingActivation(lif, settings.timesteps)

    (facts.plan or Plan(nodes=tuple(_relus(backbone)))).apply(backbone, node, settings.pooling)
    return SpikingClassifier(
        backbone,
        timesteps=settings.timesteps,
        mean=facts.mean,
        std=facts.std,
        repeat_at=facts.repeat_at or "",
        settings={
            **settings.model_dump(mode="json", exclude={"per_channel"}),  # see channels
            **facts.model_dump(mode="json"),
        },
        source=source,
    )


def _relus(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]


def _recorded(network: nn.Module, found: Scan) -> Plan | None:
    """The plan, or None where it says no more than that every nn.ReLU module is a node."""
    plan = found.plan
    return (
        None
        if not (plan.rewrites or plan.turns) and set(plan.nodes) == set(_relus(network))
        else plan
    )


@torch.no_grad()
def _check(model: SpikingClassifier, images: Tensor, found: Scan) -> None:
    """Raise SJRobustError unless each node is called once and, with ReLUs in the place of nodes,
    the logits are the ANN's."""
    with recorded_calls(model.backbone) as calls, model.gradient("activation"):
        logits = model(images)
    if odd := next((name for name in model.nodes() if calls[name] != 1), None):
        raise SJRobustError(
            f"the ReLU {odd} is called {calls[odd]} times in one forward pass: give each call a"
            " module of its own"
        )
    scale = max(1.0, float(found.logits.abs().max()))
    if not found.replaced and not torch.allclose(
        logits, found.logits, rtol=1e-3, atol=1e-3 * scale
    ):
        raise SJRobustError(
            f"with its activations in modules of their own, {type(model.backbone).__name__}"
            " computes other logits: a relu function works in place on a tensor that is used"
            " again; let what comes later use its output"
        )


@torch.no_grad()
def _check_training(backbone: nn.Module, x: Tensor) -> None:
    """Raise SJRobustError where the network returns more than logits once it is trained, such as
    those of auxiliary heads."""
    with torch.random.fork_rng(devices=[]):
        try:
            output = copied(backbone).train()(x)
        # a batch norm that has one value a channel, as the sample is small: no statement on the
        # network
        except ValueError:
            return
    if not isinstance(output, Tensor):
        raise SJRobustError(
            f"{type(backbone).__name__} returns {type(output).__name__} in training mode, expected"
            " logits alone: switch its auxiliary heads off (aux_logits=False in torchvision)"
        )


@torch.no_grad()
def _find_repeat(model: SpikingClassifier, images: Tensor) -> str:
    """The first node in order of execution, if repeating there instead of at the input leaves the
    logits the same."""
    steps = model.timesteps
    try:
        model.timesteps = 1
        with recorded_calls(model.backbone) as calls:
            model(images)
        first = next(name for name in calls if name in model.activations())
        # 2 images, 3 steps: a skip connection around the first node cannot fit both
        model.timesteps = 3
        expected = model(images)
        model.repeat_at = first
        try:
            same = torch.allclose(model(images), expected, rtol=1e-4, atol=1e-5)
        except (RuntimeError, SJRobustError):
            same = False
        return first if same else ""
    finally:
        model.timesteps = steps
        model.repeat_at = ""
