"""Bounds on the logits of a whole network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from sj_robust.bounds.interval import ROUNDOFF, Arithmetic, Bounds, Interval, refuse
from sj_robust.bounds.node import bounded_activation
from sj_robust.budget import Radius, radius
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingClassifier, SpikingModel, expose
from sj_robust.model.images import checked_labels
from sj_robust.model.mode import evaluation_mode
from sj_robust.model.unwrap import unwrap


@torch.no_grad()
def interval_bounds(model: nn.Module, images: Tensor, eps: Radius) -> Bounds:
    """Bounds on the logits of all images within l∞ distance `eps` that lie in [0, 1].

    Interval bound propagation (Gowal et al. 2018, section 3.1), for an ANN and for a converted
    spiking network over all of its T steps (`spike_bounds`). They hold for the network as it
    computes in float32, in eval mode and by its true spikes: each sum is widened by what its
    roundings can be, whatever their order. Not covered are TF32, autocast, and convolutions by
    Winograd's or Fourier transforms.

    Args:
        model: of convolutions, linear layers, batch norm, ReLU or spiking nodes, pooling and sums;
            images in [0, 1] → logits [N, K].
        images: float [N, C, H, W] in [0, 1].
        eps: in units of [0, 1], also written "8/255".

    Returns:
        lower and upper logits, float64 [N, K].

    Raises:
        SJRobustError: a layer or function of which no bounds are known, by its name.
    """
    with evaluation_mode(expose(model)):
        found = propagated(model, ball(images, radius(eps)), Arithmetic(ROUNDOFF))
    mean = found.mean_over_time()
    return mean.lower, mean.upper


@torch.no_grad()
def margin_bounds(model: nn.Module, images: Tensor, labels: Tensor, eps: Radius) -> Tensor:
    """Lower bounds on the margin of the label over every other class, z_y − z_k.

    An image is certified where all are above 0: no image in its ball is classified otherwise. What
    the last linear layer gives is bounded for each difference of two logits at once, which is
    tighter than two of `interval_bounds` (Gowal et al. 2018, section 3, "elision of the last
    layer"). For the rest see `interval_bounds`.

    Args:
        labels: int [N].

    Returns:
        float64 [N, K]; infinity at the label itself.

    Raises:
        SJRobustError: as of `interval_bounds`; a label that is none of the classes.
    """
    with evaluation_mode(expose(model)):
        found = propagated(model, ball(images, radius(eps)), Arithmetic(ROUNDOFF))
        return margins(found, checked_labels(labels, len(images), found.shape[-1]))


def training_margins(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, statistics: Mapping[int, Bounds]
) -> Tensor:
    """`margin_bounds` as they are trained: in the network's own precision and with gradients, 0 at
    the label itself. A batch norm in training mode has its `statistics` (`recorded_statistics`),
    and counts no further batch."""
    counts = [count for norm in _norms(model) if (count := norm.num_batches_tracked) is not None]
    before = [count.clone() for count in counts]
    try:
        found = propagated(model, ball(x, eps, x.dtype), Arithmetic(statistics=statistics))
    finally:
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
    return margins(found, y).scatter(1, y[:, None], 0)


def ball(images: Tensor, eps: float, dtype: torch.dtype = torch.float64) -> Bounds:
    """The images within `eps` that lie in [0, 1]."""
    x = images.to(dtype)
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def propagated(model: nn.Module, box: Bounds, arithmetic: Arithmetic) -> Interval:
    """The logits [N, K], or [T·N, K] of every step, of all images in `box` [N, C, H, W]."""
    model = unwrap(expose(model))
    x = Interval(*box, arithmetic)
    if isinstance(model, SpikingModel) and not isinstance(model, SpikingClassifier):
        refuse(f"a {type(model).__name__}")
    if not isinstance(model, NormalizedClassifier):
        return _checked(model(x))
    if any(isinstance(part, NormalizedClassifier) for part in model.backbone.modules()):
        refuse("a classifier inside another, as behind a purifier")
    if type(model).forward not in (NormalizedClassifier.forward, SpikingModel.forward):
        refuse(f"a {type(model).__name__}")
    mean, scale = (value.to(x.dtype) for value in (model.mean, 1 / model.std.to(x.dtype)))
    x = x.affine(lambda value: value * scale, lambda value: value * scale, 4, -mean * scale)
    if isinstance(model, SpikingClassifier):
        x = x if model.repeat_at else x.repeated(model.timesteps)
        with _bounded_nodes(model):
            return _checked(model.backbone(x))
    return _checked(model.backbone(x))


def margins(found: Interval, labels: Tensor) -> Tensor:
    """Lower bounds [N, K] of z_y − z_k from what `propagated` returned; infinity at the label."""
    if found.read is None:
        mean = found.mean_over_time()
        least = mean.lower.gather(1, labels[:, None]) - mean.upper
    else:
        least = _elided(*found.read, labels)
    return least.scatter(1, labels[:, None], torch.inf)


def _elided(x: Interval, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Of logits `weight`·x + `bias`, or their mean over time."""
    steps = x.timesteps or 1
    lower, upper = (x.lower, x.upper) if x.totals is None else x.totals
    n, size = len(lower) // steps, x.largest
    lower, upper = lower[-n:] / steps, upper[-n:] / steps
    size = size.unflatten(0, (steps, n)).mean(0)
    centre, radius = (upper + lower) / 2, (upper - lower) / 2
    logits = centre @ weight.T
    if bias is not None:
        logits = logits + bias
    spread = (weight[labels][:, None] - weight).abs()
    least = logits.gather(1, labels[:, None]) - logits - torch.einsum("nkd,nd->nk", spread, radius)
    if slack := (weight.shape[1] + steps + 4) * x.arithmetic.roundoff:
        sizes = size @ weight.abs().T + (0 if bias is None else bias.abs())
        least = least - slack * (sizes + sizes.gather(1, labels[:, None]))
    return least


def _checked(found: object) -> Interval:
    if not isinstance(found, Interval) or found.dim() != 2:
        raise SJRobustError("the network returns something else than logits [N, K]: no bounds")
    return found


@contextmanager
def _bounded_nodes(model: SpikingClassifier) -> Iterator[None]:
    """Within the block spiking activations take intervals."""
    activations = model.activations().values()
    for activation in activations:
        activation.forward = partial(bounded_activation, activation)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for activation in activations:
            del activation.forward


@contextmanager
def recorded_statistics(model: nn.Module) -> Iterator[Mapping[int, Bounds]]:
    """Mean and biased variance [C] of what every batch norm in training mode gets in the block, by
    the id of its running mean: bounds take a batch norm as it was for the images themselves.

    Raises SJRobustError for one without running statistics, and one that is called twice."""
    found: dict[int, Bounds] = {}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm.running_mean is None:
            refuse("a batch norm without running statistics")
        if norm.training:
            if id(norm.running_mean) in found:
                refuse("a batch norm that is called twice, in training mode")
            axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
            variance, mean = torch.var_mean(inputs[0], axes, correction=0)
            found[id(norm.running_mean)] = mean, variance

    handles = [norm.register_forward_pre_hook(note) for norm in _norms(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
