"""The node against the authors' code: 72 cases of spikes and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sj_robust.neuron import Surrogate, ThresholdLIF, available_backends

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "lif.npz")
CASES: list[dict[str, Any]] = json.loads(str(GOLDEN["meta"]))
STEPS = int(GOLDEN["T"])


def node_of(case: dict[str, Any], backend: str) -> ThresholdLIF:
    rate = case["surrogate"] == "BPTR"
    surrogate = Surrogate("PCW") if rate else Surrogate(case["surrogate"], case["gamma"])
    node = ThresholdLIF(
        case["v_th"], case["leak"], "soft" if case["soft_reset"] else "hard", surrogate, backend
    )
    if rate:
        node.view = "rate"
    return node


def run(
    node: ThresholdLIF, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor(GOLDEN["x"], dtype=dtype).unflatten(0, (STEPS, -1)).requires_grad_()
    spikes = node(x)
    spikes.backward(torch.tensor(GOLDEN["cotangent"], dtype=dtype).view_as(x))
    assert x.grad is not None
    return spikes.detach().flatten(0, 1), x.grad.flatten(0, 1)


def test_there_are_all_72_cases() -> None:
    assert len(CASES) == 72


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "cupy"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['key']}-{case['surrogate']}-{case['gamma']}"
)
def test_spikes_and_gradients_equal_the_reference(case: dict[str, Any], backend: str) -> None:
    node, key = node_of(case, backend), case["key"]
    spikes, dx = run(node)
    assert np.array_equal(spikes.numpy(), GOLDEN[f"{key}_spikes"])
    expected = GOLDEN[f"{key}_dx"]
    assert np.abs(dx.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    reference = float(GOLDEN[f"{key}_dvth"])
    if np.isnan(reference):  # BPTR has no threshold gradient
        assert node.v_threshold.grad is None
        return
    assert node.v_threshold.grad is not None
    found = float(node.v_threshold.grad)
    # The reference sums in float32, which alone costs it 1.2e-5 where the sum nearly cancels (RECT,
    # γ=4): held to twice that against the reference, and to 1e-5 against the same case computed in
    # float64.
    exact = node_of(case, "torch").double()
    exact.v_threshold.data.fill_(float(np.float32(case["v_th"])))
    run(exact, torch.float64)
    assert exact.v_threshold.grad is not None
    assert found == pytest.approx(reference, rel=2e-5)
    assert found == pytest.approx(float(exact.v_threshold.grad), rel=1e-5)
