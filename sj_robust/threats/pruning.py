"""Fine-pruning: neurons that clean images leave silent may be a backdoor's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sj_robust.attack import evaluation_mode
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.judge import true_forward
from sj_robust.evaluation.report import Accuracy
from sj_robust.threats.hidden import final_layer, hidden_rates


@dataclass(frozen=True)
class Pruned:
    """What `prune` did.

    Attributes:
        neurons: of the last hidden layer.
        pruned: the numbers of those that are off, the least active first.
        kept: accuracy on the clean images, before and after.
    """

    neurons: int
    pruned: tuple[int, ...]
    kept: tuple[Accuracy, Accuracy]


@torch.no_grad()
def prune(
    model: nn.Module, clean: ImageDataset, *, most_lost: float = 0.04, batch_size: int = 128
) -> Pruned:
    """Turn off neurons of the last hidden layer, in place.

    Those least active on clean images go first, as many as cost at most `most_lost` of the accuracy
    on them. What the final layer reads of such a neuron is taken as 0: its weights become 0, and
    get no gradient from then on, so that finetuning the same object does not bring them back.

    Source: Liu, Dolan-Gavitt & Garg, "Fine-Pruning", RAID 2018, where the last convolution is
    pruned: its channels are these neurons where a global pool follows it.

    Args:
        clean: images that the defender trusts, with the labels of the model.
        most_lost: as a fraction, 0.04 in the paper.

    Raises:
        SJRobustError: `most_lost` out of [0, 1), or a model without a final linear layer.
    """
    check_most_lost(most_lost)
    layer = final_layer(model)
    with evaluation_mode(model), true_forward(model):
        rates = hidden_rates(model, clean, batch_size)
    weight, bias = layer.weight.float().cpu(), layer.bias
    labels, order = clean.labels, rates.abs().mean(0).argsort(stable=True)
    shift = torch.zeros(len(weight)) if bias is None else bias.float().cpu()
    logits = rates @ weight.T + shift

    def accuracy() -> Accuracy:
        return Accuracy.of(int((logits.argmax(1) == labels).sum()), len(labels))

    before = after = accuracy()
    count = 0
    for number, neuron in enumerate(order.tolist(), start=1):  # the final layer alone is linear
        logits -= rates[:, neuron, None] * weight[:, neuron]
        now = accuracy()
        if before.value - now.value > most_lost:
            break
        count, after = number, now
    off = order[:count]
    layer.weight[:, off] = 0
    mask = torch.ones(layer.in_features, device=layer.weight.device)
    mask[off] = 0
    if layer.weight.requires_grad:
        layer.weight.register_hook(lambda gradient: gradient * mask)
    return Pruned(layer.in_features, tuple(off.tolist()), (before, after))


def check_most_lost(most_lost: float) -> None:
    """Raise SJRobustError unless it is a fraction below 1."""
    if not 0 <= most_lost < 1:
        raise SJRobustError(f"most_lost is {most_lost}: expected 0 to below 1, as 0.04")
