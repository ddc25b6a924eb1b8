"""The certificate by interval bounds: below what attacks leave, alike in any batch, and refused
where something contradicts it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sj_robust import SJRobustError, save
from sj_robust.checkpoint.folder import record
from sj_robust.checkpoint.results import read_certificates
from sj_robust.data import ImageDataset
from sj_robust.evaluation import (
    Certificates,
    certify,
    certify_intervals,
    evaluate,
    interval_certificate,
)
from sj_robust.evaluation.accuracy import Accuracy
from sj_robust.evaluation.certified import CertifiedAt
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


def test_any_module_is_certified(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    """Not ours alone: hooks that count passes take logits, and bounds are none."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(dataset.images[0].numel(), 4)).eval()
    found = certify_intervals(plain, dataset, eps=[0.0, 8 / 255], max_images=24, attempts=2)
    first, second = (at.certified.correct for at in found.results)
    assert first == found.clean.correct > second
    assert found.forward_images > 24 and found.backward_images > 0


def test_tf32_is_off_on_a_gpu(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32, matmul.allow_tf32 = True, False
        with interval_certificate._float32(torch.device("cuda")):
            assert not cudnn.allow_tf32 and not matmul.allow_tf32
        assert cudnn.allow_tf32 and not matmul.allow_tf32
        with interval_certificate._float32(torch.device("cpu")):
            assert cudnn.allow_tf32
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def test_certificates_of_a_stranger_are_checked(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    bounds = certify_intervals(ann, dataset, eps=[0.001, 8 / 255], attempts=0, max_images=40)
    smooth = certify(ann, dataset, sigma=0.1, n0=2, n=10, max_images=2)
    text = Certificates(found=[bounds.certified(), smooth.certified()]).to_json()
    again = Certificates.from_json(text)
    assert again.to_json() == text
    assert [one.name for one in again.found] == [
        "interval bounds",
        "randomised smoothing, sigma 0.1",
    ]
    newer = again.with_new(bounds.certified())
    assert [one.method for one in newer.found] == ["randomised smoothing", "interval bounds"]

    def altered(change: Callable[[dict[str, Any], list[Any]], None]) -> str:
        content = json.loads(text)
        change(content["found"][0], content["found"])
        return json.dumps(content)

    many = 10 * [again.found[0].model_dump(mode="json")["points"][0]]
    for change, message in (
        (lambda one, found: one.update(sigma=0.1), "interval bounds has balls in linf"),
        (lambda one, found: one.update(norm="l2"), "interval bounds has balls in l2"),
        (lambda one, found: found[1].update(sigma=None), "sigma None"),
        (lambda one, found: found[1].update(sigma="x"), r"found\.1\.sigma"),
        (lambda one, found: found[1].update(sigma=math.inf), r"found\.1\.sigma"),
        (lambda one, found: found[1].update(one), "several by interval bounds"),
        (lambda one, found: found.append(one), "at most 2"),
        (lambda one, found: one["points"][0].update(eps=math.inf), "eps: Input should be"),
        (lambda one, found: one["points"][0].update(eps=math.nan), "eps: Input should be"),
        (lambda one, found: one["points"][0].update(eps=-1), "eps: Input should be"),
        (lambda one, found: one["points"][0].update(eps=0.9), "do not ascend"),
        (lambda one, found: one.update(points=[]), "points: List should have"),
        (lambda one, found: one.update(points=200 * many), "points: List should have"),
        (lambda one, found: one.update(points=many), "do not ascend"),
        (lambda one, found: one["dataset"].update(evaluated=0), "0 of 160 images"),
        (lambda one, found: one["dataset"].update(evaluated=39), "are not"),
        (lambda one, found: one["points"][0]["accuracy"].update(correct=41), "at most 40 can be"),
        (lambda one, found: one["points"][0]["accuracy"].update(value=0.987), "are not"),
        (lambda one, found: one["points"][0]["accuracy"].update(correct=-1), "-1 images"),
        (lambda one, found: one.update(more=1), "Extra inputs"),
    ):
        with pytest.raises(SJRobustError, match=message) as refusal:
            Certificates.from_json(altered(change))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("certified_images", [40, 39, 20, 48])
def test_no_more_is_certified_than_attacks_have_left(
    ann: NormalizedClassifier, dataset: ImageDataset, tmp_path: Path, certified_images: int
) -> None:
    """Of the images that both had; and by the weights of the checkpoint."""
    folder, eps = tmp_path / "ann", [0.001, 8 / 255]
    report = evaluate(ann, dataset, eps=eps, attacks=["fgsm"], check_images=0, max_images=40)
    config = save(ann, folder, report=report)
    found = certify_intervals(ann, dataset, eps=eps, attempts=0, max_images=certified_images)
    certified = found.certified()
    record(folder, certified=certified)
    assert read_certificates(folder, config) == [certified]
    assert record(folder, report=report) == [folder / "evaluation.json"]  # and it stays
    assert read_certificates(folder, config) == [certified]

    both = min(40, certified_images)
    standing = sum(
        label == predicted and by is None
        for label, predicted, by in zip(
            report.per_image.label[:both],
            report.per_image.predicted[:both],
            report.per_image.broken_by[1][:both],
            strict=True,
        )
    )
    most = standing + certified_images - both
    for count in (most, most + 1):
        accuracy = Accuracy.of(count, certified_images)
        points = [CertifiedAt(eps=eps[1], accuracy=accuracy)]
        lying = Certificates(found=[certified.model_copy(update={"points": points})])
        (folder / "certificates.json").write_text(lying.to_json())
        if count == most:
            assert read_certificates(folder, config) == lying.found
        else:
            with pytest.raises(SJRobustError, match=f"at most {most} can be"):
                read_certificates(folder, config)
    other = certified.model_copy(
        update={"model": certified.model.model_copy(update={"weights_sha256": 64 * "0"})}
    )
    (folder / "certificates.json").write_text(Certificates(found=[other]).to_json())
    with pytest.raises(SJRobustError, match="is of another model"):
        read_certificates(folder, config)


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
