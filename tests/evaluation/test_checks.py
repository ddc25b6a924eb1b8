"""The reliability checks: models built to hide their gradients are found out, honest ones are not
accused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust.data import ImageDataset
from sj_robust.evaluation import Check, Report, evaluate
from sj_robust.model import NormalizedClassifier, SpikingClassifier

EPS = (6 / 255, 16 / 255)


class Wrapped(nn.Module):
    """`inner` behind a function of the images, its logits behind another."""

    def __init__(
        self,
        inner: nn.Module,
        images: Callable[[Tensor], Tensor] = lambda x: x,
        logits: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.inner, self.images, self.logits = inner, images, logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.inner(self.images(x)))


class RandomThresholds(nn.Module):
    """A ReLU that sets in at a random level, drawn anew in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - 0.5 * torch.rand_like(x))


class AlwaysTraining(nn.Module):
    """Batch norm that uses the statistics of the batch in eval mode too."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.norm.weight, self.norm.bias, training=True)


def status(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def by(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


def measured(model: nn.Module, dataset: ImageDataset, **settings: object) -> Report:
    return evaluate(
        model,
        dataset,
        **{
            "eps": EPS,
            "attacks": ["fgsm", "pgd10"],
            "max_images": 80,
            "check_images": 48,
            **settings,
        },
    )  # type: ignore[arg-type]


def test_an_honest_network_is_trusted(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    report = measured(ann, dataset, attacks=["pgd10", "sapgd50-dlr"], restarts=2)
    assert set(status(report).values()) == {"pass"}, report.summary()
    assert (
        report.verdict
        == "No sign of masked gradients in 9 checks. Tried: pgd10, sapgd50-dlr through the exact"
        " gradient. Not tried: targeted APGD, rotating, Square, transfer. The robust accuracies"
        " are upper bounds."
    )
    # of what made most steps, twice as many
    assert by(report)["more steps"].found.startswith("sapgd100-dlr through exact ")


def test_an_honest_spiking_network_is_trusted_under_strong_attacks(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    report = measured(
        snn,
        dataset,
        attacks=["pgd40", "sapgd100-ce", "sapgd50-dlr"],
        views=["PCW:1", "PCW:2", "ASSG"],
        restarts=2,
    )
    assert "fail" not in status(report).values(), report.summary()
    assert report.verdict is not None and "Do not trust" not in report.verdict


def swapped(
    model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A copy with every module of `kind` replaced."""
    import copy

    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind:
                setattr(module, name, make(child))
    return model


MASKED: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "saturated": (
        lambda model: Wrapped(model, logits=lambda z: 1e5 * z),
        {"gradients", "loss rises", "another attack"},
    ),
    "quantised": (
        lambda model: Wrapped(model, images=lambda x: torch.round(x * 31) / 31),
        {"gradients", "black box"},
    ),
    "random thresholds": (
        lambda model: swapped(model, nn.ReLU, lambda _: RandomThresholds()),
        {"same result twice"},
    ),
    "never in eval mode": (
        lambda model: swapped(model, nn.BatchNorm2d, AlwaysTraining),
        {"independent of the batch"},
    ),
}


@pytest.mark.parametrize("how", MASKED)
def test_masked_gradients_are_found(
    how: str, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    torch.manual_seed(0)  # the random ones draw from the global state
    mask, signs = MASKED[how]
    report = measured(mask(ann).eval(), dataset)
    accused = {name for name, found in status(report).items() if found in ("warn", "fail")}
    assert signs <= accused, report.summary()
    assert any(status(report)[name] == "fail" for name in signs)
    assert report.verdict is not None and report.verdict.startswith(
        "Do not trust these robust accuracies: "
    )


@pytest.fixture(scope="module")
def narrow(trained_snn: SpikingClassifier, dataset: ImageDataset) -> Report:
    """PGD-10 through a surrogate so narrow that hardly any gradient comes through: a weak attack
    passing for robustness."""
    return measured(trained_snn, dataset, attacks=["pgd10"], views=["RECT:0.02"])


def test_a_too_narrow_surrogate_is_found(narrow: Report) -> None:
    assert status(narrow)["another attack"] == "fail", narrow.summary()
    assert "fail" in (
        status(narrow)["gradients"],
        status(narrow)["loss rises"],
        status(narrow)["large eps"],
    )
    assert narrow.verdict is not None and narrow.verdict.startswith("Do not trust")


def test_strong_finds_what_a_narrow_surrogate_hides(
    narrow: Report, snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    strong = evaluate(snn, dataset, protocol="strong", eps=EPS[1:], max_images=80)
    # The true accuracy, as far as is known: all 19 views, several times.
    ensemble = evaluate(
        snn, dataset, attacks=["fgsm", "pgd40"], eps=EPS[1:], max_images=80, restarts=3
    )
    overstated = [
        claimed.accuracy.value - true.accuracy.value
        for claimed, true in zip(narrow.joint[1:], strong.joint, strict=True)
    ]
    assert max(overstated) >= 0.2, (narrow.summary(), strong.summary())
    for ours, known in zip(strong.joint, ensemble.joint, strict=True):
        assert ours.accuracy.correct <= known.accuracy.correct + 1
    assert strong.settings.protocol == "strong@2"  # no model was given for transfer
    assert strong.settings.views == ["PCW:1", "ASSG", "PCW:2", "rate-temporal", "rate", "black-box"]


def test_the_numbers_behind_the_words_are_in_the_report(narrow: Report) -> None:
    numbers = {check.name: check.numbers for check in narrow.checks}
    assert numbers["gradients"]["share_without_gradient"].keys() == {"RECT:0.02"}
    assert numbers["large eps"]["images"] == min(48, narrow.clean.correct)
    assert numbers["noise"]["pgd"] >= 0
    more = numbers["another attack"]
    joint = next(joint.accuracy for joint in narrow.joint if joint.eps == more["eps"])
    # of all images, not only of those that are checked
    assert more["survivors"] == min(24, joint.correct)
    assert more["points"] == pytest.approx(
        100 * more["broken"] / more["survivors"] * joint.correct / joint.total
    )
    assert Report.from_json(narrow.to_json()) == narrow
    assert all(check.found in narrow.summary() for check in narrow.checks)


def test_no_check_repeats_less_than_what_ran(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    settings = {
        "attacks": ["sapgd100-dlr", "apgd30-t", "square1200"],
        "eps": EPS[:1],
        "max_images": 24,
        "check_images": 8,
    }
    found = by(measured(ann, dataset, **settings))
    # the others of its kind ran
    assert found["another attack"].found.startswith("sapgd100-ce through exact ")
    assert found["more steps"].found.startswith("sapgd200-dlr through exact ")
    assert "black box" not in found  # 1,200 queries were made
    assert found["beyond gradients"].found.startswith("at 6/255 square1200 broke ")
    assert found["beyond gradients"].numbers["left_by_gradients"] >= 1
    found = by(
        measured(ann, dataset, **settings | {"attacks": ["pgd10", "pgd5+square20", "square30"]})
    )
    # both query, in part or alone
    assert found["beyond gradients"].found.startswith("at 6/255 pgd5+square20 and square30 broke ")
    settings |= {"attacks": ["pgd10", "square20", "noise10"]}
    # more than what ran
    assert by(measured(ann, dataset, **settings))["black box"].found.startswith("square1000 ")


def test_few_images_prove_nothing(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    report = measured(ann, dataset, attacks=["pgd40"], eps=EPS[:1], max_images=6, check_images=6)
    assert {status(report)[name] for name in ("more steps", "another attack", "black box")} == {
        "too few"
    }, report.summary()
    assert report.verdict is not None and "Too few images to tell: " in report.verdict
    # with the table of the checks above it the verdict's sentence names them alone
    assert all(report.summary().count(check.found) == 1 for check in report.checks)
    assert Report.from_json(report.to_json()) == report
    nothing_left = measured(
        Wrapped(ann, logits=lambda z: z.flip(1)),
        dataset,
        attacks=["pgd40"],
        eps=[128 / 255],
        max_images=6,
    )
    assert nothing_left.joint[0].accuracy.correct == 0
    assert "more steps" not in status(nothing_left)


class Speckled(nn.Module):
    """`inner`, with another class at a third of all images, which ones depends on their last
    digits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        odd = (x.flatten(1).sum(1) * 4096).frac() > 0.95
        return torch.where(odd[:, None], z.roll(1, 1), z)


def test_noise_that_breaks_a_third_is_a_sign(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    noise = by(
        measured(
            Speckled(ann).eval(),
            dataset,
            attacks=["pgd10"],
            eps=EPS[1:],
            max_images=None,
            check_images=64,
        )
    )["noise"]
    assert noise.numbers["noise"] < noise.numbers["pgd"]
    assert (noise.status, noise.numbers["images"]) == ("warn", 64), noise


def test_without_checks_the_report_says_so(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    report = measured(ann, dataset, check_images=0, max_images=10)
    assert (report.checks, report.verdict) == ([], None)
    assert "No check for gradient masking was made." in report.limits
