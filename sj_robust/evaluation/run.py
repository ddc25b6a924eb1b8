"""Clean and robust accuracy of a classifier, spiking or not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sj_robust.attack import Norm
from sj_robust.budget import Radius
from sj_robust.data import ImageDataset
from sj_robust.evaluation.evaluation import Evaluation
from sj_robust.evaluation.grid import Grid
from sj_robust.evaluation.options import Options
from sj_robust.evaluation.protocol import AttackMaker, Protocol
from sj_robust.evaluation.report import Report
from sj_robust.evaluation.roughness import IMAGES
from sj_robust.evaluation.settings import RADII
from sj_robust.neuron import View


def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    protocol: str | Protocol | None = None,
    eps: Radius | Sequence[Radius] | None = None,
    attacks: Sequence[AttackMaker] | None = None,
    views: Sequence[View | str] | None = None,
    transfer: Mapping[str, nn.Module] | None = None,
    norm: Norm = "linf",
    grid: Grid | None = None,
    restarts: int = 1,
    survivors_only: bool = True,
    check_images: int = 64,
    roughness_images: int | None = None,
    max_images: int | None = None,
    time_limit: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    extend: Report | None = None,
    adversarial: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    show_progress: bool | None = None,
) -> Report:
    """Clean and robust accuracy under an ensemble of attacks and gradient views.

    Balls are l∞ or l2. Every success is judged by the model's own forward pass in eval mode (of a
    spiking network the true spikes), and every adversarial image is checked to be finite, within
    eps and in [0, 1]. Images that are wrong as they are count as not robust. An image broken at a
    smaller eps is broken at a larger one: its adversarial image lies in that ball too. Source:
    ensemble of Özdenizci & Legenstein, TMLR 2024, section 4.3; for the protocols see
    `sj_robust.evaluation.protocol`.

    The energy of one inference is estimated on the first 64 images, as `measure_energy` does it.

    Started by torchrun or accelerate, the processes share the images, and each returns the report
    that one alone would make.

    Args:
        model: images float32 [N, C, H, W] in [0, 1] → logits [N, K], K ≥ 2. Its training flags are
            restored.
        dataset: or what `as_dataset` takes, such as a DataLoader of (images, labels). Where it and
            the model name their classes, labels are mapped to the model's.
        protocol: "quick", "paper", "strong" or "autoattack" (or "strong@1"), in place of `attacks`
            and `views`; "autoattack" may be given other `views`. With two or three classes it runs
            what `for_few_classes` says, which the report has among its limits.
        eps: radii in units of [0, 1], one or several in any order, also written "8/255"; the report
            has them ascending. Default 2/255, 4/255 and 8/255, under l2 0.25, 0.5 and 1.
        attacks: names that `parse_attack` knows, or anything that called with eps=… gives an attack
            (`functools.partial(PGD, steps=50)`); default FGSM and PGD-10. None at all, (), gives
            the clean accuracy alone.
        views: gradient views of a spiking network (converted, or wrapped by `from_spikingjelly`),
            default all 19 of `ENSEMBLE_VIEWS` (strongest first). None for other models.
        transfer: other models by name, such as the source ANN, whose gradients are tried as well;
            of the protocols, "strong" does so.
        norm: "linf" or "l2", for attacks given by name.
        grid: "8bit": an attacker who has to write a file. All models see images rounded to 256
            values a channel, and so do the attacks; each eps is lowered to a whole number of 1/255.
            For linf alone. Such a figure stands beside one without it, never for it.
        restarts: attempts of each attack that starts at random.
        survivors_only: attack only what is still standing, regrouped into full batches. False gives
            every view and attack every image, at several times the cost, so that the report has
            each one's accuracy alone.
        check_images: images for the reliability checks, which end the report with a verdict; 64
            takes about as long as "quick" on 200 images. 0: no checks.
        roughness_images: images on which roughness is measured, with 200 random points each, of the
            model and of those to transfer from; 0: none; default 64 where a protocol is named, else
            0.
        max_images: the first so many images only.
        time_limit: seconds after which no attack goes on; images not attacked by then count as
            robust, and the report says so.
        seed: noise depends on (seed, attack, view, index of the image) alone.
        journal: a file that keeps what is done, batch by batch, so that the same call goes on there
            after a kill, to the same report but for its cost, also with another batch size, device
            or number of processes. One of another evaluation is refused. To be removed once the
            report is safe.
        extend: a complete report of the same evaluation on fewer images, whose outcomes are taken
            over; the others are attacked. One that leaves nothing to do is returned.
        adversarial: a folder that gets the adversarial image of every image that falls, as it does:
            EPS/INDEX.npy, such as 8-255/000017.npy, float32 [C, H, W]. Where an image had fallen at
            a smaller eps it lies there; what `journal` or `extend` has is not found again.
        device: the model is moved there; default: where it is.
        show_progress: None draws a bar on a terminal, elsewhere it writes a line a minute; False
            shows nothing.

    Raises:
        SJRobustError: data and model do not fit, settings are out of range or without effect, an
            attack leaves its ball, or the report to extend is of another evaluation.
    """
    options = Options(
        protocol=protocol,
        eps=RADII.get(norm, RADII["linf"]) if eps is None else eps,
        attacks=attacks,
        views=views,
        transfer=dict(transfer or {}),
        norm=norm,
        grid=grid,
        restarts=restarts,
        survivors_only=survivors_only,
        check_images=check_images,
        roughness_images=(
            (0 if protocol is None else IMAGES) if roughness_images is None else roughness_images
        ),
        max_images=max_images,
        time_limit=time_limit,
        batch_size=batch_size,
        seed=seed,
        journal=journal,
        extend=extend,
        adversarial=adversarial,
        device=device,
        show_progress=show_progress,
    )
    return Evaluation(model, dataset, options).run()
