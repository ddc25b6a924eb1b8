"""Writing a network for other programs: NIR for spiking simulators and chips, ONNX and torch.export
for plain runtimes."""

from sj_robust.export.files import Exported
from sj_robust.export.to_nir import export_nir
from sj_robust.export.unrolled import export_onnx, export_torch

__all__ = ["Exported", "export_nir", "export_onnx", "export_torch"]
