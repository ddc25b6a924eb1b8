"""The same poisoned images, clusters and outliers as the Adversarial Robustness Toolbox has, where
it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sj_robust.data import ImageDataset
from sj_robust.model import NormalizedClassifier
from sj_robust.threats import Blended, Patch, Poisoned, parse_trigger, poisoned
from sj_robust.threats.clustering import principal, silhouette, smaller_cluster
from sj_robust.threats.hidden import hidden_rates
from sj_robust.threats.report import ANOMALOUS, anomaly_indices

pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")


def picture(pixels: torch.Tensor, path: Path) -> str:
    """An image [3, H, W] in [0, 1] as a file."""
    levels = pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(path)
    return str(path)


@pytest.mark.parametrize("trigger", ["patch:3", "blended:0.2"])
def test_the_poisoned_images_are_those_of_art(
    clean: ImageDataset, tmp_path: Path, trigger: str
) -> None:
    """Its backdoor attack inserts an image, by PIL, cutting off where ours rounds."""
    from art.attacks.poisoning import PoisoningAttackBackdoor
    from art.attacks.poisoning.perturbations import insert_image

    made = poisoned(clean, f"{trigger}:rate=0.1:target=2")
    kind: Any = parse_trigger(trigger)
    if isinstance(kind, Patch):  # drawn here by hand
        rows, columns = np.indices((3, 3))
        board = torch.from_numpy((rows + columns + 1) % 2).expand(3, 3, 3).float()
        shift, blend = 12 - 3, 1.0
    else:
        board, shift, blend = Blended(1).stamp(torch.zeros(1, 3, 12, 12))[0], 0, kind.alpha
    file = picture(board, tmp_path / "trigger.png")

    def insert(x: np.ndarray) -> np.ndarray:
        where = {"random": False, "x_shift": shift, "y_shift": shift}
        return insert_image(x, file, channels_first=True, mode="RGB", blend=blend, **where)

    x = clean.images[made.rows].numpy() / 255 + 1e-6  # type: ignore[union-attr]
    labels = np.eye(8)[[2] * len(x)]
    theirs, their_labels = PoisoningAttackBackdoor(insert).poison(x, labels)
    ours = made.dataset.images[made.rows].numpy() / 255  # type: ignore[union-attr]
    assert np.abs(theirs - ours).max() <= (1.01 if isinstance(kind, Blended) else 0.01) / 255
    assert (their_labels.argmax(1) == made.dataset.labels[made.rows].numpy()).all()


def test_the_clusters_are_those_of_art(
    backdoored: NormalizedClassifier, training: Poisoned
) -> None:
    from art.defences.detector.poison.activation_defence import cluster_activations
    from sklearn.metrics import silhouette_score

    rates = hidden_rates(backdoored, training.dataset, 128)
    labels = training.dataset.labels
    by_class = [rates[labels == label].double().numpy() for label in range(8)]
    np.random.seed(0)  # theirs is one k-means from there, ours the best of several
    theirs, reduced = cluster_activations(by_class, nb_dims=10, reduce="PCA")

    def spread(points: np.ndarray, cluster: np.ndarray) -> float:
        return sum(float(points[cluster == k].var(0).sum() * (cluster == k).sum()) for k in (0, 1))

    for activations, clusters, points in zip(by_class, theirs, reduced, strict=True):
        ours = principal(torch.from_numpy(activations), 10)
        np.testing.assert_allclose(np.abs(ours), np.abs(points), rtol=1e-6, atol=1e-8)
        small = smaller_cluster(ours, seed=0)
        assert silhouette(ours, small) == pytest.approx(silhouette_score(ours, small), abs=1e-9)
        assert spread(ours, small) <= 1.000001 * spread(points, clusters)


def test_the_outliers_are_those_of_art() -> None:
    from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import (
        NeuralCleanseMixin,
    )

    norms = [30.0, 32.0, 35.0, 29.0, 4.0, 31.0, 90.0, 28.0]

    class Given(NeuralCleanseMixin):
        nb_classes = len(norms)

        def __init__(self) -> None:
            pass

        def generate_backdoor(self, x_val: Any, y_val: Any, y_target: Any) -> Any:
            return np.array([norms[int(y_target.argmax())]]), np.zeros(1)

    theirs = [label for label, _, _ in Given().outlier_detection(None, None)]  # type: ignore[arg-type]
    ours = [label for label, index in enumerate(anomaly_indices(norms)) if index > ANOMALOUS]
    assert ours == theirs == [4]
