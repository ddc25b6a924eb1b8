"""The certificate: exact where the smoothed classifier is known, a bound everywhere, abstention
where nothing is shown."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sj_robust.attack.noise import normal_like
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.certificate import Certificate, certified_radius, certify, lower_bound
from sj_robust.model import NormalizedClassifier, SpikingClassifier

BOUNDARY = 128  # grey level on which the hyperplane of `Halfspace` lies
SIGMA = 0.25
SHAPE = (3, 4, 4)
ROOT_D = math.sqrt(math.prod(SHAPE))


class Halfspace(nn.Module):
    """Class 1 where the mean of all pixels is above BOUNDARY/255: smoothed, P(class 1) = Φ(signed
    l2 distance / σ)."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1).double().mean(1) - BOUNDARY / 255
        return torch.stack([-margin, margin], 1)


def grey(levels: list[int], labels: list[int] | None = None) -> ImageDataset:
    """One image of a single grey per level, labelled by the side of the hyperplane it is on unless
    `labels` says otherwise."""
    images = (
        torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()
    )
    chosen = torch.tensor([int(level > BOUNDARY) for level in levels] if labels is None else labels)
    return ImageDataset(images, chosen, ("dark", "light"), "grey", "test")


def distance(level: int) -> float:
    return abs(level - BOUNDARY) / 255 * ROOT_D


def test_the_radius_is_below_the_exact_distance_and_approaches_it() -> None:
    # up to 1.5 σ from the hyperplane
    levels = [BOUNDARY + step for step in (-14, -11, -8, -5, 5, 8, 11, 14)]
    gaps = []
    for n in (100, 1000, 20_000):
        found = certify(Halfspace(), grey(levels), sigma=SIGMA, n0=20, n=n, batch_size=5000)
        assert found.per_image.predicted == found.per_image.label
        gap = [
            distance(level) - radius
            for level, radius in zip(levels, found.per_image.radius, strict=True)
        ]
        assert min(gap) >= 0
        gaps.append(max(gap))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.06 * SIGMA


def test_the_bound_fails_as_often_as_it_may_and_no_more() -> None:
    level, n, alpha, total = BOUNDARY + 5, 200, 0.1, 300
    truth = float(stats.norm.cdf(distance(level) / SIGMA))
    found = certify(
        Halfspace(), grey([level] * total), sigma=SIGMA, n0=100, n=n, alpha=alpha, batch_size=300
    )
    assert set(found.per_image.candidate) == {1}
    wrong = sum(p > truth for p in found.per_image.p_lower)
    # 30 at most expected, σ = 5.2; the images are the same, their noise is not
    assert 10 <= wrong <= 45
    votes = torch.tensor(found.per_image.votes).double()
    assert abs(votes.mean() - n * truth) < 4 * math.sqrt(n * truth * (1 - truth) / total)
    assert votes.var() == pytest.approx(n * truth * (1 - truth), rel=0.35)


def test_on_the_boundary_it_abstains() -> None:
    found = certify(Halfspace(), grey([BOUNDARY] * 20), sigma=SIGMA, n0=20, n=200)
    assert found.abstentions == 20
    assert found.per_image.predicted == [None] * 20
    assert found.per_image.radius == [0.0] * 20
    assert (found.smoothed.correct, found.mean_radius) == (0, 0.0)
    assert [point.accuracy.correct for point in found.curve] == [0] * len(found.curve)


def test_a_wrong_label_counts_as_wrong_however_large_the_radius() -> None:
    found = certify(
        Halfspace(), grey([BOUNDARY + 20, BOUNDARY + 20], labels=[0, 1]), sigma=SIGMA, n0=10, n=200
    )
    assert found.per_image.predicted == [1, 1]
    assert min(found.per_image.radius) > SIGMA
    assert found.smoothed.correct == 1
    assert found.mean_radius == found.per_image.radius[1] / 2
    assert found.abstentions == 0


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5])
@pytest.mark.parametrize(
    ("votes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (73, 100), (99_000, 100_000)]
)
def test_the_lower_bound_is_scipys_clopper_pearson(votes: int, n: int, alpha: float) -> None:
    exact = (
        stats.binomtest(votes, n, alternative="greater")
        .proportion_ci(1 - alpha, method="exact")
        .low
    )
    assert lower_bound(votes, n, alpha) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_the_figures_follow_from_the_votes() -> None:
    found = certify(
        Halfspace(),
        grey([BOUNDARY + step for step in range(-12, 14, 2)]),
        sigma=SIGMA,
        n0=30,
        n=300,
        alpha=0.01,
    )
    images = found.per_image
    for votes, p, radius, predicted in zip(
        images.votes, images.p_lower, images.radius, images.predicted, strict=True
    ):
        assert p == pytest.approx(stats.beta.ppf(0.01, votes, 301 - votes))
        assert radius == (pytest.approx(SIGMA * stats.norm.ppf(p)) if p > 0.5 else 0)
        assert (predicted is None) == (p <= 0.5)
    right = [
        radius
        for radius, a, label in zip(images.radius, images.predicted, images.label, strict=True)
        if a == label
    ]
    assert found.smoothed.correct == found.curve[0].accuracy.correct == len(right)
    for point in found.curve:
        assert point.accuracy.correct == sum(radius >= point.radius for radius in right)
    counts, radii = (
        [point.accuracy.correct for point in found.curve],
        [point.radius for point in found.curve],
    )
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert radii == sorted(set(radii))
    assert radii[0] == 0
    assert radii[-1] <= certified_radius(lower_bound(300, 300, 0.01), SIGMA) < radii[-1] + SIGMA / 4
    assert found.forward_images == 13 * 330 + 1  # one image shows that the model fits; no early end


def test_neither_batch_size_nor_other_images_matter() -> None:
    levels = [BOUNDARY + step for step in (-6, -3, 2, 4, 7)]
    whole = certify(Halfspace(), grey(levels), sigma=SIGMA, n0=13, n=50).per_image
    for batch_size in (1, 7, 63):
        assert (
            certify(
                Halfspace(), grey(levels), sigma=SIGMA, n0=13, n=50, batch_size=batch_size
            ).per_image
            == whole
        )
    few = certify(Halfspace(), grey(levels), sigma=SIGMA, n0=13, n=50, max_images=3)
    assert few.per_image.votes == whole.votes[:3]
    assert (few.dataset.evaluated, few.dataset.size, few.smoothed.total) == (3, 5, 3)
    assert (
        certify(Halfspace(), grey(levels), sigma=SIGMA, n0=13, n=50, seed=1).per_image.votes
        != whole.votes
    )


def test_noisy_images_are_not_clipped() -> None:
    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            outside = ((x < 0) | (x > 1)).flatten(1).any(1).double()
            return torch.stack([1 - outside, outside], 1)

    assert certify(Outside(), grey([0, 255]), sigma=SIGMA, n0=10, n=50).per_image.predicted == [
        1,
        1,
    ]


def test_a_trained_network_and_its_conversion(
    ann: NormalizedClassifier, snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    for model in (ann, snn):
        found = certify(model, dataset, sigma=0.05, n0=20, n=100, max_images=4)
        assert found.smoothed.correct >= 2
        x = dataset.floats([1])
        with torch.no_grad():
            draws = [
                model(x + 0.05 * normal_like(x, 0, torch.tensor([number]), 1)).argmax(1)
                for number in range(120)
            ]
        selection, fresh = torch.cat(draws).split([20, 100])
        candidate = selection.bincount().argmax()
        assert found.per_image.candidate[1] == candidate
        assert found.per_image.selection_votes[1] == (selection == candidate).sum()
        assert found.per_image.votes[1] == (fresh == candidate).sum()
        assert found.model.kind == ("snn" if model is snn else "ann")


def test_model_and_random_state_are_left_as_they_were() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.dropout, self.halfspace = nn.Dropout(0.9), Halfspace()

        def forward(self, x: Tensor) -> Tensor:
            return self.halfspace(self.dropout(x) * self.scale)

    model = Mixed().train()
    model.halfspace.eval()
    before = torch.get_rng_state()
    found = certify(model, grey([BOUNDARY + 10]), sigma=SIGMA, n0=10, n=100)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.dropout.training, model.halfspace.training) == (True, True, False)
    assert model.scale.requires_grad
    assert model.scale.grad is None
    assert found.per_image.predicted == [1]  # with dropout at work the image would be dark


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma": -0.25}, "sigma is -0.25"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"n": 0}, "n is 0"),
        ({"n0": 0}, "n0 is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"n": 9}, "n is 9.*expected at least 10"),
        ({"n": 1, "alpha": 0.5}, "n is 1.*expected at least 2"),
        ({"max_images": 0}, "max_images is 0: expected 1 to 2"),
        ({"max_images": 3}, "max_images is 3"),
    ],
)
def test_wrong_settings_are_named_in_one_line(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SJRobustError, match=message) as raised:
        certify(Halfspace(), grey([0, 255]), **{"sigma": SIGMA, **settings})  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_the_smallest_number_of_samples_it_takes_does_certify() -> None:
    assert certify(Halfspace(), grey([255]), sigma=SIGMA, n=10).per_image.radius[0] > 0


def test_data_that_does_not_fit_is_refused(ann: NormalizedClassifier) -> None:
    with pytest.raises(SJRobustError, match="no images"):
        certify(Halfspace(), grey([0]).first(0), sigma=SIGMA)
    with pytest.raises(SJRobustError, match="has the label 5"):
        certify(Halfspace(), grey([0], labels=[5]), sigma=SIGMA)
    with pytest.raises(SJRobustError, match=r"cannot take the images of grey, \[3, 4, 4\]"):
        certify(ann, grey([0]), sigma=SIGMA)


def test_json_and_summary() -> None:
    found = certify(
        Halfspace(),
        grey([BOUNDARY, BOUNDARY + 9, BOUNDARY + 30]),
        sigma=SIGMA,
        n0=20,
        n=200,
        max_images=2,
    )
    text = found.to_json()
    assert Certificate.model_validate_json(text) == found
    assert len(text.splitlines()) == len(Certificate.model_fields) + 2
    assert found.settings.confidence == 0.999
    summary = found.summary()
    assert (
        "Halfspace (ANN) on grey test, first 2 of 3 images, smoothed with Gaussian noise of sigma"
        " 0.25" in summary
    )
    assert f"{found.smoothed}; 1 abstained" in summary
    assert (
        "confidence 99.9 %, for the smoothed classifier and not for the\nnetwork itself" in summary
    )
    row = next(line for line in summary.splitlines() if line.startswith("0.250 "))
    assert f"{0.25 / ROOT_D * 255:.2f}/255" in row
    assert max(map(len, summary.splitlines())) <= 140
    assert any("not for the network" in limit for limit in found.limits)
    assert any("first 2 of 3" in limit for limit in found.limits)
