"""How fast a spiking network answers: accuracy, clean and under attack, after each of its time
steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.allocator import keep_large_blocks
from sj_robust.attack import Attack, GradientView, evaluation_mode, parse_attack
from sj_robust.budget import Radius, radii
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError, first_line
from sj_robust.evaluation import facts
from sj_robust.evaluation.ensemble import noise_seed
from sj_robust.evaluation.judge import (
    Judge,
    check_ball,
    check_fit,
    device_of,
    fitted,
    image_count,
    true_forward,
)
from sj_robust.evaluation.plan import check_classes
from sj_robust.evaluation.report import Accuracy, Facts, Measurement, eps_name
from sj_robust.evaluation.words import first_only
from sj_robust.model import PurifiedSNN, SpikingJellyClassifier, SpikingModel, expose
from sj_robust.neuron import View, view_name
from sj_robust.phrases import ruled
from sj_robust.progress import Bar, bar

IMAGES, ROBUST_IMAGES = 256, 64


class RobustLatency(Facts):
    """Robust accuracy at one eps of the network truncated to t = 1…T steps.

    Attributes:
        accuracy: `accuracy[t - 1]` at t; each truncated network is attacked as it is.
    """

    eps: float
    attack: str
    settings: dict[str, Any]
    view: str
    accuracy: list[Accuracy]


class Latency(Measurement):
    """The result of `measure_latency`.

    Lists are over t = 1…T; accuracies have Wilson 95 % intervals.

    Attributes:
        clean: `clean[t - 1]` is the accuracy of the mean of the first t logits.
        agreement: `agreement[t - 1]` are images whose answer at t is that at T.
        steps_to_agree: mean of the first t at which an image has its final answer.
        steps_to_settle: mean of the t from which it keeps it.
    """

    clean: list[Accuracy]
    agreement: list[Accuracy]
    steps_to_agree: float
    steps_to_settle: float
    robust: list[RobustLatency]
    seed: int
    batch_size: int
    device: str

    def summary(self) -> str:
        """A text table: a row for each t."""
        attacked = [f"{at.attack} {at.view} {eps_name(at.eps)}" for at in self.robust]
        rows = [
            [
                str(t),
                *(
                    str(column[t - 1])
                    for column in (self.clean, self.agreement, *(at.accuracy for at in self.robust))
                ),
            ]
            for t in range(1, len(self.clean) + 1)
        ]
        return "\n".join(
            [
                self.heading(),
                "",
                *ruled([["t", "clean", "agrees with T", *attacked], *rows]),
                "",
                f"steps until the final answer first shows  {self.steps_to_agree:.2f}",
                f"steps until it stays                      {self.steps_to_settle:.2f}",
                "",
                *self.limits,
            ]
        )


def measure_latency(
    snn: nn.Module,
    dataset: ImageDataset,
    *,
    eps: Radius | Sequence[Radius] = (),
    attack: str | None = None,
    view: View | str | None = None,
    max_images: int | None = None,
    robust_images: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> Latency:
    """Clean and robust accuracy of a spiking network that is read after t = 1…T of its steps.

    Reading after t steps is the network with `timesteps = t`: its nodes see no later step. Each of
    these networks is attacked on its own, with its own gradients and the same noise, and judged by
    its own spikes.

    Args:
        snn: a converted network, or one of `from_spikingjelly`. Its timesteps and training flags
            are restored whatever happens.
        eps: radii in units of [0, 1]; none, no attack. The cost of each is that of the attack times
            (T + 1) / 2.
        attack: a name as in `evaluate`; default pgd10.
        view: a name as in `evaluate`; default PCW:1.
        max_images: the first so many images; default 256, or all where there are fewer.
        robust_images: the first so many of these are attacked; default 64, or all where there are
            fewer.
        seed: as in `evaluate`; at t = T the attack is the same as there.
        device: the model is moved there; default: where it is.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: the model is not spiking, or its steps see later ones; data and model do not
            fit; settings are out of range.
    """
    started = time.monotonic()
    snn = expose(snn)
    if not isinstance(snn, SpikingModel):
        raise SJRobustError(
            f"a {type(snn).__name__} has no time steps: latency is measured of a spiking network"
        )
    dataset = fitted(dataset, snn)
    total = image_count(dataset, min(IMAGES, len(dataset)) if max_images is None else max_images)
    attacked = min(ROBUST_IMAGES, total) if robust_images is None else robust_images
    if not 1 <= attacked <= total:
        raise SJRobustError(
            f"robust_images is {attacked}: expected 1 to {total}, the images that are evaluated"
        )
    if batch_size < 1:
        raise SJRobustError(f"batch_size is {batch_size}: expected at least 1")
    attacks = [parse_attack(attack or "pgd10", value) for value in radii(eps)]
    given = {"attack": attack, "view": view, "robust_images": robust_images}
    view = "PCW:1" if view is None else view
    seen = GradientView(snn, view)
    if not attacks and (idle := [name for name, value in given.items() if value is not None]):
        raise SJRobustError(
            f"{idle[0]} has no effect without eps: name a radius such as 8/255, or leave it out"
        )
    where = device_of(snn, device)
    judge = Judge(snn.to(where), dataset, where, batch_size)
    with keep_large_blocks(), evaluation_mode(snn), true_forward(snn):
        num_classes = check_fit(judge, total)
        check_classes(attacks, num_classes)
        check_truncation(judge, snn)
        answers = answers_by_step(judge, snn, total, show_progress)
        correct = answers == dataset.labels[:total].cpu()
        work = len(attacks) * sum(
            t * int(right[:attacked].sum()) for t, right in enumerate(correct, start=1)
        )
        with bar("attacks", work, unit="image steps", show=show_progress) as progress:
            robust = [
                _robust(judge, snn, seen, made, correct[:, :attacked], seed, progress)
                for made in attacks
            ]
    same = answers == answers[-1]
    return Latency(
        model=facts.model_facts(snn, num_classes),
        dataset=facts.dataset_facts(dataset, total),
        clean=[Accuracy.of(int(right.sum()), total) for right in correct],
        agreement=[Accuracy.of(int(agrees.sum()), total) for agrees in same],
        steps_to_agree=float(same.int().argmax(0).double().mean()) + 1,
        steps_to_settle=snn.timesteps
        + 1
        - float(same.flip(0).long().cumprod(0).sum(0).double().mean()),
        robust=robust,
        limits=_limits(attacks, view_name(seen.view), attacked, total, len(dataset), seed),
        batch_size=batch_size,
        seed=seed,
        device=facts.device_name(where),
        seconds=time.monotonic() - started,
        versions=facts.versions(),
    )


@contextmanager
def truncated(snn: SpikingModel, timesteps: int) -> Iterator[None]:
    """Read `snn` after so many steps while the block runs."""
    before = snn.timesteps
    try:
        snn.timesteps = timesteps
        yield
    finally:
        snn.timesteps = before


def check_truncation(judge: Judge, snn: SpikingModel) -> None:
    """Raise SJRobustError unless fewer steps are the first ones of all steps; ours are by
    construction."""
    inner = snn
    while isinstance(inner, PurifiedSNN):
        inner = inner.snn
    if not isinstance(inner, SpikingJellyClassifier) or snn.timesteps == 1:
        return
    _, x, _ = next(iter(judge.batches(torch.arange(1))))
    with torch.no_grad():
        every = snn.forward_sequence(x)
        if inner.input == "images" or len(every) != snn.timesteps:
            raise SJRobustError(
                "this network returns no logits of every step: latency needs one that is given"
                " steps and returns [T, N, K]"
            )
        for t in {1, snn.timesteps - 1}:
            try:
                with truncated(snn, t):
                    first = snn.forward_sequence(x)
            except (RuntimeError, ValueError, IndexError) as error:
                reason = first_line(error)
                raise SJRobustError(
                    f"this network does not run for {t} steps ({reason}): its latency cannot be"
                    " measured"
                ) from None
            if first.shape != every[:t].shape or not torch.allclose(
                first, every[:t], rtol=1e-4, atol=1e-4
            ):
                raise SJRobustError(
                    "the steps of this network see later ones, or how many there are: its latency"
                    " cannot be measured"
                )


def answers_by_step(
    judge: Judge, snn: SpikingModel, total: int, show_progress: bool | None
) -> Tensor:
    """Classes int64 [T, total] after each step, on the CPU."""
    found = []
    with bar("clean", total, show=show_progress) as progress, torch.no_grad():
        for chosen, x, _ in judge.batches(torch.arange(total)):
            logits = snn.forward_sequence(x)
            if not torch.isfinite(logits).all():
                reason = "its weights or thresholds are broken"
                raise SJRobustError(
                    f"the model gives logits that are not finite for {judge.dataset.name}: {reason}"
                )
            # Means one by one, not a running sum: rounded as the truncated network rounds its own.
            found.append(
                torch.stack([logits[:t].mean(0).argmax(1) for t in range(1, len(logits) + 1)]).cpu()
            )
            progress.advance(len(chosen))
    return torch.cat(found, dim=1)


def _robust(
    judge: Judge,
    snn: SpikingModel,
    seen: GradientView,
    attack: Attack,
    correct: Tensor,
    seed: int,
    progress: Bar,
) -> RobustLatency:
    """`correct` bool [T, n]: clean outcomes of the first n images; only what is right as it is gets
    attacked."""
    view, accuracy = view_name(seen.view), []
    for t, right in enumerate(correct, start=1):
        progress.note(f"eps {eps_name(attack.eps)} {attack.name} t={t}")
        standing = 0
        with truncated(snn, t):
            for chosen, x, y in judge.batches(right.nonzero().flatten()):
                x_adv = attack(
                    seen, x, y, seed=noise_seed(seed, attack, view), ids=chosen.to(judge.device)
                )
                check_ball(x_adv, x, attack, view)
                standing += int((judge.predict(x_adv) == y).sum())
                progress.advance(t * len(chosen))
        accuracy.append(Accuracy.of(standing, len(right)))
    return RobustLatency(
        eps=attack.eps, attack=attack.name, settings=attack.settings, view=view, accuracy=accuracy
    )


def _limits(
    attacks: list[Attack], view: str, attacked: int, evaluated: int, size: int, seed: int
) -> list[str]:
    """Honest statements on what the numbers do not show."""
    statements = [
        "Steps are those of the simulation: they say nothing about milliseconds on any hardware."
    ]
    if attacks:
        statements += [
            (
                f"Robust accuracy, on the first {attacked} images, is an upper bound: "
                f"one attack ({attacks[0].name}), one gradient view ({view}), one seed ({seed})."
            ),
            (
                "The attacker knows after which step the answer is read; one that does not may"
                " break fewer images."
            ),
        ]
    return [*statements, *first_only(evaluated, size)]
