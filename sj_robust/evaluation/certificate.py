"""A certificate by randomised smoothing: l2 radii within which no perturbation changes the answer
of the smoothed classifier.

Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
section 3.2.2.
"""

from __future__ import annotations

import math
import time
import warnings

import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import evaluation_mode
from sj_robust.attack.noise import normal_like
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
from sj_robust.evaluation.report import Accuracy, Facts, Measurement
from sj_robust.evaluation.words import first_only
from sj_robust.model import expose
from sj_robust.model.images import OutsideWarning
from sj_robust.progress import bar


class CertifiedImages(Facts):
    """Outcome of each image, in the order of the data set.

    Attributes:
        predicted: class A, or None where the smoothed classifier abstains.
        radius: certified l2 radius of that prediction, right or wrong; 0 where it abstains.
        candidate: class A, which led `selection_votes` of the n0 selection samples.
        votes: how many of the n fresh samples gave it.
        p_lower: lower confidence bound of its probability under the noise.
    """

    label: list[int]
    predicted: list[int | None]
    radius: list[float]
    candidate: list[int]
    selection_votes: list[int]
    votes: list[int]
    p_lower: list[float]


class CertifiedAccuracy(Facts):
    """Images whose smoothed prediction is right and stays so within `radius`.

    No perturbation of a smaller l2 norm can change it.
    """

    radius: float
    accuracy: Accuracy


class CertificateSettings(Facts):
    """How the certificate was made.

    Attributes:
        sigma: in units of the image range [0, 1].
        confidence: 1 − alpha, for each image on its own.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    confidence: float
    batch_size: int
    seed: int
    device: str


class Certificate(Measurement):
    """The result of `certify`, which speaks of the smoothed classifier and of l2 balls alone.

    Intervals are Wilson 95 %.

    Attributes:
        smoothed: images predicted right, where an abstention counts as wrong.
        mean_radius: mean of the radii over all images, 0 for those not predicted right.
        curve: certified accuracy at ascending radii, up to the largest that n samples can show.
    """

    smoothed: Accuracy
    abstentions: int
    mean_radius: float
    curve: list[CertifiedAccuracy]
    per_image: CertifiedImages
    settings: CertificateSettings
    forward_images: int

    def certified(self) -> Certified:
        """What a checkpoint records of it."""
        return Certified(
            method="randomised smoothing",
            norm="l2",
            sigma=self.settings.sigma,
            model=self.model,
            dataset=self.dataset,
            points=[CertifiedAt(eps=at.radius, accuracy=at.accuracy) for at in self.curve],
        )

    def summary(self) -> str:
        """A text table: certified accuracy over l2 radius.

        Beside each the l∞ radius that the l2 ball contains.
        """
        settings = self.settings
        to_linf = 255 / math.sqrt(math.prod(self.dataset.image_shape))
        rows = [
            f"{point.radius:<9.3f}  {f'{point.radius * to_linf:.2f}/255':<13}  {point.accuracy}"
            for point in self.curve
        ]
        return "\n".join(
            [
                f"{self.heading()}, smoothed with Gaussian noise of sigma {settings.sigma:g}",
                f"smoothed accuracy      {self.smoothed}; {self.abstentions} abstained",
                f"mean certified radius  {self.mean_radius:.3f} (l2; 0 where wrong or abstained)",
                "",
                "l2 radius  l∞ at least    certified accuracy",
                "-" * 46,
                *rows,
                "",
                (
                    f"Each image's radius holds with confidence {100 * settings.confidence:g} %,"
                    " for the smoothed classifier and not for the"
                ),
                (
                    "network itself. The l∞ radius is l2/√d: the largest l∞ ball that the l2 ball"
                    " contains."
                ),
            ]
        )


def certify(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    max_images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> Certificate:
    """Certified l2 radii of the smoothed classifier of `model`.

    It is g(x) = the class that `model` gives x + N(0, σ²I) most often. The procedure CERTIFY of the
    paper (Cohen, Rosenfeld & Kolter, ICML 2019, section 3.2.2): n0 noisy copies choose class A; n
    fresh ones give pA, the one-sided Clopper–Pearson lower bound of its probability at confidence 1
    − alpha. With pA ≤ 1/2 g abstains, else g answers A everywhere within the l2 distance σ Φ⁻¹(pA).
    This holds for g, which answers by the same vote, and not for `model` on a single image; it says
    nothing about other norms beyond what an l2 ball contains. Noisy images are not clipped to [0,
    1]: the proof needs the noise as it is.

    Args:
        model: images float32 [N, C, H, W] → logits [N, K], also outside [0, 1]; a spiking model
            predicts by its true spikes. Best trained with Gaussian noise of about this σ. Its
            training flags are restored.
        sigma: standard deviation of the noise in units of the image range [0, 1], as are the radii.
        n0: samples per image that choose the class.
        n: samples per image that test it.
        alpha: probability, per image, that its radius is wrong.
        max_images: the first so many images only.
        batch_size: noisy copies per forward pass; no more than memory and time depend on it.
        seed: noise is a function of (seed, index of the image, number of the copy) alone.
        device: the model is moved there; default: where it is.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: data and model do not fit, or settings are out of range.
    """
    started = time.monotonic()
    model = expose(model)
    dataset = fitted(dataset, model)
    total = image_count(dataset, max_images)
    _check_settings(sigma, n0, n, alpha, batch_size)
    where = device_of(model, device)
    judge = Judge(model.to(where), dataset, where, batch_size)
    candidates, selection_votes, votes = [], [], []
    with (
        keep_large_blocks(),
        evaluation_mode(model),
        true_forward(model),
        count_passes(model, judge),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", OutsideWarning)  # noise is meant to lie outside
        num_classes = check_fit(judge, total)
        with bar("certify", total * (n0 + n), unit="noisy images", show=show_progress) as progress:
            for image in range(total):
                # The class is chosen on samples of its own: on those that test it the bound would
                # be too high.
                selection, fresh = _noisy_predictions(judge, image, n0 + n, sigma, seed).split(
                    [n0, n]
                )
                counts = selection.bincount(minlength=num_classes)
                candidates.append(int(counts.argmax()))
                selection_votes.append(int(counts.max()))
                votes.append(int((fresh == candidates[-1]).sum()))
                progress.advance(n0 + n)
    p_lower = [lower_bound(count, n, alpha) for count in votes]
    radius = [certified_radius(p, sigma) for p in p_lower]
    predicted = [a if p > 0.5 else None for a, p in zip(candidates, p_lower, strict=True)]
    labels = dataset.labels[:total].tolist()
    right = [r for r, a, label in zip(radius, predicted, labels, strict=True) if a == label]
    largest = certified_radius(lower_bound(n, n, alpha), sigma)
    grid = [step * sigma / 4 for step in range(int(4 * largest / sigma) + 1)]
    return Certificate(
        model=facts.model_facts(model, num_classes),
        dataset=facts.dataset_facts(dataset, total),
        smoothed=Accuracy.of(len(right), total),
        abstentions=predicted.count(None),
        mean_radius=sum(right) / total,
        curve=[
            CertifiedAccuracy(radius=at, accuracy=Accuracy.of(sum(r >= at for r in right), total))
            for at in grid
        ],
        per_image=CertifiedImages(
            label=labels,
            predicted=predicted,
            radius=radius,
            candidate=candidates,
            selection_votes=selection_votes,
            votes=votes,
            p_lower=p_lower,
        ),
        limits=_limits(total, len(dataset), alpha, seed),
        settings=CertificateSettings(
            sigma=sigma,
            n0=n0,
            n=n,
            alpha=alpha,
            confidence=1 - alpha,
            batch_size=batch_size,
            seed=seed,
            device=facts.device_name(where),
        ),
        forward_images=judge.passes.forward,
        seconds=time.monotonic() - started,
        versions=facts.versions(),
    )


def lower_bound(votes: int, n: int, alpha: float) -> float:
    """One-sided lower confidence bound, at 1 − alpha, of a probability that showed `votes` times in
    `n` (Clopper & Pearson, 1934)."""
    return 0.0 if votes == 0 else float(betaincinv(votes, n - votes + 1, alpha))


def certified_radius(p_lower: float, sigma: float) -> float:
    """σ Φ⁻¹(pA), the l2 radius of the paper's theorem 1 with pB ≤ 1 − pA; 0 where pA shows no
    majority."""
    return sigma * float(ndtri(p_lower)) if p_lower > 0.5 else 0.0


def _noisy_predictions(judge: Judge, image: int, copies: int, sigma: float, seed: int) -> Tensor:
    """Classes int64 [copies] of one image under noise, on the CPU."""
    x = judge.dataset.floats([image]).to(judge.device)
    found = []
    for numbers in torch.arange(copies).split(judge.batch_size):
        repeated = x.expand(len(numbers), *x.shape[1:])
        # A batch holds many draws of one image, so the draws go where the noise has a number per
        # row.
        noise = normal_like(repeated, seed, ids=numbers, draw=image)
        found.append(judge.predict(repeated + sigma * noise).cpu())
    return torch.cat(found)


def _check_settings(sigma: float, n0: int, n: int, alpha: float, batch_size: int) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise SJRobustError(
            f"sigma is {sigma}: expected more than 0, in units of the image range (0.25, not 64)"
        )
    if not 0 < alpha < 1:
        raise SJRobustError(
            f"alpha is {alpha}: expected between 0 and 1, the probability that a radius may be"
            " wrong (0.001)"
        )
    for name, value in (("n0", n0), ("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise SJRobustError(f"{name} is {value}: expected at least 1")
    if lower_bound(n, n, alpha) <= 0.5:
        needed = math.floor(-math.log2(alpha)) + 1
        raise SJRobustError(
            f"n is {n}: at alpha {alpha:g} not even {n} equal votes of {n} show a majority;"
            f" expected at least {needed}"
        )


def _limits(evaluated: int, size: int, alpha: float, seed: int) -> list[str]:
    """Honest statements on what the numbers do not show."""
    statements = [
        (
            "The radii hold for the smoothed classifier, which answers by a vote over noisy copies,"
            " not for the network itself."
        ),
        (
            "They are l2 radii; an l∞ ball of radius r/√d lies within the l2 ball of radius r, and"
            " nothing more is shown for l∞."
        ),
        (
            f"Each radius is wrong with probability at most {alpha:g}, image by image; the Wilson"
            " intervals cover the choice of images alone."
        ),
        (
            f"That probability is over the noise of one seed, {seed}, chosen beforehand: the best"
            " of several seeds has no such confidence."
        ),
        (
            "The proof is for exact arithmetic and Gaussian noise; here it is float32 and"
            " pseudo-random."
        ),
    ]
    return [*statements, *first_only(evaluated, size, "certified")]
