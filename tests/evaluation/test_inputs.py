"""What is handed to an evaluation: few classes, names of classes, settings without effect, data of
other forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sj_robust import SJRobustError, convert, evaluate
from sj_robust.attack import PGD
from sj_robust.data import ImageDataset
from sj_robust.evaluation import PROTOCOLS
from sj_robust.evaluation.certificate import certify
from sj_robust.evaluation.corrupted import evaluate_corruptions
from sj_robust.evaluation.latency import measure_latency
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.training import TrainConfig, finetune, train_ann

QUICK: dict[str, Any] = dict(check_images=0, show_progress=False)
HALF = 0.5  # no image survives it, so that the dear attacks have nothing to do


def of_classes(count: int) -> NormalizedClassifier:
    torch.manual_seed(1)
    layers = (
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, count),
    )
    return NormalizedClassifier(nn.Sequential(*layers), (0.5,) * 3, (0.25,) * 3).eval()


def right(model: nn.Module, dataset: ImageDataset, classes: int) -> ImageDataset:
    """Eight images with the labels that the model gives them."""
    with torch.no_grad():
        labels = model(dataset.floats(range(8))).argmax(1)
    return ImageDataset(dataset.images[:8], labels, tuple("abcdefgh"[:classes]), "few", "test")  # type: ignore[index]


@pytest.mark.parametrize(
    ("protocol", "classes", "attacks", "replaced"),
    [
        ("quick", 2, ["fgsm", "pgd10"], []),
        ("quick", 3, ["fgsm", "pgd10"], []),
        (
            "paper",
            2,
            ["fgsm", "pgd20", "apgd10-ce"],
            ["apgd10-ce in place of apgd10-dlr", "apgd10-ce in place of apgd10-t"],
        ),
        (
            "paper",
            3,
            ["fgsm", "pgd20", "apgd10-ce", "apgd10-dlr"],
            ["apgd10-dlr in place of apgd10-t"],
        ),
        (
            "strong",
            2,
            ["pgd10", "rotating50", "square1000", "apgd100-ce"],
            ["apgd100-ce in place of apgd100-t3"],
        ),
        (
            "strong",
            3,
            ["pgd10", "rotating50", "square1000", "apgd100-dlr"],
            ["apgd100-dlr in place of apgd100-t3"],
        ),
        (
            "autoattack",
            2,
            ["apgd100-ce", "fab-t", "square5000"],
            ["apgd100-ce in place of apgd100-t"],
        ),
        (
            "autoattack",
            3,
            ["apgd100-ce", "apgd100-dlr", "fab-t", "square5000"],
            ["apgd100-dlr in place of apgd100-t"],
        ),
    ],
)
def test_protocols_say_what_they_run_on_few_classes(
    dataset: ImageDataset, protocol: str, classes: int, attacks: list[str], replaced: list[str]
) -> None:
    ann = of_classes(classes)
    report = evaluate(ann, right(ann, dataset, classes), protocol=protocol, eps=HALF, **QUICK)
    assert report.settings.attacks == attacks
    said = [limit for limit in report.limits if "in place of" in limit]
    assert len(said) == len(replaced)
    for limit, words in zip(said, replaced, strict=True):
        assert (
            limit.startswith(f"With {classes} classes {PROTOCOLS[protocol]} runs ")
            and words in limit
        )


def test_a_spiking_network_of_two_classes_with_its_ann_to_transfer_from(
    dataset: ImageDataset,
) -> None:
    ann = of_classes(2)
    snn = convert(ann, dataset.floats().view(2, 80, 3, 8, 8), 2, calibration_timesteps=4)
    report = evaluate(
        snn,
        right(snn, dataset, 2),
        protocol="strong",
        eps=HALF,
        transfer={"ann": ann},
        check_images=4,
        show_progress=False,
    )
    assert (
        "transfer:ann" in report.robust[1].settings["sources"]
        and report.settings.attacks[-1] == "square2500"
    )
    assert not any("in place of" in limit for limit in report.limits)


@pytest.mark.parametrize(
    ("attack", "classes"),
    [("apgd10-t", 3), ("apgd10-dlr", 2), ("sapgd10-dlr", 2), (partial(PGD, loss="dlr"), 2)],
)
def test_an_attack_that_needs_more_classes_is_refused_before_the_first(
    dataset: ImageDataset, attack: Any, classes: int
) -> None:
    ann = of_classes(classes)
    with pytest.raises(
        SJRobustError, match=f"classes, the model has {classes}: use an attack on the loss ce"
    ):
        evaluate(
            ann, right(ann, dataset, classes), eps=HALF, attacks=["square5000", attack], **QUICK
        )


def test_one_class_is_refused(dataset: ImageDataset) -> None:
    ann, data = of_classes(1), ImageDataset(dataset.images, torch.zeros(160), ("a",), "one", "test")
    for call in (
        lambda: evaluate(ann, data, eps=HALF, **QUICK),
        lambda: certify(ann, data, sigma=0.1),
    ):
        with pytest.raises(
            SJRobustError, match="one logit: expected one for each of two or more classes"
        ):
            call()
    with pytest.raises(SJRobustError, match="nothing to tell apart"):
        train_ann(ann, data, TrainConfig(epochs=1, validation=8), "not-written")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(protocol="quick", attacks=["fgsm"]),
            "quick@1 says which attacks run: leave attacks out",
        ),
        (dict(protocol="quick", attacks=["fgsm", "pgd10"]), "says which attacks run"),
        (dict(protocol="quick", attacks=()), "says which attacks"),
        (dict(protocol="quick", views=["PCW:1"]), "fixes its views"),
        (dict(protocol="quick", transfer=True), "has no transfer attack"),
        (dict(attacks=["square9"], transfer=True), "leave transfer out"),
        (dict(attacks=["square9"], views=["PCW:1"]), "leave views out"),
        (dict(attacks=["fgsm"], restarts=3), "restarts is 3, and none"),
        (dict(attacks=["fgsm", "fab", "noise5"], restarts=3), "restarts is 3"),
        (dict(attacks=[partial(PGD, norm="l2")]), "an attack under l2, the evaluation under linf"),
        (dict(time_limit=0), "time_limit is 0"),
        (dict(time_limit=-1), "time_limit is -1"),
        (dict(eps=()), "eps is empty"),
        (dict(eps=128, norm="l2"), r"at most 13.9 apart.*128/255"),
    ],
)
def test_settings_without_effect_are_refused(
    snn: SpikingClassifier,
    ann: NormalizedClassifier,
    dataset: ImageDataset,
    settings: dict[str, Any],
    message: str,
) -> None:
    if settings.get("transfer"):
        settings = settings | {"transfer": {"ann": ann}}
    with pytest.raises(SJRobustError, match=message):
        evaluate(snn, dataset, **(dict(eps=HALF) | QUICK | settings))


@pytest.mark.parametrize("idle", [dict(attack="fgsm"), dict(view="rate"), dict(robust_images=5)])
def test_latency_without_eps_has_no_attack(
    snn: SpikingClassifier, dataset: ImageDataset, idle: dict[str, Any]
) -> None:
    with pytest.raises(SJRobustError, match=f"{next(iter(idle))} has no effect without eps"):
        measure_latency(snn, dataset, max_images=8, show_progress=False, **idle)


@pytest.mark.parametrize(
    "eps", ["8/255", 8 / 255, torch.tensor(8 / 255, dtype=torch.float64), ("8/255",), {8 / 255}]
)
def test_one_radius_in_any_form(ann: NormalizedClassifier, dataset: ImageDataset, eps: Any) -> None:
    assert evaluate(
        ann, dataset, eps=eps, attacks=["fgsm"], max_images=4, **QUICK
    ).settings.eps == [8 / 255]
    assert PGD(eps="8/255").eps == 8 / 255  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (8, r"8/255, not 8"),
        ("8", "8/255, not 8"),
        ("a", "neither a number nor a fraction"),
        (True, "True is not"),
        (-1, "≥ 0"),
        ([0.1, "x"], "'x'"),
        (torch.ones(2, 2), "not one number"),
        ("1e400", "neither"),
        ("1e999999999", "neither"),
        ("nan/2", "neither"),
        ("9" * 5000, "neither"),
    ],
)
def test_what_is_no_radius_is_refused(
    ann: NormalizedClassifier, dataset: ImageDataset, eps: Any, message: str
) -> None:
    with pytest.raises(SJRobustError, match=message):
        evaluate(ann, dataset, eps=eps, **QUICK)


@pytest.mark.parametrize("count", [0, -1, 3.5, "4", 10**9])
def test_a_number_of_images_that_is_none_is_refused(
    ann: NormalizedClassifier, dataset: ImageDataset, count: Any
) -> None:
    with pytest.raises(SJRobustError, match="max_images is"):
        evaluate(ann, dataset, max_images=count, **QUICK)


def test_l2_radii_may_be_above_1(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    assert evaluate(
        ann, dataset, eps=(2, 0.5), norm="l2", attacks=["pgd2"], max_images=4, **QUICK
    ).settings.eps == [0.5, 2.0]
    with pytest.raises(SJRobustError, match="not 2"):
        PGD(eps=2)


@pytest.fixture
def knowing(snn: SpikingClassifier, dataset: ImageDataset) -> Any:
    """The network, which knows its classes for the time of a test."""
    snn.classes = dataset.classes
    yield snn
    snn.classes = None


MEASURES: dict[str, Callable[..., float]] = {
    "evaluate": lambda net, data: evaluate(net, data, attacks=(), **QUICK).clean.value,
    "latency": (
        lambda net, data: (
            measure_latency(net, data, max_images=160, show_progress=False).clean[-1].value
        )
    ),
    "certify": (
        lambda net, data: (
            certify(
                net, data, sigma=0.05, n0=4, n=16, alpha=0.01, max_images=20, show_progress=False
            ).smoothed.value
        )
    ),
    "corruptions": (
        lambda net, data: (
            evaluate_corruptions(
                net, data, names=["fog"], severities=[1], show_progress=False
            ).clean.value
        )
    ),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measurement_compares_class_names(
    knowing: SpikingClassifier, dataset: ImageDataset, measure: str
) -> None:
    expected = MEASURES[measure](knowing, dataset)
    turned = replace(
        dataset,
        labels=(dataset.labels + 1) % 4,
        classes=(dataset.classes[-1], *dataset.classes[:-1]),
    )
    with pytest.warns(
        UserWarning, match="another order than the network: the labels are mapped by name"
    ):
        assert MEASURES[measure](knowing, turned) == expected
    renamed = dataset.with_classes(("x", *dataset.classes[1:]))
    with pytest.raises(
        SJRobustError, match=f"does not know: 'x' where the network has {dataset.classes[0]!r}"
    ):
        MEASURES[measure](knowing, renamed)
    assert MEASURES[measure](knowing, renamed.with_classes(dataset.classes)) == expected


def test_training_learns_the_labels_of_the_network(
    trained_ann: NormalizedClassifier,
    knowing: SpikingClassifier,
    dataset: ImageDataset,
    tmp_path: Any,
) -> None:
    with pytest.raises(SJRobustError, match="does not know"):
        finetune(knowing, dataset.with_classes(("w", "x", "y", "z")), folder=tmp_path / "other")
    fresh = of_classes(4)
    train_ann(
        fresh,
        dataset,
        TrainConfig(epochs=0.1, batch_size=16, validation=16, eps=0.01),
        tmp_path / "run",
        show_progress=False,
    )
    assert fresh.classes == dataset.classes
    assert (
        convert(fresh, dataset.floats().view(2, 80, 3, 8, 8), 2, calibration_timesteps=4).classes
        == dataset.classes
    )


def test_another_model_must_tell_the_same_classes_apart(
    knowing: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    with pytest.raises(SJRobustError, match=r"small has the label|has 3 classes, this one 4"):
        evaluate(
            knowing, dataset, eps=HALF, attacks=["fgsm"], transfer={"few": of_classes(3)}, **QUICK
        )
    other = of_classes(4)
    other.classes = tuple(reversed(dataset.classes))
    with pytest.raises(SJRobustError, match="transfer from, other, has other classes"):
        evaluate(knowing, dataset, eps=HALF, attacks=["fgsm"], transfer={"other": other}, **QUICK)


def test_a_loader_is_evaluated_and_calibrates(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    loader = DataLoader(TensorDataset(dataset.floats(), dataset.labels), 40)
    report = evaluate(ann, loader, attacks=["fgsm"], eps="4/255", **QUICK)  # type: ignore[arg-type]
    same = evaluate(ann, dataset, attacks=["fgsm"], eps="4/255", **QUICK)
    assert (
        report.per_image == same.per_image
        and report.dataset.fingerprint == same.dataset.fingerprint
    )
    from_loader = convert(ann, loader, 2, calibration_timesteps=4)
    from_tensor = convert(ann, dataset.floats().view(4, 40, 3, 8, 8), 2, calibration_timesteps=4)
    assert from_loader.thresholds() == from_tensor.thresholds()


def test_passes_are_the_attacks_own_also_where_a_network_does_not_say_how_many_classes_it_has(
    dataset: ImageDataset,
) -> None:
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    silent = NormalizedClassifier(nn.Sequential(*layers), (0.5,) * 3, (0.25,) * 3).eval()
    saying = NormalizedClassifier(silent.backbone, (0.5,) * 3, (0.25,) * 3, num_classes=10).eval()
    reports = [
        evaluate(model, dataset, attacks=["fgsm"], eps=8 / 255, **QUICK)
        for model in (silent, saying)
    ]
    assert reports[0].forward_images == reports[1].forward_images
    assert reports[0].robust[0].forward_images == reports[1].robust[0].forward_images
