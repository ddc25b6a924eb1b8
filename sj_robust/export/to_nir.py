"""The Neuromorphic Intermediate Representation (Pedersen et al., Nature Communications 2024): the
network of one step as a graph.

NIR describes a neuron by a differential equation and leaves the time step to whoever runs it. With
steps of `dt`, Euler's method on

    IF:   v' = r·I                     LIF:   τ·v' = (v_leak − v) + r·I

is our update h = leak·v + x where

    leak = 1:  IF with r = 1/dt        leak < 1:  LIF with τ = dt/(1 − leak), r = 1, v_leak = 0

In the second, v is (1 − leak) times our potential, and the threshold is (1 − leak) times ours (r =
τ/dt would keep the scale, but importers that leave r out would then be wrong). NIR's neuron fires
above its threshold, ours at it: what is written is the largest float below ours. v_reset = 0 is the
hard reset. The default dt = 1 counts time in steps, and makes r = 1, which some importers take for
granted. Several edges into a node add up, which is how residual connections are written, and
concatenations: each part is put in its place among channels of zeros.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sj_robust.errors import SJRobustError
from sj_robust.export import nir_layers, nir_pools, nir_shapes
from sj_robust.export.files import Exported, classifier, described, image_size, needs, writing
from sj_robust.export.nir_graph import INPUT, OUTPUT, Graph, name_of, place_of, shape_of
from sj_robust.model import SpikingClassifier

NORMALISATION = "normalize"
HANDLERS = nir_layers.HANDLERS | nir_pools.HANDLERS | nir_shapes.HANDLERS


def export_nir(
    snn: SpikingClassifier,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
    dt: float = 1.0,
) -> Exported:
    """Write one step of `snn`, in eval mode, as a NIR graph.

    Images [C,H,W] in [0,1] at its input, logits [K] of that step at its output. To get
    `snn.forward_sequence(x)`, feed the same image at each of `snn.timesteps` steps of `dt`, from
    rest; the mean over the steps is `snn(x)`. Batch norms are folded into the layer before them, or
    become a 1×1 convolution of their own where there is none. So does the normalisation of the
    images: the first layer's zero padding is that of normalised images, so it cannot be folded.
    Values are written in the network's own precision.

    Args:
        path: an existing file is replaced, whole or not at all.
        input_size: [C,H,W], known for a timm network.
        dt: the time step that the importer will use, above 0; see the module.

    Raises:
        SJRobustError: names the layer with what NIR cannot say: soft reset, max pooling, gates,
            attention, upsampling; or the extra `nir` is not installed, the image size is not known,
            or the file cannot be written.
    """
    nir = needs("nir", "nir")
    network = classifier(snn)
    if not isinstance(network, SpikingClassifier):
        raise SJRobustError(
            "NIR describes spiking networks, and this one is an ANN: convert it first, or export it"
            " as onnx or torch"
        )
    if not (math.isfinite(dt) and dt > 0):
        raise SJRobustError(f"dt is {dt}: expected a time step above 0")
    snn = network
    size = image_size(snn, input_size)
    with writing(path) as temporary:
        graph = _build(Graph(nir, snn, size, dt))
        nir.write(temporary, graph)
    kinds = Counter(type(node).__name__ for node in graph.nodes.values())
    return described(
        path,
        "nir",
        nodes=dict(kinds),
        timesteps=snn.timesteps,
        dt=dt,
        input=f"an image {list(size)} in [0,1], the same at each step",
        output=f"logits of each step [{snn.num_classes}]",
        not_included=(f"the mean of the logits over {snn.timesteps} steps", "surrogate gradients"),
    )


def _build(graph: Graph) -> Any:
    """The NIRGraph of what `graph` reads, operation by operation."""
    mean, std = graph.snn.mean.double().cpu().flatten(), graph.snn.std.double().cpu().flatten()
    graph.values[graph.step.images] = graph.mix(
        NORMALISATION, (INPUT,), (1 / std).diag(), -mean / std, graph.size
    )
    for operation in graph.step.operations:
        name = name_of(operation)
        handler = HANDLERS.get(name)
        if handler is None:
            instead = "convert with pooling='average', or " if "max_pool" in name else ""
            raise SJRobustError(
                f"NIR cannot say {name} ({place_of(operation)}); {instead}export the network as"
                " onnx or torch"
            )
        graph.values[operation] = handler(graph, operation)
    graph.nodes[OUTPUT] = graph.nir.Output(
        output_type={"output": np.array(shape_of(graph.step.logits))}
    )
    graph.edges += [(source, OUTPUT) for source in graph.values[graph.step.logits]]
    facts = {
        "made_by": "sj-robust",
        "timesteps": graph.snn.timesteps,
        "dt": graph.dt,
        "input": "the image, in [0,1], at every step",
        "output": "logits of the step; their mean over all steps classifies",
    }
    return graph.nir.NIRGraph(graph.nodes, graph.edges, metadata=facts)
