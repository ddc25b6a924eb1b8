"""A certificate by interval bounds: l∞ balls in which no image is classified otherwise.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models", 2018 (arXiv 1810.12715); for spiking networks see `sj_robust.bounds`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import PGD, GradientView, UniformNoise, evaluation_mode
from sj_robust.attack.base import BALL_TOLERANCE
from sj_robust.bounds import margin_bounds
from sj_robust.budget import Radius, radii
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import facts
from sj_robust.evaluation.certified import Certified, CertifiedAt
from sj_robust.evaluation.judge import (
    Judge,
    check_fit,
    count_passes,
    device_of,
    fitted,
    image_count,
    true_forward,
)
from sj_robust.evaluation.report import Accuracy, Facts, Measurement, eps_name
from sj_robust.evaluation.words import first_only
from sj_robust.model import SpikingModel, expose
from sj_robust.phrases import ruled
from sj_robust.progress import bar

VIEW = "PCW:1"


class BoundedAccuracy(Facts):
    """One radius.

    Attributes:
        certified: right in the whole ball, as the bounds show: a lower bound of robust accuracy.
        surviving: right, and not broken by random points and PGD: an upper bound. None where
            nothing was tried.
    """

    eps: float
    certified: Accuracy
    surviving: Accuracy | None


class BoundedImages(Facts):
    """Outcome of each image, in the order of the data set.

    Attributes:
        certified: the largest of the radii within which it is certified; None where there is none.
        broken: the smallest at which it was broken by what tried; None where it was not.
    """

    label: list[int]
    predicted: list[int]
    certified: list[float | None]
    broken: list[float | None]


class BoundSettings(Facts):
    """How the certificate was made.

    Attributes:
        attempts: random points, and PGD steps, that tried to contradict it at each radius.
        view: the gradient view of a spiking network that PGD ran through.
    """

    eps: list[float]
    attempts: int
    view: str | None
    ball_tolerance: float
    batch_size: int
    seed: int
    device: str


class IntervalCertificate(Measurement):
    """The result of `certify_intervals`.

    Intervals are Wilson 95 %.
    """

    clean: Accuracy
    results: list[BoundedAccuracy]
    per_image: BoundedImages
    settings: BoundSettings
    forward_images: int
    backward_images: int

    def summary(self) -> str:
        """A text table: a row for each radius."""
        rows = [
            [eps_name(at.eps), str(at.certified), str(at.surviving or "not tried")]
            for at in self.results
        ]
        tried = self.settings.attempts
        return "\n".join(
            [
                f"{self.heading()}, interval bounds",
                f"clean accuracy  {self.clean}",
                "",
                *ruled([["eps", "certified", "not broken"], *rows]),
                "",
                "The true robust accuracy lies between the two."
                + (f" Tried: {tried} random points and PGD-{tried}." if tried else ""),
                *self.limits,
            ]
        )

    def certified(self) -> Certified:
        """What a checkpoint records of it."""
        return Certified(
            method="interval bounds",
            norm="linf",
            model=self.model,
            dataset=self.dataset,
            points=[CertifiedAt(eps=at.eps, accuracy=at.certified) for at in self.results],
        )


def certify_intervals(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    eps: Radius | Sequence[Radius],
    attempts: int = 20,
    max_images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> IntervalCertificate:
    """Certified accuracy of `model` itself in l∞ balls, by interval bounds on its logits.

    An image is certified where it is right and every logit is below the label's in the whole ball
    (`sj_robust.bounds.margin_bounds`): for a spiking network over all of its T steps. Few networks
    that were not trained for it (`train_ann` with method "ibp") have any such image.

    What tries to contradict it are random points of the ball, and PGD. On a GPU TF32 is off while
    this runs: elsewhere the network has to run without it, too, for the certificate to hold.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K]; its training flags are
            restored.
        eps: radii in units of [0, 1], one or several, also written "2/255".
        attempts: random points for each image and radius, and steps of PGD; 0: none.
        max_images: the first so many images only.
        batch_size: images per forward pass; bounds take a fourth of it, and of a spiking network
            that divided by T.
        device: the model is moved there; default: where it is.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: data and model do not fit, settings are out of range, a layer of which no
            bounds are known; a certified image that was broken: the network does not compute as
            the bounds take it to.
    """
    started = time.monotonic()
    model = expose(model)
    dataset = fitted(dataset, model)
    total = image_count(dataset, max_images)
    ascending = radii(eps)
    for name, value, least in (("attempts", attempts, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise SJRobustError(f"{name} is {value}: expected at least {least}")
    if not ascending:
        raise SJRobustError("no eps: expected at least one radius, such as 2/255")
    where = device_of(model, device)
    judge = Judge(model.to(where), dataset, where, batch_size)
    spiking = isinstance(model, SpikingModel)
    seen = GradientView(model, VIEW) if spiking else model
    steps = model.timesteps if isinstance(model, SpikingModel) else 1
    at_once = max(1, batch_size // (4 * steps))
    labels = dataset.labels[:total].cpu()
    with (
        keep_large_blocks(),
        evaluation_mode(model),
        true_forward(model),
        _float32(where),
        bar("certify", total * len(ascending), show=show_progress) as progress,
    ):
        with count_passes(model, judge):
            num_classes = check_fit(judge, total)
            every = torch.arange(total)
            predicted = torch.cat([judge.predict(x).cpu() for _, x, _ in judge.batches(every)])
        right = predicted == labels
        shown = standing = right
        certified: list[float | None] = [None] * total
        broken: list[float | None] = [None] * total
        results = []
        for radius in ascending:
            shown = _bounded(model, judge, shown, radius, at_once)
            _note(certified, shown, radius)
            if attempts:
                with count_passes(model, judge):
                    survivors = _tried(judge, seen, standing, radius, attempts, seed)
                _note(broken, standing & ~survivors, radius)
                standing = survivors
                if contradicted := int((shown & ~standing).sum()):
                    raise SJRobustError(
                        f"{contradicted} images certified at eps {eps_name(radius)} were broken:"
                        " the network computes otherwise than its bounds, as with autocast or"
                        " transformed convolutions; certify it on the CPU"
                    )
            results.append(
                BoundedAccuracy(
                    eps=radius,
                    certified=Accuracy.of(int(shown.sum()), total),
                    surviving=Accuracy.of(int(standing.sum()), total) if attempts else None,
                )
            )
            progress.advance(total)
    return IntervalCertificate(
        model=facts.model_facts(model, num_classes),
        dataset=facts.dataset_facts(dataset, total),
        clean=Accuracy.of(int(right.sum()), total),
        results=results,
        per_image=BoundedImages(
            label=labels.tolist(), predicted=predicted.tolist(), certified=certified, broken=broken
        ),
        limits=_limits(spiking, total, len(dataset)),
        settings=BoundSettings(
            eps=ascending,
            attempts=attempts,
            view=VIEW if spiking and attempts else None,
            ball_tolerance=BALL_TOLERANCE,
            batch_size=batch_size,
            seed=seed,
            device=facts.device_name(where),
        ),
        forward_images=judge.passes.forward,
        backward_images=judge.passes.backward,
        seconds=time.monotonic() - started,
        versions=facts.versions(),
    )


@contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """Within the block a GPU multiplies in float32 and not in TF32, as cuDNN does by default."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        off = not (cudnn.allow_tf32 or matmul.allow_tf32)
    except RuntimeError:  # precisions that only the newer fp32_precision can tell
        off = False
    if not off:
        raise SJRobustError(
            "TF32 was allowed by fp32_precision, and cannot be turned off here: set"
            ' torch.backends.fp32_precision to "ieee" before, or certify on the CPU'
        )
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _bounded(model: nn.Module, judge: Judge, chosen: Tensor, eps: float, at_once: int) -> Tensor:
    """Which of the `chosen` images [n] are certified; bounds of a larger ball are no tighter."""
    found = torch.zeros_like(chosen)
    for indices in chosen.nonzero().flatten().split(at_once):
        x = judge.dataset.floats(indices).to(judge.device)
        y = judge.dataset.labels[indices].to(judge.device)
        # by which attacks may leave the ball
        margins = margin_bounds(model, x, y, min(1.0, eps + BALL_TOLERANCE))
        found[indices] = (margins.amin(1) > 0).cpu()
    return found


def _tried(
    judge: Judge, seen: nn.Module, chosen: Tensor, eps: float, attempts: int, seed: int
) -> Tensor:
    """Which of the `chosen` images [n] random points and PGD leave right."""
    standing = chosen.clone()
    for attack, source, view in (
        (UniformNoise(eps=eps, restarts=attempts), judge.model, "none"),
        (PGD(eps=eps, steps=attempts), seen, VIEW),
    ):
        for indices, x, y in judge.batches(standing.nonzero().flatten()):
            standing[indices] = ~judge.broken(attack, source, view, indices, x, y, seed)
    return standing


def _note(radius_of: list[float | None], where: Tensor, radius: float) -> None:
    for image in where.nonzero().flatten().tolist():
        radius_of[image] = radius


def _limits(spiking: bool, evaluated: int, size: int) -> list[str]:
    """Honest statements on what the numbers do not show."""
    statements = [
        (
            "The bounds hold for float32 with sums in any order; not for TF32, autocast or"
            " transformed convolutions."
        ),
        "An image that is not certified may be robust all the same: bounds widen layer by layer.",
    ]
    if spiking:
        statements.append(
            "Of the spikes of one layer the bounds know which number each neuron may have fired by"
            " each step, and nothing of how neurons go together."
        )
    return [*statements, *first_only(evaluated, size, "certified")]
