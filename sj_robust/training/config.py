"""What a training run is: one validated, frozen model, and the named presets of both kinds of
run."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sj_robust.budget import Budget
from sj_robust.errors import SJRobustError
from sj_robust.settings import Growing, checked

Kind = Literal["ann", "finetune"]
Method = Literal["natural", "pgd", "trades", "trades-rfgsm", "mart", "ibp"]


class TrainConfig(Growing):
    """Settings of `train_ann` and `finetune`.

    They are everything that decides the final weights besides model and data. Budgets (`eps`,
    `alpha`, `step_size`) are l-infinity distances on images in [0, 1] and may be written "8/255".
    """

    LATE = ("kappa", "warmup", "ramp", "poison", "half_weights")

    method: Method = Field(
        default="pgd",
        description=(
            "loss and training attack. natural: cross-entropy; pgd: cross-entropy on PGD images"
            " (Madry et al. 2018; with attack_steps=1 one-step training as in Wong et al. 2020);"
            " trades: CE + beta*KL with PGD on the KL (Zhang et al. 2019); trades-rfgsm: the same"
            " with RFGSM (Özdenizci & Legenstein 2024); mart: boosted CE on PGD images +"
            " beta*KL weighted by 1 - p_y (Wang et al. 2020); ibp: cross-entropy of clean logits"
            " and of the worst ones that interval bounds leave open (Gowal et al. 2018), of ANNs"
        ),
    )
    epochs: float = Field(
        default=10,
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="passes over the images; fractions allowed",
    )
    batch_size: int = Field(default=128, ge=1, le=65_536, description="images in a step")
    lr: float = Field(
        default=0.05, gt=0, le=10, allow_inf_nan=False, description="peak learning rate"
    )
    schedule: Literal["cosine", "onecycle"] = Field(
        default="onecycle", description="of the learning rate, down to 0 at the end"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(default=False, description="Nesterov's momentum")
    weight_decay: float = Field(
        default=5e-4, ge=0, le=1, description="of convolutions and linear layers"
    )
    decay_all: bool = Field(
        default=False,
        description="also decay thresholds, biases and batch norm, as the reference does",
    )
    eps: Budget = Field(
        default=4 / 255, description="radius of the training attack and of the validation attack"
    )
    attack_steps: int = Field(
        default=1, ge=1, le=1000, description="PGD steps of pgd, trades and mart"
    )
    step_size: Budget | None = Field(
        default=None,
        description="of PGD; without it 2.5*eps/attack_steps, and 1.25*eps for one step",
    )
    alpha: Budget | None = Field(default=None, description="RFGSM's random step; without it eps/2")
    attack_loss: Literal["kl", "ce"] = Field(
        default="kl",
        description=(
            "what the attack of trades and trades-rfgsm ascends: the KL of the "
            "outer loss, as in the papers, or the cross-entropy with the label"
        ),
    )
    beta: float = Field(
        default=6,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description=(
            "weight of the KL term of trades, trades-rfgsm and "
            "mart (6, 2 and 4 in Özdenizci & Legenstein 2024)"
        ),
    )
    gradient_penalty: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description=(
            "weight of the squared l1 norm of "
            "the input gradient of the label's probability against its rival (SR: Liu et al. 2024)"
        ),
    )
    consistency: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description=(
            "weight of the divergence of each "
            "time step's prediction from that of all steps (spiking networks only)"
        ),
    )
    kappa: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="weight of the clean cross-entropy of ibp at the end; without it 0.5",
    )
    warmup: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="part of the steps of ibp at eps 0 and kappa 1; without it 0.05",
    )
    ramp: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="part of the steps after it in which both move to their end; without it 0.5",
    )
    augmentation: Literal["none", "crop-flip", "crop-flip-cutout", "resized-crop-flip"] = Field(
        default="crop-flip",
        description=(
            "of the training images. crop-flip: shift by up to 4 pixels and mirror;"
            " resized-crop-flip, for large images: resize a random part of each and mirror"
        ),
    )
    crop_scale: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="part of the area that resized-crop-flip keeps at least; without it 0.08",
    )
    learn_thresholds: bool = Field(
        default=True, description="train the firing thresholds; False keeps them as converted"
    )
    threshold_min: float = Field(
        default=0.03, gt=0, le=100, description="learned thresholds never fall below this"
    )
    ema: float = Field(
        default=0,
        ge=0,
        lt=1,
        description=(
            "decay of an exponential moving average of the weights, which is then what is "
            "validated and kept; 0: off"
        ),
    )
    validation: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="training images held out to select the best step",
    )
    validation_steps: int = Field(
        default=5, ge=1, le=1000, description="PGD steps of the validation attack"
    )
    validate_every: float = Field(
        default=1, gt=0, le=10_000, description="epochs between validations"
    )
    poison: str | None = Field(
        default=None,
        description=(
            "of the training set: a trigger or flip, then rate=, target= and labels=dirty or clean,"
            " such as patch:3:rate=0.05:target=0 (triggers: patch:SIZE, blended:ALPHA,"
            " sine:FREQUENCY:AMPLITUDE); drawn by the seed"
        ),
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    checkpoint_minutes: float = Field(
        default=10, gt=0, le=1e6, description="minutes between saved states (and one every epoch)"
    )
    checkpointing: bool = Field(
        default=False,
        description="recompute each block in the backward pass, to save memory; same weights",
    )
    precision: Literal["float32", "bf16", "fp16"] | None = Field(
        default=None,
        description=(
            "of the training passes: float32 (without it) "
            "or torch's autocast to bf16 or fp16; validation is in float32"
        ),
    )
    half_weights: bool = Field(
        default=False,
        description=(
            "round the trained weights to float16 at the end: a checkpoint holds exactly these, in"
            " half the bytes, and loads them as float32"
        ),
    )
    log_every: int = Field(
        default=20, ge=1, le=1_000_000, description="steps per line of log.jsonl"
    )

    @field_validator("poison")
    @classmethod
    def _known_poison(cls, poison: str | None) -> str | None:
        if poison is None:
            return None
        from sj_robust.threats.poison import parse_poison  # and with it torch

        return str(parse_poison(poison))

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.alpha is not None and self.alpha > self.eps:
            raise ValueError(
                f"alpha {self.alpha:g} is larger than eps {self.eps:g}: RFGSM's random step is a"
                " part of eps"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.crop_scale and self.augmentation != "resized-crop-flip":
            raise ValueError(
                f"crop_scale is of the augmentation resized-crop-flip, not {self.augmentation}:"
                " leave one of them out"
            )
        late = [name for name in ("kappa", "warmup", "ramp") if getattr(self, name) is not None]
        if late and self.method != "ibp":
            raise ValueError(f"{late[0]} is of the method ibp, not {self.method}: leave it out")
        if self.method == "ibp" and self.checkpointing:
            raise ValueError("the method ibp does not go with checkpointing: leave one of them out")
        # its pass is in eval mode, and would be recomputed in training mode
        if self.gradient_penalty and self.checkpointing:
            raise ValueError(
                "gradient_penalty does not go with checkpointing: leave one of them out"
            )
        return self


_ANN_PAPER = TrainConfig(
    method="trades",
    epochs=200,
    batch_size=64,
    lr=0.1,
    schedule="cosine",
    weight_decay=5e-4,
    decay_all=True,
    eps=2 / 255,
    attack_steps=10,
    step_size=0.5 / 255,
    beta=6,
    augmentation="crop-flip-cutout",
    validation_steps=10,
)
_ANN_DEFAULT = TrainConfig(
    method="pgd",
    epochs=15,
    batch_size=128,
    lr=0.05,
    schedule="onecycle",
    eps=4 / 255,
    attack_steps=1,
)
_SNN_PAPER = TrainConfig(
    method="trades-rfgsm",
    epochs=60,
    batch_size=64,
    lr=1e-3,
    schedule="cosine",
    weight_decay=1e-3,
    decay_all=True,
    eps=2 / 255,
    alpha=1 / 255,
    beta=2,
    augmentation="crop-flip-cutout",
)
_SNN_DEFAULT = TrainConfig(
    method="pgd",
    epochs=2,
    batch_size=64,
    lr=0.02,
    schedule="cosine",
    eps=4 / 255,
    beta=2,
    validation=500,
    validation_steps=3,
    validate_every=0.5,
)

# Settings that came after the first runs default to None, which leaves the key of a finished stage
# as it was (see `recipes.run`).

# without a say in weights or log: they may change on resume
FREE_FIELDS = {"checkpoint_minutes", "checkpointing"}

PRESETS: dict[Kind, dict[str, TrainConfig]] = {
    "ann": {"paper": _ANN_PAPER, "default": _ANN_DEFAULT},
    "finetune": {"paper": _SNN_PAPER, "default": _SNN_DEFAULT},
}
"""`paper`: the settings of Özdenizci & Legenstein (TMLR 2024), with weight decay on every parameter
as their code has it, but the best epoch picked on held-out training images. `default`: what pays on
a small budget, for the adversary of 4/255; for spiking networks one-step PGD training, which in
equal time did best on held-out training images (scripts/finetuning_methods.py)."""


def preset(kind: Kind, name: str = "default", **changes: Any) -> TrainConfig:
    """The preset `name` for `kind` with `changes` applied.

    Args:
        kind: "ann" or "finetune".
        **changes: fields of TrainConfig; None leaves a field as it is.

    Raises:
        SJRobustError: an unknown preset or field, or a value out of its bounds.
    """
    if name not in PRESETS[kind]:
        raise SJRobustError(
            f"no preset {name!r} for {kind}: choose one of {', '.join(PRESETS[kind])}"
        )
    return validated(
        {
            **PRESETS[kind][name].model_dump(),
            **{key: value for key, value in changes.items() if value is not None},
        }
    )


def validated(fields: dict[str, Any]) -> TrainConfig:
    """A TrainConfig from plain fields.

    Raises:
        SJRobustError: names, in one line, the first thing that is wrong with them.
    """
    return checked(TrainConfig, fields, "training setting ")


def scheduled(config: TrainConfig, step: int, total: int) -> TrainConfig:
    """The settings of `step`: with ibp, eps rises from 0 and kappa falls from 1 (Gowal et al. 2018,
    section 4), linearly between the warm-up and the end of the ramp. Bounds of an untrained network
    are so wide that the whole eps at once teaches it to answer the same for every image."""
    if config.method != "ibp":
        return config
    kappa = 0.5 if config.kappa is None else config.kappa
    warmup = 0.05 if config.warmup is None else config.warmup
    ramp = 0.5 if config.ramp is None else config.ramp
    done = step / total - warmup
    part = min(1.0, max(0.0, done / ramp if ramp else float(done >= 0)))
    return config.model_copy(update={"eps": part * config.eps, "kappa": 1 - part * (1 - kappa)})


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of `step` (0 ≤ step < total).

    It is a pure function, so that a resumed run needs no scheduler state. cosine: Loshchilov &
    Hutter 2017, one period down to 0, per step. onecycle: Smith & Topin 2018 with the constants of
    torch's OneCycleLR (start lr/25, peak after 30 % of the steps, end lr/250,000, cosine in
    between).
    """
    if config.schedule == "cosine":
        return 0.5 * config.lr * (1 + math.cos(math.pi * step / total))
    start, end, peak = config.lr / 25, config.lr / 250_000, max(0.0, 0.3 * total - 1)
    if step <= peak:
        return _anneal(start, config.lr, step / peak if peak > 0 else 1.0)
    return _anneal(config.lr, end, (step - peak) / (total - 1 - peak))


def _anneal(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(max(part, 0.0), 1.0)))
