"""Activation clustering: poisons of a class lie apart from its own images in the last hidden
layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from sj_robust.attack import evaluation_mode
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.judge import true_forward
from sj_robust.threats.hidden import hidden_rates
from sj_robust.threats.poison import Poisoned
from sj_robust.threats.report import ClassClusters, Clustering

COMPONENTS = 10
_STARTS = 10  # of k-means, of which the tightest is kept
_LEAST = 10  # images of a label below which two clusters mean nothing

Points = npt.NDArray[np.float64]


def cluster_activations(
    model: nn.Module, training: Poisoned, *, batch_size: int = 128, seed: int = 0
) -> Clustering:
    """The training images of each label in two clusters of spike rates, or activations.

    Those of the last hidden layer are brought to 10 principal components and clustered by 2-means.
    A label is flagged where the smaller cluster is at most 35 % of it and the mean silhouette width
    at least 0.1 (the paper's 0.10 to 0.15). Labels with fewer than 10 images are left out.

    Source: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation
    Clustering", arXiv 1811.03728, with principal components in place of independent ones.

    Args:
        training: the poisoned set that the model was trained on, or the first images of it; which
            rows are poisoned is used to count what was found alone.
        seed: of the starts of k-means.

    Raises:
        SJRobustError: no label has 10 images, or the model has no final linear layer.
    """
    dataset = training.dataset
    with evaluation_mode(model), true_forward(model):
        rates = hidden_rates(model, dataset, batch_size)
    is_poison = torch.zeros(len(dataset), dtype=torch.bool)
    is_poison[training.rows] = True
    classes = []
    for label in range(len(dataset.classes)):
        rows = (dataset.labels == label).nonzero().flatten()
        if len(rows) < _LEAST:
            continue
        points = principal(rates[rows], COMPONENTS)
        small = smaller_cluster(points, seed)
        classes.append(
            ClassClusters(
                label=label,
                images=len(rows),
                smaller=float(small.mean()),
                silhouette=silhouette(points, small),
                poisoned=int(is_poison[rows].sum()),
                found=int(is_poison[rows][torch.from_numpy(small)].sum()),
            )
        )
    if not classes:
        raise SJRobustError(
            f"no label has {_LEAST} of the {len(dataset)} training images: give more"
        )
    return Clustering(
        images=len(dataset),
        components=COMPONENTS,
        classes=classes,
        flagged=[one.label for one in classes if one.flagged],
    )


def principal(rates: Tensor, components: int) -> Points:
    """The first principal components [n, ≤ components] of rates [n, d]."""
    centred = rates.double() - rates.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    found: Points = (u * s)[:, :components].numpy()
    return found


def smaller_cluster(points: Points, seed: int) -> npt.NDArray[np.bool_]:
    """Which points [n, d] lie in the smaller of two clusters, by the best of several 2-means.

    None where all points are the same, as those of a layer that is silent.
    """
    best, least = np.zeros(len(points), dtype=bool), np.inf
    if np.allclose(points, points[0], rtol=0, atol=1e-12):
        return best
    for start in range(_STARTS):
        rng = np.random.Generator(np.random.PCG64([seed, start]))
        # k-means++, by hand: scipy has had more than one name for the generator
        first = int(rng.integers(len(points)))
        distances = ((points - points[first]) ** 2).sum(1)
        second = int(rng.choice(len(points), p=distances / distances.sum()))
        begin = points[[first, second]]
        centres, labels = kmeans2(points, begin, minit="matrix", missing="warn")
        spread = float(((points - centres[labels]) ** 2).sum())
        if spread < least:
            best, least = labels == 1, spread
    return best if best.mean() <= 0.5 else ~best


def silhouette(points: Points, cluster: npt.NDArray[np.bool_]) -> float:
    """Mean silhouette width, (b − a) / max(a, b), of two clusters of points [n, d].

    Source: Rousseeuw, 1987. 0 where one of them is empty; the width of a cluster's only point is 0.
    """
    sizes = np.array([(~cluster).sum(), cluster.sum()])
    if not sizes.all():
        return 0.0
    distances = cdist(points, points)
    sums = np.stack([distances[:, ~cluster].sum(1), distances[:, cluster].sum(1)])
    own, rows = cluster.astype(int), np.arange(len(points))
    within = sums[own, rows] / np.maximum(sizes[own] - 1, 1)
    across = sums[1 - own, rows] / sizes[1 - own]
    widths = (across - within) / np.maximum(np.maximum(within, across), 1e-12)
    return float(np.where(sizes[own] == 1, 0.0, widths).mean())
