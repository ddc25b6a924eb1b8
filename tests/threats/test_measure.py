"""A network with a backdoor, and its spiking network: what is measured, found and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sj_robust import SJRobustError
from sj_robust.attack import GradientView
from sj_robust.data import ImageDataset
from sj_robust.evaluation import Accuracy
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.threats import (
    Poisoned,
    ThreatReport,
    cluster_activations,
    match_gradients,
    measure_threats,
    parse_trigger,
    poisoned,
    prune,
    reverse_triggers,
    stamped,
)
from sj_robust.threats.clustering import principal, silhouette, smaller_cluster
from sj_robust.threats.report import anomaly_indices

Train = Callable[[ImageDataset], NormalizedClassifier]

POISON, TARGET = "patch:2:rate=0.05:target=3", 3


def put(content: Any, place: str, value: Any) -> None:
    """`value` at the place named by keys and indices."""
    *path, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    for key in path:
        content = content[key]
    content[last] = value.model_dump() if isinstance(value, Accuracy) else value


@pytest.fixture(scope="module")
def report(
    backdoored: NormalizedClassifier, test_images: ImageDataset, clean: ImageDataset
) -> ThreatReport:
    before = {name: value.clone() for name, value in backdoored.state_dict().items()}
    found = measure_threats(backdoored, test_images, POISON, training=clean, steps=120)
    assert all(value.equal(before[name]) for name, value in backdoored.state_dict().items())
    return found


def test_the_rates_are_those_of_a_plain_loop(
    report: ThreatReport, backdoored: NormalizedClassifier, test_images: ImageDataset
) -> None:
    x, y = test_images.floats(), test_images.labels
    others = y != TARGET
    triggered = stamped(test_images.subset(others.nonzero().flatten()), parse_trigger("patch:2"))
    with torch.no_grad():
        right = int((backdoored(x).argmax(1) == y).sum())
        fooled = int((backdoored(triggered.floats()).argmax(1) == TARGET).sum())
        before = int((backdoored(x[others]).argmax(1) == TARGET).sum())
    (rates,) = report.rates
    assert rates.timesteps is None
    assert rates.clean == Accuracy.of(right, 160)
    assert rates.success == Accuracy.of(fooled, 140)
    assert rates.before == Accuracy.of(before, 140)
    assert rates.clean.value > 0.9 and rates.success.low > 0.9 and rates.before.value < 0.1


def test_the_detectors_name_the_right_class(report: ThreatReport) -> None:
    assert report.cleanse and report.clustering
    assert report.cleanse.flagged == [TARGET]
    assert report.cleanse.view == "exact"
    norms = [one.norm for one in report.cleanse.classes]
    assert min(norms) == norms[TARGET] < 8  # the patch has 4 pixels
    assert report.clustering.flagged == [TARGET]
    of_target = report.clustering.classes[TARGET]
    assert of_target.poisoned == 32
    # all that lie apart are poisons
    assert of_target.found == round(of_target.smaller * of_target.images) > 0


def test_a_report_is_read_back_and_contradictions_are_refused(report: ThreatReport) -> None:
    assert ThreatReport.from_json(report.to_json()) == report
    assert "Neural Cleanse: flags class 3" in report.summary()
    assert report.settings.training and report.settings.training.poisoned == 32

    def altered(change: Any) -> str:
        content = json.loads(report.to_json())
        change(content)
        return json.dumps(content)

    def lower(content: Any) -> None:
        content["rates"][0]["success"]["value"] = 0.1

    def unflagged(content: Any) -> None:
        content["cleanse"]["flagged"] = []

    def unseen(content: Any) -> None:
        content["clustering"]["flagged"] = [0]

    def fewer(content: Any) -> None:
        content["rates"] = []

    def huge(content: Any) -> None:
        content["rates"][0]["clean"] |= {"correct": 10**400, "total": 10**800}

    for change in (lower, unflagged, unseen, fewer, huge):
        with pytest.raises(SJRobustError, match="contradicts itself"):
            ThreatReport.from_json(altered(change))
    right = Accuracy.of
    for place, value, why in (
        ("rates/0/clean", right(10**6, 10**6), "160 images were evaluated, 1000000 are clean"),
        ("rates/0/success", right(150, 170), "attack success is of 170 of 160"),
        ("rates/0/before", right(1, 139), "attack success is of 140 of 160"),
        ("rates/0/before", right(140, 140), "140 images are wrong without trigger"),
        ("rates/0/success", None, "attack success of the poison"),
        ("rates/0/timesteps", 1, "the rates are after the time steps"),
        ("settings/poison", "flip:rate=0.1", "attack success of the poison"),
        ("dataset/size", 100, "160 of 100 images were evaluated"),
        ("model/timesteps", 4, "kind is ann with T=4"),
        ("cleanse/classes", report.model_dump()["cleanse"]["classes"][:7], "do not follow"),
        ("model/num_classes", 9, "Neural Cleanse has 8 classes, the model 9"),
        ("clustering/classes/3/found", 1000, "1000 of 32 poisons"),
        ("clustering/classes/3/smaller", 0.123456, "is no share of"),
        ("clustering/classes/0/label", 3, "a label is clustered twice"),
        ("clustering/classes/7/label", 8, "none of 8 classes"),
        ("limits", ["a limit"] * 101, "101 limits"),
        ("clustering/images", 10, "of 10 training images"),
        ("settings/training/poisoned", 1, "of 640 with 1 poisons"),
        ("settings/training", None, "go together"),
        ("pruning/pruned", 500, "500 of 48 neurons are pruned"),
        ("pruning/images", 639, "pruning is of 639 images"),
        ("pruning/kept/1", right(0, 640), "pruning lost more than 0.04"),
        ("pruning/rates/clean", right(159, 161), "161 are clean"),
        ("clustering/classes/0/smaller", 7.5, "less than or equal to 0.5"),
        ("clustering/classes/0/silhouette", 9, "less than or equal to 1"),
        ("settings/batch_size", -5, "greater than or equal to 1"),
        ("settings/seed", -1, "greater than or equal to 0"),
        ("settings/seed", 2**63, "less than"),
        ("pruning/most_lost", 1, "less than 1"),
        ("cleanse/classes/0/norm", float("inf"), "finite"),
    ):
        with pytest.raises(SJRobustError, match=why):
            ThreatReport.from_json(altered(lambda content, p=place, v=value: put(content, p, v)))
    with pytest.raises(SJRobustError, match="not a report on threats"):
        ThreatReport.from_json("{}")


def test_a_spiking_network_is_read_after_every_step(
    snn: SpikingClassifier, test_images: ImageDataset, clean: ImageDataset
) -> None:
    found = measure_threats(
        snn, test_images, POISON, training=clean, detect=("clustering", "pruning")
    )
    assert [one.timesteps for one in found.rates] == [1, 2, 3]
    assert snn.timesteps == 3
    others = (test_images.labels != TARGET).nonzero().flatten()
    triggered = stamped(test_images.subset(others), parse_trigger("patch:2")).floats()
    with torch.no_grad():
        logits = snn.forward_sequence(triggered)
    for t, one in enumerate(found.rates, start=1):
        hits = int((logits[:t].mean(0).argmax(1) == TARGET).sum())
        assert one.success == Accuracy.of(hits, len(others))
    assert found.last.success and found.last.success.value > 0.5
    assert found.clustering and TARGET in found.clustering.flagged
    assert found.cleanse is None
    assert found.pruning and found.pruning.rates.timesteps == 3


def test_neural_cleanse_takes_any_view(snn: SpikingClassifier, clean: ImageDataset) -> None:
    triggers, found = reverse_triggers(snn, clean.first(160), view="PCW:1", steps=120)
    assert found.view == "PCW:1"
    assert found.flagged == [TARGET]
    stamp = triggers[TARGET].stamp(clean.first(160).floats())
    with torch.no_grad():
        hits = int((snn(stamp).argmax(1) == TARGET).sum())
    assert hits == triggers[TARGET].hits == found.classes[TARGET].success.correct
    assert 0 <= float(stamp.min()) and float(stamp.max()) <= 1
    # by the network that the view shows the gradients go, by the true spikes it is judged
    judged, one = reverse_triggers(snn, clean.first(32), view="activation", steps=2)
    again, other = reverse_triggers(snn, clean.first(32), view="activation", steps=2)
    assert one == other
    assert judged[0].mask.equal(again[0].mask)
    with torch.no_grad(), torch.random.fork_rng():
        shown = GradientView(snn, "activation")(judged[0].stamp(clean.first(32).floats()))
        true = snn(judged[0].stamp(clean.first(32).floats()))
    assert judged[0].hits == int((true.argmax(1) == 0).sum())
    assert not torch.allclose(shown, true)


def test_anomaly_indices_are_those_of_the_paper() -> None:
    norms = [30.0, 32.0, 35.0, 29.0, 4.0, 31.0]
    # the median is 30.5, the absolute deviations' median 1.5
    assert anomaly_indices(norms)[4] == pytest.approx((30.5 - 4) / (1.4826 * 1.5))
    assert anomaly_indices([5.0] * 4) == [0.0] * 4
    # where MAD is 0 a hair's breadth is no anomaly
    assert anomaly_indices([10.0, 10, 10, 10, 9.999])[4] == pytest.approx(0.01)
    assert anomaly_indices([10.0, 10, 10, 10, 2])[4] > 2


def test_clusters_of_two_heaps() -> None:
    generator = torch.Generator().manual_seed(0)
    heaps = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    heaps[:12] += 20
    small = smaller_cluster(heaps.numpy(), seed=0)
    assert small.tolist() == [True] * 12 + [False] * 38
    assert silhouette(heaps.numpy(), small) > 0.8
    assert silhouette(heaps.numpy(), small & False) == 0


@pytest.mark.filterwarnings("error")
def test_a_silent_layer_has_no_clusters() -> None:
    for rates in (torch.zeros(30, 5), torch.full((30, 5), 0.1)):
        small = smaller_cluster(principal(rates, 10), seed=0)
        assert not small.any()
        assert silhouette(principal(rates, 10), small) == 0


def test_an_error_is_not_taken_for_a_network_that_is_read_once(
    snn: SpikingClassifier, test_images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> torch.Tensor:
        raise SJRobustError("logits that are not finite")

    monkeypatch.setattr("sj_robust.threats.measure.answers_by_step", broken)
    with pytest.raises(SJRobustError, match="not finite"):
        measure_threats(snn, test_images, POISON)


def test_pruning_turns_off_what_clean_images_do_not_use(
    backdoored: NormalizedClassifier, clean: ImageDataset, training: Poisoned
) -> None:
    model = deepcopy(backdoored)
    layer = model.backbone[-1]  # type: ignore[index]
    found = prune(model, clean, most_lost=0.02)
    before, after = found.kept
    assert 0 < len(found.pruned) < found.neurons == 48
    assert before.value - after.value <= 0.02
    with torch.no_grad():
        assert int((model(clean.floats()).argmax(1) == clean.labels).sum()) == after.correct
    assert not layer.weight[:, list(found.pruned)].any()
    x, y = clean.floats()[:32], clean.labels[:32]
    torch.nn.functional.cross_entropy(model(x), y).backward()
    assert not layer.weight.grad[:, list(found.pruned)].any()
    assert layer.weight.grad.any()
    with pytest.raises(SJRobustError, match="most_lost is 1"):
        prune(model, clean, most_lost=1)


def test_gradient_matching_aligns_poisons_within_their_ball(
    backdoored: NormalizedClassifier, clean: ImageDataset, test_images: ImageDataset
) -> None:
    image = test_images.floats([0])  # of class 0
    made = match_gradients(backdoored, clean, image, 5, rate=0.05, eps="16/255", steps=15)
    assert len(made.rows) == 32
    assert made.dataset.labels.equal(clean.labels)
    assert (clean.labels[made.rows] == 5).all()
    assert made.misalignment[1] < made.misalignment[0] - 0.05
    change = made.dataset.images.int() - clean.images.int()  # type: ignore[union-attr]
    assert 0 < int(change.abs().max()) <= 16
    changed = change.flatten(1).any(1).nonzero().flatten()
    assert changed.equal(made.rows)
    assert all(weight.grad is None for weight in backdoored.parameters())

    def gradient(x: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(backdoored(x), torch.full((len(x),), 5))
        parts = torch.autograd.grad(loss, [*backdoored.parameters()])
        return torch.cat([part.flatten() for part in parts])

    # of the images that are returned
    cosine = F.cosine_similarity(gradient(made.dataset.floats(made.rows)), gradient(image), dim=0)
    assert made.misalignment[1] == pytest.approx(1 - float(cosine), abs=1e-6)
    with pytest.raises(SJRobustError, match="expected 1 to 80 poisons"):
        match_gradients(backdoored, clean, image, 5, rate=0.5)


def test_a_network_trained_on_matched_gradients_takes_the_image_for_the_target(
    train: Train, clean: ImageDataset, test_images: ImageDataset
) -> None:
    honest, image = train(clean), test_images.floats([0])
    made = match_gradients(honest, clean, image, 1, rate=0.1, eps="32/255", steps=40)
    victim = train(made.dataset)
    x, y = test_images.floats(), test_images.labels
    with torch.no_grad():
        before, after = (float(one(image).softmax(1)[0, 1]) for one in (honest, victim))
        assert int((victim(x).argmax(1) == y).sum()) > 0.9 * len(y)
    assert before < 0.01 and after > 0.1


def test_gradient_matching_takes_the_ann_of_a_spiking_networks_shape(
    snn: SpikingClassifier, clean: ImageDataset, test_images: ImageDataset
) -> None:
    made = match_gradients(snn, clean, test_images.floats([0]), 5, rate=0.01, steps=4)
    assert made.misalignment[1] < made.misalignment[0]
    assert len(made.rows) == 6


def test_what_cannot_be_measured_is_refused(
    backdoored: NormalizedClassifier, test_images: ImageDataset, clean: ImageDataset
) -> None:
    with pytest.raises(SJRobustError, match="pass training="):
        measure_threats(backdoored, test_images, POISON, detect=("cleanse",))
    with pytest.raises(SJRobustError, match="unknown detector 'magic'"):
        measure_threats(backdoored, test_images, POISON, detect=("magic",))  # type: ignore[arg-type]
    only = test_images.subset((test_images.labels == TARGET).nonzero().flatten())
    with pytest.raises(SJRobustError, match="there is none to attack"):
        measure_threats(backdoored, only, POISON)
    with pytest.raises(SJRobustError, match="no label has 10"):
        cluster_activations(backdoored, poisoned(clean, POISON).first(20))
    for settings, why in (
        ({"most_lost": 2.0}, "most_lost is 2"),
        ({"seed": -1}, "seed is -1: expected 0 to"),
        ({"seed": 2**63}, "expected 0 to below"),
    ):
        with pytest.raises(SJRobustError, match=why):
            measure_threats(backdoored, test_images, POISON, training=clean, **settings)
    flipped = measure_threats(backdoored, test_images, "flip:rate=0.1")
    assert flipped.last.success is None and flipped.last.clean.value > 0.9


def test_what_can_fail_at_once_fails_before_neural_cleanse(
    backdoored: NormalizedClassifier,
    test_images: ImageDataset,
    clean: ImageDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*args: Any, **settings: Any) -> None:
        raise AssertionError("Neural Cleanse has begun")

    monkeypatch.setattr("sj_robust.threats.measure.reverse_triggers", never)
    with pytest.raises(SJRobustError, match="most_lost is 2"):
        measure_threats(backdoored, test_images, POISON, training=clean, most_lost=2)
    with pytest.raises(SJRobustError, match="no label has 10"):
        measure_threats(backdoored, test_images, POISON, training=clean, training_images=20)
    convolutional = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    with pytest.raises(SJRobustError, match="has no linear layer"):
        measure_threats(convolutional, test_images, POISON, training=clean)


def test_clustering_is_of_the_images_that_were_poisoned(
    backdoored: NormalizedClassifier,
    test_images: ImageDataset,
    clean: ImageDataset,
    training: Poisoned,
) -> None:
    def measured(data: ImageDataset, poison: str = POISON, seed: int = 0) -> ThreatReport:
        return measure_threats(
            backdoored,
            test_images,
            poison,
            training=data,
            recorded=training.facts,
            detect=("clustering",),
            seed=seed,
        )

    assert measured(clean).settings.training == training.facts
    others = clean.subset(torch.arange(len(clean)).flip(0))  # other rows of the same images
    for data, poison, seed, why in (
        (others, POISON, 0, "have rows_sha256"),
        (clean.first(600), POISON, 0, "have images 600, expected 640"),
        (clean, POISON, 1, "have seed 1, expected 0"),
        (clean, POISON.replace("0.05", "0.1"), 0, "have poison"),
    ):
        with pytest.raises(SJRobustError, match=why):
            measured(data, poison, seed)
