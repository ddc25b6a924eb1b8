"""The whole network as one feed-forward graph for plain runtimes: all T steps written out, ONNX or
torch.export's .pt2."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError, first_line
from sj_robust.export.files import Exported, classifier, described, image_size, needs, writing
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.model.plain import copied

IMAGES, LOGITS = "images", "logits"
# any number of images; torch 2.6 refuses a size without an end, which might be its infinity
_SHAPES = ({0: torch.export.Dim("batch", max=2**31 - 1)},)


def export_onnx(
    model: NormalizedClassifier,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
) -> Exported:
    """Write a classifier, spiking or not, as one ONNX file.

    `images` float32 [N,C,H,W] in [0,1] → `logits` [N,K], any N. Normalisation, all T steps and the
    mean over them are inside, in eval mode. A runtime rounds otherwise than torch (it fuses batch
    norms, orders sums differently), and a potential within that rounding of its threshold then
    fires or does not: logits of such an image differ by what a spike is worth.

    Args:
        path: an existing file is replaced, whole or not at all.
        input_size: [C,H,W], known for a timm network.

    Raises:
        SJRobustError: the extra `export` is not installed, the network cannot be traced, or the
            file cannot be written.
    """
    onnx = needs("onnx", "export")
    needs("onnxscript", "export")
    model = classifier(model)
    with writing(path) as temporary:
        program = _program(model, input_size)
        try:
            written = torch.onnx.export(
                program,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=_SHAPES,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise SJRobustError(
                f"{type(model.backbone).__name__} cannot be written as ONNX"
                f" ({first_line(error)[:160]})"
            ) from None
        assert written is not None
        onnx.save(written.model_proto, temporary)
        nodes = Counter(node.op_type for node in written.model_proto.graph.node)
    return _facts(model, path, "onnx", nodes)


def export_torch(
    model: NormalizedClassifier,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
) -> Exported:
    """Write a classifier, spiking or not, with `torch.export.save`.

    `torch.export.load(path).module()` maps images to logits. As `export_onnx`, but run by torch of
    about this version, without this package or SpikingJelly, on the CPU.

    Raises:
        SJRobustError: the network cannot be traced or the file cannot be written.
    """
    model = classifier(model)
    with writing(path) as temporary:
        program, content = _program(model, input_size), io.BytesIO()
        # torch's own writer ends the process where the disk is full
        torch.export.save(program, content)
        temporary.write_bytes(content.getvalue())  # no view: Python 3.12 ends in a fault on one
    return _facts(
        model,
        path,
        "torch",
        Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function"),
    )


def _facts(
    model: NormalizedClassifier, path: str | os.PathLike[str], format: str, nodes: Counter[str]
) -> Exported:
    spiking = isinstance(model, SpikingClassifier)
    return described(
        path,
        format,
        nodes=dict(nodes.most_common()),
        timesteps=model.timesteps if spiking else None,
        dt=None,
        input=f"{IMAGES} float32 [N,C,H,W] in [0,1]",
        output=f"{LOGITS} [N,{model.num_classes}]{', the mean over time' if spiking else ''}",
        not_included=("logits of each step", "surrogate gradients") if spiking else (),
    )


class _Unrolled(nn.Module):
    """All steps of a SpikingActivation in operations that any runtime has; see `ThresholdLIF` for
    the formula."""

    v_threshold: Tensor

    def __init__(self, activation: SpikingActivation) -> None:
        super().__init__()
        self.timesteps, self.repeats, self.worth = (
            activation.timesteps,
            activation.repeats,
            activation.worth,
        )
        self.leak, self.soft_reset = activation.node.leak, activation.node.soft_reset
        self.register_buffer("v_threshold", activation.node.v_threshold.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        threshold = (
            self.v_threshold.view(-1, *(1,) * (x.dim() - 2))
            if self.v_threshold.dim()
            else self.v_threshold
        )
        inputs = (
            [x] * self.timesteps if self.repeats else x.unflatten(0, (self.timesteps, -1)).unbind(0)
        )
        v: Tensor | None = None
        spikes = []
        for step in inputs:
            h = step if v is None else (v if self.leak == 1 else self.leak * v) + step
            fired = h >= threshold
            spikes.append(fired.to(x.dtype))
            v = h - spikes[-1] * threshold if self.soft_reset else h.masked_fill(fired, 0)
        return torch.cat(spikes) if self.worth == 1 else torch.cat(spikes) * self.worth


def _program(
    model: NormalizedClassifier, size: Sequence[int] | None
) -> torch.export.ExportedProgram:
    """The classifier in eval mode on the CPU, traced for any batch size."""
    channels, height, width = image_size(model, size)
    plain: Any = (
        copied(model).cpu().eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    )
    for name, module in list(plain.named_modules()):
        if isinstance(module, SpikingActivation):
            plain.set_submodule(name, _Unrolled(module))
    # two: a batch of one is traced as something special
    images = torch.zeros(2, channels, height, width, dtype=model.mean.dtype)
    try:
        return torch.export.export(plain, (images,), dynamic_shapes=_SHAPES, strict=False)
    # torch.export raises whatever the forward pass does with stand-ins for tensors
    except Exception as error:
        where = (
            f"{type(model.backbone).__name__} cannot be traced on images"
            f" {[channels, height, width]} of any number"
        )
        raise SJRobustError(
            f"{where} ({type(error).__name__}: {first_line(error)[:160]})"
        ) from None
