"""The certificate by interval bounds: below what attacks leave, alike in any batch, and refused
where something contradicts it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sj_robust import SJRobustError
from sj_robust.data import ImageDataset
from sj_robust.evaluation import Report, certify_intervals, evaluate, interval_certificate
from sj_robust.evaluation.interval_certificate import IntervalCertificate
from sj_robust.model import NormalizedClassifier, SpikingClassifier

RADII = (0.0001, 0.001, 0.004)


def test_it_is_a_lower_bound_of_what_attacks_leave(
    ann: NormalizedClassifier, snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    for model, eps in ((ann, RADII), (snn, (1e-7, 1e-5, 0.004))):
        found = certify_intervals(model, dataset, eps=eps, max_images=24)
        report = evaluate(model, dataset, eps=eps, attacks=["pgd10"], max_images=24, check_images=0)
        assert found.clean == report.clean
        counts = [at.certified.correct for at in found.results]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]
        for at, joint in zip(found.results, report.joint, strict=True):
            assert at.eps == joint.eps
            assert at.certified.correct <= at.surviving.correct <= found.clean.correct
            assert at.certified.correct <= joint.accuracy.correct
        images = found.per_image
        for at in found.results:
            within = [radius is not None and radius >= at.eps for radius in images.certified]
            assert sum(within) == at.certified.correct
            standing = [
                radius is None or radius > at.eps
                for radius, label, predicted in zip(
                    images.broken, images.label, images.predicted, strict=True
                )
                if label == predicted
            ]
            assert sum(standing) == at.surviving.correct
        assert found.model.kind == ("snn" if model is snn else "ann")
        assert (found.settings.view is None) == (model is ann)


def test_neither_batches_nor_attempts_matter(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    whole = certify_intervals(ann, dataset, eps=RADII, max_images=20)
    alone = certify_intervals(ann, dataset, eps=RADII, max_images=20, batch_size=1, attempts=0)
    assert alone.per_image.certified == whole.per_image.certified
    assert alone.results[0].surviving is None
    assert IntervalCertificate.model_validate_json(whole.to_json()) == whole


def test_a_contradiction_ends_it(
    ann: NormalizedClassifier, dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = lambda model, x, y, eps: torch.ones(len(x), 4)  # noqa: E731
    monkeypatch.setattr(interval_certificate, "margin_bounds", wrong)
    with pytest.raises(SJRobustError, match=r"images certified at eps 32/255 were broken"):
        certify_intervals(ann, dataset, eps="32/255", max_images=20)


def test_in_words(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    found = certify_intervals(snn, dataset, eps="1/255", max_images=8, attempts=3)
    words = found.summary()
    assert "(SNN, T=4) on small test, first 8 of 160 images, interval bounds" in words
    assert "Tried: 3 random points and PGD-3." in words
    assert f"{found.results[0].certified}" in words
    assert any("float32" in limit for limit in found.limits)


def test_a_report_holds_what_was_certified_and_no_more_than_can_be(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    few: dict[str, int] = {"max_images": 40}
    eps = [0.001, 8 / 255]
    report = evaluate(ann, dataset, eps=eps, attacks=["fgsm"], check_images=0, **few)
    certified = certify_intervals(ann, dataset, eps=eps, attempts=0, **few).certified()
    full = report.model_copy(update={"certified": [certified]})
    assert Report.from_json(full.to_json()) == full
    assert "certified  " in full.summary() and "within l∞ 0.001" in full.summary()
    joint = full.joint[1].accuracy
    first, point = certified.points
    more = type(joint).of(joint.correct + 1, 40)  # an image that an attack has broken
    lying = certified.model_copy(
        update={"points": [first, point.model_copy(update={"accuracy": more})]}
    )
    with pytest.raises(SJRobustError, match=f"at most {joint.correct} can be"):
        Report.from_json(full.model_copy(update={"certified": [lying]}).to_json())
    wrong = point.model_copy(update={"accuracy": point.accuracy.model_copy(update={"value": 0.9})})
    with pytest.raises(SJRobustError, match="certified by interval bounds"):
        Report.from_json(
            full.model_copy(
                update={"certified": [certified.model_copy(update={"points": [wrong]})]}
            ).to_json()
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": []}, "no eps"),
        ({"eps": 8}, "eps is 8"),
        ({"eps": 0.1, "attempts": -1}, "attempts is -1"),
        ({"eps": 0.1, "batch_size": 0}, "batch_size is 0"),
        ({"eps": 0.1, "max_images": 1000}, "max_images is 1000"),
    ],
)
def test_wrong_settings_are_named(
    ann: NormalizedClassifier, dataset: ImageDataset, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        certify_intervals(ann, dataset, **settings)  # type: ignore[arg-type]


def test_a_layer_without_bounds_is_named(dataset: ImageDataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Sigmoid())
    with pytest.raises(SJRobustError, match="no bounds are known for sigmoid"):
        certify_intervals(model, dataset, eps=0.01, max_images=4)
