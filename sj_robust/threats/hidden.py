"""The last hidden layer of a classifier, whoever built it: what its final linear layer reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model.hooks import hooked
from sj_robust.model.unwrap import bare


def final_layer(model: nn.Module) -> nn.Linear:
    """The linear layer that computes the logits, the last one registered.

    Raises:
        SJRobustError: the network ends in another layer.
    """
    linear = [module for module in bare(model).modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SJRobustError(
            f"{type(model).__name__} has no linear layer, whose input is looked at: expected a"
            " classifier that ends in one"
        )
    return linear[-1]


@torch.no_grad()
def hidden_rates(model: nn.Module, dataset: ImageDataset, batch_size: int) -> Tensor:
    """What the final layer reads for each image, the mean over time: float32 [N, d] on the CPU.

    Of a spiking network these are spike rates (pooled ones where it pools), of an ANN activations.
    The model is in eval mode and where it is to run.

    Raises:
        SJRobustError: the logits are not the final layer's of it.
    """
    layer, found = final_layer(model), []
    where = layer.weight.device
    for rows in torch.arange(len(dataset)).split(batch_size):
        calls: list[Tensor] = []

        def watch(module: nn.Module, inputs: tuple[Any, ...], calls: list[Tensor] = calls) -> None:
            calls.append(inputs[0].detach().flatten(0, -2))

        with hooked([layer.register_forward_pre_hook(watch)]):
            logits = model(dataset.floats(rows).to(where))
        # [T·N, d] at once, [T, N, d], or T times [N, d]: in each order time comes first
        steps = torch.cat(calls) if calls else logits.new_empty(0, layer.in_features)
        rates = steps.view(-1, len(rows), layer.in_features).mean(0)
        if not calls or not torch.allclose(layer(rates), logits, rtol=1e-3, atol=1e-3):
            raise SJRobustError(
                f"the logits of {type(model).__name__} are not those of its last linear layer"
                f" [{layer.in_features} → {layer.out_features}]: its hidden layer is not known"
            )
        found.append(rates.float().cpu())
    return torch.cat(found)
