from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from sj_robust.attack import PGD
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation import certify_intervals
from sj_robust.model import NormalizedClassifier
from sj_robust.training import finetune, loop, train_ann
from sj_robust.training.plan import Plan
from sj_robust.training.session import reproducible
from sj_robust.training.validation import validate


def accuracy(model: nn.Module, dataset: ImageDataset, eps: float = 0.0) -> float:
    x, y = dataset.floats(), dataset.labels
    if eps:
        x = PGD(eps=eps, steps=5)(model, x, y)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("method", ["natural", "pgd", "trades", "trades-rfgsm", "mart"])
def test_an_ann_learns(toy, tmp_path, method):
    model = toy.ann()
    result = train_ann(model, toy.patterns(), toy.config(method=method), tmp_path)
    assert accuracy(model, toy.patterns(seed=5)) > 0.9
    assert not model.training
    assert result.best.clean > 0.9
    assert (result.best.robust is None) == (method == "natural")


@pytest.mark.parametrize("method", ["pgd", "trades", "trades-rfgsm", "mart"])
@pytest.mark.parametrize("kind", ["ann", "finetune"])
def test_a_step_reads_nothing_back(toy, tmp_path, monkeypatch, kind, method):
    """On a GPU each look at a tensor waits for all the work before it."""
    looks: list[str] = []

    def watched(*args, step=loop.train_step):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
                real = getattr(Tensor, name)

                def look(tensor, name=name, real=real):
                    looks.append(name)
                    return real(tensor)

                patch.setattr(Tensor, name, look)
            return step(*args)

    monkeypatch.setattr(loop, "train_step", watched)
    config = toy.config(kind, epochs=0.2, method=method, validation_steps=1)
    run, model = (train_ann, toy.ann()) if kind == "ann" else (finetune, toy.snn())
    run(model, toy.patterns(), config, tmp_path)
    assert not looks


def test_training_leaves_tf32_as_it_is(monkeypatch):
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        with reproducible(torch.device("cpu")):
            assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("method", ["natural", "pgd", "trades", "trades-rfgsm", "mart"])
def test_an_snn_learns(toy, tmp_path, method):
    model = toy.snn()
    finetune(
        model, toy.patterns(), toy.config("finetune", method=method, epochs=6, lr=0.05), tmp_path
    )
    assert accuracy(model, toy.patterns(seed=5)) > 0.8


def test_half_weights_are_those_that_float16_holds(toy, tmp_path):
    rounded, plain = toy.ann(), toy.ann()
    train_ann(rounded, toy.patterns(), toy.config(half_weights=True), tmp_path / "half")
    train_ann(plain, toy.patterns(), toy.config(), tmp_path / "whole")
    expected = {
        key: tensor.half().float() if tensor.is_floating_point() else tensor
        for key, tensor in plain.state_dict().items()
    }
    found = rounded.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert any(not torch.equal(found[key], tensor) for key, tensor in plain.state_dict().items())


def test_interval_bounds_certify_what_they_trained(toy, tmp_path):
    model = toy.ann(dropout=0)
    config = toy.config(method="ibp", eps="4/255", epochs=12, lr=0.1)
    result = train_ann(model, toy.patterns(), config, tmp_path / "ibp")
    assert accuracy(model, toy.patterns(seed=5)) > 0.9
    other = toy.ann(dropout=0)
    train_ann(other, toy.patterns(), toy.config(method="natural", epochs=12), tmp_path / "other")
    held_out = toy.patterns(100, seed=5)
    certified = [
        certify_intervals(each, held_out, eps="4/255", attempts=5).results[0].certified.value
        for each in (model, other)
    ]
    assert certified[0] > 0.8 > certified[1] + 0.2
    assert result.best.robust > 0.8  # certified: what selects the step
    with pytest.raises(SJRobustError, match="method ibp trains ANNs"):
        finetune(toy.snn(), toy.patterns(), toy.config("finetune", method="ibp"), tmp_path / "snn")
    with pytest.raises(SJRobustError, match="dropout in training mode"):
        train_ann(toy.ann(), toy.patterns(), config, tmp_path / "dropout")


class Flatten(nn.Module):
    """As users write it; a feature map in channels_last cannot be viewed so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_a_network_that_views_its_feature_maps_is_trained(toy, tmp_path, kind):
    model = getattr(toy, kind)()
    model.backbone[-3 if kind == "ann" else -2] = Flatten()
    train = train_ann if kind == "ann" else finetune
    result = train(
        model,
        toy.patterns(),
        toy.config("ann" if kind == "ann" else "finetune", epochs=0.25),
        tmp_path,
    )
    assert result.steps == 2


def test_names_that_are_known_stay_where_the_data_has_none(toy, tmp_path):
    model = toy.ann()
    model.classes = ("cat", "dog", "bird", "fish")
    train_ann(model, toy.patterns().with_classes(tuple("0123")), toy.config(epochs=0.25), tmp_path)
    assert model.classes == ("cat", "dog", "bird", "fish")


def two_kinds_of_features(count: int = 600, seed: int = 0) -> ImageDataset:
    """After Tsipras et al. 2019: one large patch right for 90 % of the images, and a faint pattern
    always right but inside eps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    sign = (2 * labels - 1).view(-1, 1, 1, 1).float()
    faint = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(99)).sign()
    images = 0.5 + 0.04 * sign * faint + 0.02 * torch.randn(count, 1, 8, 8, generator=generator)
    right = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.9, 1.0, -1.0)
    images[:, :, :4, :4] = 0.5 + 0.3 * sign * right
    return ImageDataset(
        (images.clamp(0, 1) * 255).round().to(torch.uint8), labels, ("a", "b"), "two-kinds", "train"
    )


def test_adversarial_training_beats_natural_training_under_attack(toy, tmp_path):
    def trained(method: str) -> nn.Module:
        torch.manual_seed(0)
        model = NormalizedClassifier(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)),
            (0.5,),
            (0.25,),
        )
        settings = toy.config(
            method=method, eps=0.1, attack_steps=3, step_size=None, epochs=15, lr=0.1
        )
        train_ann(model, two_kinds_of_features(), settings, tmp_path / method)
        return model

    test = two_kinds_of_features(seed=1)
    natural = trained("natural")
    assert accuracy(natural, test) > 0.97
    assert accuracy(natural, test, eps=0.1) < 0.4
    for method in ("pgd", "trades"):
        assert accuracy(trained(method), test, eps=0.1) > 0.8


def test_validation_images_are_stratified_and_never_trained_on(toy):
    numbered = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    numbered[:, 0, 0, 0] = torch.arange(200)
    dataset = ImageDataset(numbered, torch.arange(200) % 4, tuple("abcd"), "numbered", "train")
    plan = Plan.make(dataset, toy.config(validation=40, batch_size=16))
    held_out = set(plan.held_out.images[:, 0, 0, 0].tolist())
    assert plan.held_out.labels.bincount().tolist() == [10] * 4
    stream, trained_on = plan.batches(0), set()
    for _ in range(3 * plan.per_epoch):
        trained_on |= set((next(stream)[1][:, 0, 0, 0] * 255).round().int().tolist())
    assert len(held_out) == 40
    assert len(trained_on) > 155
    assert not held_out & trained_on


def test_the_stream_of_batches_goes_on_anywhere(toy):
    plan = Plan.make(toy.patterns(), toy.config(augmentation="crop-flip-cutout"))
    whole = plan.batches(0)
    for step in range(3 * plan.per_epoch):
        for expected, found in zip(next(whole), next(plan.batches(step)), strict=True):
            assert torch.equal(expected, found)


def test_the_model_holds_the_step_that_validated_best(toy, tmp_path):
    model, config = toy.ann(), toy.config(epochs=4, validate_every=0.25, lr=0.5, eps=0.08)
    result = train_ann(model, toy.patterns(), config, tmp_path)
    assert [v.step for v in result.validations] == list(range(2, 33, 2))
    assert result.best.score == max(v.score for v in result.validations)
    held_out = Plan.make(toy.patterns(), config).held_out
    assert validate(model, held_out, config, result.best.step) == result.best


def test_fractions_of_an_epoch_and_the_facts_of_the_result(toy, tmp_path):
    result = train_ann(toy.ann(), toy.patterns(), toy.config(epochs=0.5), tmp_path)
    assert (result.steps, result.epochs, result.images, result.validation_images) == (
        4,
        0.5,
        256,
        64,
    )
    assert (result.kind, result.dataset, result.split) == ("ann", "patterns", "train")
    assert result.fingerprint == toy.patterns().fingerprint
    assert result.images_per_second > 0
    assert result.model_validate_json(result.model_dump_json()) == result
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_log_has_every_step_once(toy, tmp_path):
    train_ann(
        toy.ann(), toy.patterns(), toy.config(method="trades", epochs=2, log_every=5), tmp_path
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("train", 5),
        ("validation", 8),
        ("train", 10),
        ("train", 15),
        ("train", 16),
        ("validation", 16),
    ]
    assert lines[0].keys() == {
        "event",
        "step",
        "epoch",
        "lr",
        "loss",
        "ce",
        "kl",
        "clean",
        "robust",
        "images_per_second",
        "seconds",
    }
    assert lines[0]["loss"] == pytest.approx(lines[0]["ce"] + 6 * lines[0]["kl"], rel=1e-4)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_an_average_of_the_weights_is_what_is_kept(toy, tmp_path, kind):
    """With decay d_t = min(0.9, (1+t)/(10+t)) after every step, recomputed from the weights of
    shorter runs."""

    def after(steps: int, ema: float) -> dict[str, torch.Tensor]:
        model = getattr(toy, kind)()
        # lr of a cosine over any number of steps differs, so the schedule must not: one epoch each,
        # validated at the end
        config = toy.config(
            epochs=1, ema=ema, lr=0.05, schedule="cosine", batch_size=256 // steps, validate_every=1
        )
        (train_ann if kind == "ann" else finetune)(
            model, toy.patterns(), config, tmp_path / f"{steps}-{ema}"
        )
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    start = getattr(toy, kind)().state_dict()
    raw, averaged = after(1, 0), after(1, 0.9)
    for name, tensor in raw.items():
        expected = 0.1 * start[name] + 0.9 * tensor if tensor.is_floating_point() else tensor
        torch.testing.assert_close(averaged[name], expected, msg=name)
        # thresholds and batch-norm buffers move as well
        assert not torch.equal(start[name], averaged[name]), name


def test_training_leaves_random_state_alone(toy, tmp_path):
    model, before = toy.ann(), torch.get_rng_state()
    train_ann(model, toy.patterns(), toy.config(epochs=0.5), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_diverging_run_stops_and_leaves_its_last_good_state(toy, tmp_path):
    class Fragile(NormalizedClassifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits * float("nan") if self.training and next(counter) >= 11 else logits

    counter = iter(range(1000))
    sound = toy.ann()
    model = Fragile(sound.backbone, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(SJRobustError, match="diverged: the loss is nan at step 11"):
        train_ann(model, toy.patterns(), toy.config(), tmp_path)
    # the state is that of the first epoch, 8 steps, and goes on from there with a sound model
    model = toy.ann(seed=4)
    result = train_ann(model, toy.patterns(), toy.config(), tmp_path, resume=True)
    assert result.steps == 40
    assert accuracy(model, toy.patterns(seed=5)) > 0.9


def test_weights_that_are_not_finite_are_never_saved(toy, tmp_path):
    class Poisoned(NormalizedClassifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and next(counter) == 9:
                # seen in eval mode only: the loss stays finite
                self.backbone[1].running_var.fill_(float("inf"))
            return super().forward(x)

    counter = iter(range(1000))
    with pytest.raises(SJRobustError, match=r"running_var is not finite after step 16"):
        train_ann(
            Poisoned(toy.ann().backbone, (0.5,) * 3, (0.25,) * 3),
            toy.patterns(),
            toy.config(method="natural"),
            tmp_path,
        )
    model = toy.ann()
    train_ann(model, toy.patterns(), toy.config(method="natural"), tmp_path, resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_wrong_use_is_an_error_in_one_line(toy, tmp_path):
    with pytest.raises(SJRobustError, match="finetune takes a spiking network"):
        finetune(toy.ann(), toy.patterns(), toy.config(), tmp_path)
    with pytest.raises(SJRobustError, match="use finetune"):
        train_ann(toy.snn(), toy.patterns(), toy.config(), tmp_path)
    with pytest.raises(SJRobustError, match="hold out"):
        train_ann(toy.ann(), toy.patterns(), toy.config(validation=320), tmp_path)
    with pytest.raises(SJRobustError, match="batch_size"):
        train_ann(toy.ann(), toy.patterns(), toy.config(batch_size=300), tmp_path)
    many = toy.patterns()
    many.labels[-1] = 7
    with pytest.raises(SJRobustError, match="label 7"):
        train_ann(toy.ann(), many, toy.config(), tmp_path)
    assert not list(tmp_path.iterdir())
