"""What counts as an activation, a gate or a norm that cannot spike: the vocabulary of a
conversion."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["relu", "other", "gate"]
"""relu: becomes a node. other: becomes one where the user chose so. gate: bounded, stays analogue
where it only scales."""

_GATES = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.Tanh,
    nn.LogSoftmax,
    nn.LogSigmoid,
)
_OTHERS = (
    nn.ReLU6,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Softsign,
    nn.Threshold,
)

_RELU_FUNCTIONS = {"relu", "relu_"}
_GATE_FUNCTIONS = {
    "sigmoid",
    "sigmoid_",
    "hardsigmoid",
    "softmax",
    "softmin",
    "tanh",
    "tanh_",
    "log_softmax",
    "logsigmoid",
}
_OTHER_FUNCTIONS = {
    "relu6",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "prelu",
    "rrelu",
    "rrelu_",
    "elu",
    "elu_",
    "selu",
    "selu_",
    "celu",
    "celu_",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "hardswish",
    "softsign",
    "threshold",
    "threshold_",
}
# A ReLU in disguise, or a cut-off: refused by name, since which of the two cannot be told from the
# call.
_CUT_OFFS = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_", "maximum", "fmax"}


def module_kind(module: nn.Module) -> Kind | None:
    """What `module` is as an activation, None for anything else. timm's own classes are told by the
    file they come from."""
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, _GATES):
        return "gate"
    if isinstance(module, _OTHERS):
        return "other"
    if type(module).__module__.startswith("timm.layers.activations"):
        return (
            "gate"
            if "igmoid" in type(module).__name__ or "Tanh" == type(module).__name__
            else "other"
        )
    return None


def function_name(target: Any) -> str:
    """The name under which torch knows a function or (given as text) a method."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def function_kind(name: str) -> Kind | None:
    """The same for a function or method of torch."""
    if name in _RELU_FUNCTIONS:
        return "relu"
    if name in _GATE_FUNCTIONS:
        return "gate"
    return "other" if name in _OTHER_FUNCTIONS else None


def is_cut_off(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call cuts values off where a ReLU might: clamp, or the larger of two tensors."""
    return name in _CUT_OFFS or (name == "max" and len(args) > 1 and isinstance(args[1], Tensor))


def multiplies_activations(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call is a matrix product of two things computed from the image, which is what
    attention is made of."""
    if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        return True
    if name not in ("matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum", "mm"):
        return False
    factors = [each for each in args if isinstance(each, Tensor)]
    return len(factors) > 1 and not any(isinstance(each, nn.Parameter) for each in factors)


def layer_norm(module: nn.Module) -> bool:
    """Whether a module normalises over the channels of each image: layer norm by whatever name, of
    torch or timm."""
    name = type(module).__name__
    return (
        isinstance(module, nn.LayerNorm | nn.RMSNorm)
        or (isinstance(module, nn.GroupNorm) and module.num_groups == 1)
        or ("LayerNorm" in name or "RmsNorm" in name or "GlobalResponseNorm" in name)
    )


def ceiling(module: nn.Module | None, name: str) -> float | None:
    """The highest value an activation lets through, where it has one: 6 for a ReLU6."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.max_val)
    return 6.0 if name == "relu6" else None


def on_path(end: Tensor, nodes: set[Any]) -> set[Any]:
    """Those of `nodes` (of the autograd graph) that `end` depends on."""
    found, seen, stack = set(), set(), [end.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:
            found.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def node_of(x: Any) -> torch.autograd.graph.Node | None:
    """The autograd node that made `x`, if any."""
    return x.grad_fn if isinstance(x, Tensor) else None
