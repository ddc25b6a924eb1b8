"""The protocol: joint = intersection, judged by the spikes, on images that never leave the ball."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sj_robust
from sj_robust.attack import FGSM, PGD, Attack, GradientView
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import DEFAULT_VIEWS, Report
from sj_robust.evaluation import evaluate as evaluate_and_check
from sj_robust.evaluation.grid import Grid
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.neuron import ENSEMBLE_VIEWS, Surrogate, ThresholdLIF, parse_view

# test_checks has the checks; here they would only take time
evaluate = partial(evaluate_and_check, check_images=0)

EPS = (4 / 255, 12 / 255)
VIEWS = ("PCW:1", "activation", "rate", "STE")
N = 40


@pytest.fixture
def noisy(dataset: ImageDataset) -> ImageDataset:
    """Every fifth label is wrong, so that a trained model misclassifies some images as they are."""
    labels = dataset.labels.clone()
    labels[::5] = (labels[::5] + 1) % 4
    return replace(dataset, labels=labels)


def correct_and_broken(
    model: nn.Module, dataset: ImageDataset, attack: Attack, seen: nn.Module
) -> tuple[Tensor, Tensor]:
    """Brute force, one image at a time: right as it is; wrong, by the model's own forward, once
    attacked through `seen`."""
    correct, broken = [], []
    for i in range(N):
        x, y = dataset.floats([i]), dataset.labels[i : i + 1]
        x_adv = attack(seen, x, y)
        with torch.no_grad():
            correct.append(bool(model(x).argmax(1) == y))
            broken.append(bool(model(x_adv).argmax(1) != y))
    return torch.tensor(correct), torch.tensor(broken)


def test_joint_is_the_intersection_of_brute_force(
    snn: SpikingClassifier, noisy: ImageDataset
) -> None:
    broken_up_to = torch.zeros(N, dtype=torch.bool)
    settings = dict(eps=EPS, attacks=["fgsm"], views=VIEWS, max_images=N, batch_size=17)
    reports = [evaluate(snn, noisy, survivors_only=only, **settings) for only in (True, False)]
    spiking_and_relu_disagree = False
    for e, eps in enumerate(EPS):
        for view in VIEWS:
            seen = GradientView(snn, parse_view(view))
            correct, broken = correct_and_broken(snn, noisy, FGSM(eps=eps), seen)
            broken_up_to |= broken
            alone = reports[1].robust[e].per_view[view]
            assert alone.attempted == int(correct.sum())
            assert alone.alone is not None
            assert alone.alone.correct == int((correct & ~broken).sum())
            if view == "activation":
                _, by_relu = correct_and_broken(seen, noisy, FGSM(eps=eps), seen)
                spiking_and_relu_disagree |= bool((correct & (broken != by_relu)).any())
        for report in reports:
            assert report.joint[e].accuracy.correct == int((correct & ~broken_up_to).sum())
            expected = [
                None if not ok else broken_now
                for ok, broken_now in zip(correct.tolist(), broken_up_to.tolist(), strict=True)
            ]
            found = [
                None if label != said else name is not None
                for label, said, name in zip(
                    report.per_image.label,
                    report.per_image.predicted,
                    report.per_image.broken_by[e],
                    strict=True,
                )
            ]
            assert found == expected
    assert 0 < int(correct.sum()) < N
    assert spiking_and_relu_disagree  # else "judged by the spikes" would be an empty claim


@pytest.fixture(scope="module")
def both(trained_snn: SpikingClassifier, dataset: ImageDataset) -> tuple[Report, Report]:
    common = dict(eps=(12 / 255, 2 / 255, 6 / 255), attacks=("pgd3", "fgsm"), max_images=40)
    return (
        evaluate(trained_snn, dataset, views=VIEWS, batch_size=13, **common),
        evaluate(trained_snn, dataset, views=VIEWS[::-1], survivors_only=False, **common),
    )


def test_order_and_batching_do_not_change_the_joint_result(both: tuple[Report, Report]) -> None:
    first, second = both
    assert first.settings.views == list(VIEWS)
    assert second.settings.views == list(VIEWS[::-1])
    assert [joint.accuracy for joint in first.joint] == [joint.accuracy for joint in second.joint]
    for one, other in zip(first.per_image.broken_by, second.per_image.broken_by, strict=True):
        assert [name is None for name in one] == [name is None for name in other]


def test_cheap_attacks_and_small_eps_go_first_and_robustness_falls(
    both: tuple[Report, Report],
) -> None:
    for report in both:
        assert [joint.eps for joint in report.joint] == [2 / 255, 6 / 255, 12 / 255]
        expected = [
            (eps, attack) for eps in (2 / 255, 6 / 255, 12 / 255) for attack in ("fgsm", "pgd3")
        ]
        assert [(result.eps, result.attack) for result in report.robust] == expected
        counts = [report.clean.correct, *(result.joint.correct for result in report.robust)]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < counts[0]
        assert [joint.accuracy for joint in report.joint] == [
            result.joint for result in report.robust[1::2]
        ]


def test_only_survivors_are_attacked_again(both: tuple[Report, Report]) -> None:
    first, second = both
    standing = first.clean.correct
    for result, joint in zip(
        first.robust, [joint for joint in first.joint for _ in range(2)], strict=True
    ):
        if result.attack == "fgsm":
            assert joint.carried == first.clean.correct - standing
        for name, view in result.per_view.items():
            assert view.attempted == standing, name
            standing -= view.broken
            assert (view.alone is None) == (view.attempted < first.clean.correct)
        assert result.joint.correct == standing
    for result in second.robust:
        assert result.alone is not None
        assert {view.attempted for view in result.per_view.values()} == {second.clean.correct}
        assert (
            result.joint.correct
            <= result.alone.correct
            <= min(v.alone.correct for v in result.per_view.values() if v.alone)
        )
    assert first.forward_images < second.forward_images


def test_per_image_outcomes_add_up(both: tuple[Report, Report]) -> None:
    for report in both:
        outcome = report.per_image
        assert len(outcome.label) == len(outcome.predicted) == 40
        assert (
            sum(a == b for a, b in zip(outcome.label, outcome.predicted, strict=True))
            == report.clean.correct
        )
        for joint, names in zip(report.joint, outcome.broken_by, strict=True):
            assert (
                sum(name is not None for name in names)
                == report.clean.correct - joint.accuracy.correct
            )
            assert {name for name in names if name} <= {
                f"{attack} {view}" for attack in report.settings.attacks for view in VIEWS
            }
        for small, large in zip(outcome.broken_by, outcome.broken_by[1:], strict=False):
            # carried with its name
            assert all(
                after == before for before, after in zip(small, large, strict=True) if before
            )


@dataclass(frozen=True, kw_only=True)
class Still(Attack):
    """Changes nothing, and notes which images it was given."""

    given: list[int]

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Tensor:
        assert ids is not None
        self.given.extend(ids.tolist())
        return x.clone()


def test_images_that_are_wrong_anyway_are_not_robust_and_not_attacked(
    ann: NormalizedClassifier, noisy: ImageDataset
) -> None:
    given: list[int] = []
    report = evaluate(ann, noisy, attacks=[partial(Still, given=given)], eps=(0.1,), max_images=N)
    with torch.no_grad():
        right = (
            (ann(noisy.floats(range(N))).argmax(1) == noisy.labels[:N]).nonzero().flatten().tolist()
        )
    assert 0 < len(right) < N
    assert given == right
    assert report.clean.correct == report.joint[0].accuracy.correct == len(right)


@dataclass(frozen=True, kw_only=True)
class Escaping(Attack):
    """An attack that does not keep to the rules."""

    how: str

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Tensor:
        x_adv = x.clone()
        if self.how == "ball":
            x_adv[:3] = torch.where(x[:3] > 0.5, x[:3] - self.eps - 3e-6, x[:3] + self.eps + 3e-6)
        elif self.how == "range":
            x_adv[:3] = torch.where(x[:3] > 0.5, torch.tensor(1 + 1e-6), torch.tensor(-1e-6))
        elif self.how == "nan":
            x_adv[:3, 0, 0, 0] = float("nan")
        else:
            x_adv = x_adv[:-1]
        return x_adv


@pytest.mark.parametrize("how", ["ball", "range", "nan"])
def test_an_attack_that_leaves_the_ball_is_an_error(
    how: str, snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    eps = 1.0 if how == "range" else 0.1
    with pytest.raises(
        SJRobustError,
        match=r"escaping at eps .* through view rate left the eps ball .* on 3 of 10 images",
    ):
        evaluate(
            snn,
            dataset.subset(clean_indices(snn, dataset)[:10]),
            attacks=[partial(Escaping, how=how)],
            eps=(eps,),
            views=["rate"],
        )


def test_an_attack_of_the_wrong_shape_is_an_error(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    with pytest.raises(SJRobustError, match=r"escaping at eps 0\.1 through view exact returned"):
        evaluate(ann, dataset, attacks=[partial(Escaping, how="shape")], eps=(0.1,), max_images=10)


def clean_indices(model: nn.Module, dataset: ImageDataset) -> Tensor:
    with torch.no_grad():
        return (model(dataset.floats()).argmax(1) == dataset.labels).nonzero().flatten()


def test_spikes_judge_even_if_the_caller_left_another_view(
    snn: SpikingClassifier, noisy: ImageDataset
) -> None:
    settings = dict(attacks=["fgsm"], views=["activation"], eps=(12 / 255,), max_images=N)
    expected = evaluate(snn, noisy, **settings)
    with snn.gradient("activation"):
        found = evaluate(snn, noisy, **settings)
        assert {str(node.view) for node in snn.nodes().values()} == {"activation"}
    assert (found.per_image, found.activity) == (expected.per_image, expected.activity)


def test_the_model_is_left_as_it_was(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    state = {name: value.clone() for name, value in snn.state_dict().items()}
    before = torch.get_rng_state()
    snn.train()
    try:
        norm = next(module for module in snn.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        training = evaluate(
            snn, dataset, max_images=10, eps=(0.02,), attacks=["pgd2"], views=["STE"]
        )
        assert snn.training
        assert not norm.training
    finally:
        snn.eval()
    assert (
        evaluate(
            snn, dataset, max_images=10, eps=(0.02,), attacks=["pgd2"], views=["STE"]
        ).per_image
        == training.per_image
    )
    assert all(torch.equal(value, state[name]) for name, value in snn.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in snn.parameters())
    assert not any(module._forward_hooks for module in snn.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_passes_are_counted_in_images(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    report = evaluate(ann, dataset, attacks=["pgd3"], eps=(0.02,), max_images=20, batch_size=8)
    right = report.clean.correct
    # clean; steps, the last image's margin, judgement
    assert report.forward_images == 20 + right * (3 + 1 + 1)
    assert report.backward_images == right * 3


def test_facts_are_recorded(
    snn: SpikingClassifier, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    attack = partial(PGD, steps=2, step_size=0.01)
    report = evaluate(
        snn,
        dataset,
        attacks=[attack],
        eps=(0.02,),
        views=[Surrogate("PCW", 2.0)],
        max_images=10,
        seed=7,
    )
    assert (report.model.kind, report.model.timesteps, report.model.num_classes) == ("snn", 4, 4)
    assert report.model.settings == snn.settings
    assert report.model.parameters == sum(p.numel() for p in snn.parameters())
    assert report.dataset.fingerprint == dataset.fingerprint
    assert (
        report.dataset.name,
        report.dataset.split,
        report.dataset.size,
        report.dataset.evaluated,
    ) == ("small", "test", 160, 10)
    assert report.robust[0].settings == {
        "name": "pgd2",
        "eps": 0.02,
        "norm": "linf",
        "targeted": False,
        "restarts": 1,
        "loss": "ce",
        "steps": 2,
        "step_size": 0.01,
        "random_start": True,
        "keep": "best",
    }
    assert (
        report.settings.seed,
        report.settings.views,
        report.settings.attacks,
        report.settings.device,
    ) == (7, ["PCW:2"], ["pgd2"], "cpu")
    assert report.versions["torch"] == importlib.metadata.version("torch")
    assert report.versions["sj_robust"] == sj_robust.__version__
    assert any("first 10 of 160" in limit for limit in report.limits)
    assert any(
        "pgd2 through the gradient view PCW:2 is an upper bound" in limit for limit in report.limits
    )

    plain = evaluate(ann, dataset, attacks=[], max_images=10)
    assert (plain.model.kind, plain.model.timesteps, plain.activity, plain.joint, plain.robust) == (
        "ann",
        None,
        None,
        [],
        [],
    )
    assert plain.model.weights_sha256 != report.model.weights_sha256
    assert (
        evaluate(ann, dataset, attacks=[], max_images=5).model.weights_sha256
        == plain.model.weights_sha256
    )


def test_other_seeds_draw_other_noise_and_the_same_seed_the_same(
    ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Spy(PGD):
        def start(self, x: Tensor, seed: int, ids: Tensor, restart: int) -> Tensor:
            seen.append(super().start(x, seed, ids, restart))
            return seen[-1]

    for seed in (0, 0, 1):
        evaluate(ann, dataset, attacks=[partial(Spy, steps=1)], eps=(0.1,), max_images=8, seed=seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_spikes_are_counted_per_neuron_and_layer() -> None:
    """Identity layers, threshold 1, T = 4: a white pixel spikes at every step, a grey one (0.6) at
    every second, a black one never."""
    first_node, second_node = (
        SpikingActivation(ThresholdLIF(threshold), 4) for threshold in (1.0, 3.0)
    )
    layers = (
        nn.Conv2d(1, 1, 1),
        first_node,
        nn.Conv2d(1, 2, 1),
        second_node,
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    with torch.no_grad():
        for layer in (layers[0], layers[2]):
            layer.weight.fill_(1)
            layer.bias.zero_()
    snn = SpikingClassifier(nn.Sequential(*layers), timesteps=4, mean=[0.0], std=[1.0])
    images = torch.tensor([[255, 153, 0, 0], [255, 255, 255, 0]], dtype=torch.uint8).view(
        2, 1, 2, 2
    )
    data = ImageDataset(images, torch.tensor([0, 1]), ("a", "b"), "pixels", "test")
    activity = evaluate(snn, data, attacks=[]).activity
    assert activity is not None
    first, second = activity.layers.values()
    assert (first.neurons, first.spikes_per_neuron, first.rate) == (
        4,
        (4 + 2 + 4 * 3) / 8,
        (4 + 2 + 4 * 3) / 32,
    )
    # Behind it, two channels at threshold 3: a white pixel's four spikes make one, all others none.
    assert (second.neurons, second.spikes_per_neuron) == (8, 2 * 4 * 1 / 16)
    assert activity.neurons == 12
    assert activity.spikes_per_image == (18 + 8) / 2
    assert activity.spikes_per_neuron == pytest.approx(26 / 2 / 12)


def test_the_default_ensemble_is_all_19_views(
    snn: SpikingClassifier, dataset: ImageDataset
) -> None:
    assert set(DEFAULT_VIEWS) == set(ENSEMBLE_VIEWS)
    assert len(DEFAULT_VIEWS) == 19
    report = evaluate(snn, dataset, attacks=["fgsm"], eps=(8 / 255,), max_images=16)
    assert report.settings.views == [str(view) for view in DEFAULT_VIEWS]
    assert any("through 19 gradient views" in limit for limit in report.limits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_images=0), "max_images is 0: expected 1 to 160"),
        (dict(max_images=161), "max_images is 161: expected 1 to 160, the images of small test"),
        (dict(batch_size=0), "batch_size is 0"),
        (
            dict(eps=(8,)),
            r"eps is 8: expected 0 to 1, in units of the image range \(8/255, not 8\)",
        ),
        (dict(eps=(float("nan"),)), "eps is nan"),
        (dict(attacks=["autoattack"]), "unknown attack 'autoattack': expected one of fgsm"),
        (
            dict(attacks=["pgd2", partial(PGD, steps=2, step_size=0.1)]),
            "two attacks have the same name: pgd2, pgd2",
        ),
        (dict(views=["PCW:1"]), "has its exact gradient and no other"),
    ],
)
def test_wrong_settings_are_named(
    settings: dict[str, object], message: str, ann: NormalizedClassifier, dataset: ImageDataset
) -> None:
    with pytest.raises(SJRobustError, match=message):
        evaluate(ann, dataset, **settings)


def test_wrong_views_are_named(snn: SpikingClassifier, dataset: ImageDataset) -> None:
    with pytest.raises(SJRobustError, match="nonsense"):
        evaluate(snn, dataset, views=["nonsense"])
    with pytest.raises(SJRobustError, match="views is empty"):
        evaluate(snn, dataset, views=[])


def test_data_that_does_not_fit_is_named(ann: NormalizedClassifier, dataset: ImageDataset) -> None:
    large = replace(dataset, images=torch.zeros(160, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(SJRobustError, match=r"cannot take the images of small, \[3, 16, 16\]"):
        evaluate(ann, large)
    with pytest.raises(
        SJRobustError, match=r"cannot take the images of small, \[1, 8, 8\].*expected \[N,3,H,W\]"
    ):
        evaluate(ann, replace(dataset, images=dataset.images[:, :1]))
    with pytest.raises(SJRobustError, match="small has the label 9, the model's are 0 to 3"):
        evaluate(ann, replace(dataset, labels=dataset.labels + 6, classes=tuple("0123456789")))
    with pytest.raises(SJRobustError, match="has no images"):
        evaluate(ann, dataset.first(0))
    with pytest.raises(SJRobustError, match=r"returns \[1, 4, 1, 1\] for one image"):
        evaluate(nn.Sequential(ann, nn.Unflatten(1, (4, 1, 1))), dataset)


def test_a_model_with_nan_logits_is_named(dataset: ImageDataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with torch.no_grad():
        model[1].bias[0] = float("nan")
    with pytest.raises(SJRobustError, match="logits that are not finite"):
        evaluate(model, dataset)


@pytest.mark.parametrize("grid", [None, "8bit"])
def test_adversarial_images_are_kept_as_they_are_found(
    snn: SpikingClassifier, noisy: ImageDataset, tmp_path: Path, grid: Grid | None
) -> None:
    folder = tmp_path / "found"
    report = evaluate(
        snn, noisy, eps=EPS, attacks=["fgsm", "pgd3"], views=VIEWS, max_images=N, batch_size=17,
        grid=grid, adversarial=folder,
    )  # fmt: skip
    fallen: set[int] = set()
    for at, (eps, name) in enumerate(zip(EPS, ("4-255", "12-255"), strict=True)):
        files = sorted((folder / name).iterdir())
        assert [file.name for file in files] == [
            f"{image:06d}.npy"
            for image, by in enumerate(report.per_image.broken_by[at])
            if by is not None and image not in fallen
        ]
        for file in files:
            image = int(file.stem)
            fallen.add(image)
            found = torch.from_numpy(np.load(file))[None]
            x, label = noisy.floats([image]), noisy.labels[image]
            assert found.dtype == torch.float32
            assert float((found - x).abs().max()) <= eps + 1e-6
            assert 0 <= float(found.min()) and float(found.max()) <= 1
            assert snn(found).argmax(1) != label == snn(x).argmax(1)
    assert fallen
    (tmp_path / "file").touch()
    with pytest.raises(SJRobustError, match="is a file, expected a folder"):
        evaluate(snn, noisy, eps=EPS, adversarial=tmp_path / "file")


def test_radii_that_are_written_alike_are_one(snn: SpikingClassifier, noisy: ImageDataset) -> None:
    report = evaluate(
        snn, noisy, eps=[0.01, 0.0100000001, "4/255"], attacks=["fgsm"], views=["PCW:1"],
        max_images=4,
    )  # fmt: skip
    assert report.settings.eps == [0.01, 4 / 255]
