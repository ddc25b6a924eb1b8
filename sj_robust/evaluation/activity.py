"""Spikes per neuron, counted at the nodes of a spiking classifier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.evaluation.report import Activity, LayerActivity
from sj_robust.model import SpikingModel
from sj_robust.model.hooks import hooked


class SpikeCount:
    """Spikes and emitted values per node, over every forward pass while it was watching."""

    def __init__(self) -> None:
        self.spikes: dict[str, float] = defaultdict(float)
        self.values: dict[str, int] = defaultdict(int)

    def add(self, name: str, output: Tensor) -> None:
        # float32 sums of 0/1 are exact only up to 2^24 values, hence float64.
        self.spikes[name] += float(output.detach().double().sum())
        self.values[name] += output.numel()

    def activity(self, timesteps: int, images: int) -> Activity:
        """Means over `images` that were run for `timesteps` steps each."""
        layers = {}
        for name, values in self.values.items():
            rate = self.spikes[name] / values
            layers[name] = LayerActivity(
                neurons=values // (timesteps * images),
                spikes_per_neuron=rate * timesteps,
                rate=rate,
            )
        neurons, spikes = (
            sum(layer.neurons for layer in layers.values()),
            sum(self.spikes.values()) / images,
        )
        return Activity(
            layers=layers,
            neurons=neurons,
            spikes_per_neuron=spikes / neurons if neurons else 0.0,
            spikes_per_image=spikes,
        )


@contextmanager
def count_spikes(snn: SpikingModel) -> Iterator[SpikeCount]:
    """Count what every node of `snn` emits while the block runs."""
    count = SpikeCount()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            count.add(name, output)

        return hook

    handles = [node.register_forward_hook(watch(name)) for name, node in snn.nodes().items()]
    with hooked(handles):
        yield count


@torch.no_grad()
def spike_trains(snn: SpikingModel, image: Tensor) -> dict[str, Tensor]:
    """Which neurons of each node spike at which step for one image [1, C, H, W]: bool [T, neurons]
    on the CPU, by node in the order of the forward pass.

    Of a node that stands at several places the neurons of each place follow one another.
    """
    calls: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(node: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            # one step [1, *] or all of them [T, 1, *]
            calls.setdefault(name, []).append((output != 0).flatten(1).cpu())

        return hook

    nodes = snn.nodes()
    with hooked([node.register_forward_hook(watch(name)) for name, node in nodes.items()]):
        snn(image)
    for name, parts in calls.items():
        if getattr(nodes[name], "step_mode", "m") == "s":
            places = max(1, len(parts) // snn.timesteps)
            parts[:] = [torch.cat(parts[place::places]) for place in range(places)]
    return {name: torch.cat(parts, dim=1) for name, parts in calls.items()}
