"""Half precision where the hardware computes in it; elsewhere it would be emulated and slower. Double where asked for.

Chosen here and not by Lightning's ``precision``, which knows nothing of `NARROWEST_MAP`, holds in training alone, and
would take the losses into half precision as well.
"""

from contextlib import nullcontext

import torch
from pytorch_lightning.plugins import MixedPrecision

from utils.errors import UserError

# Voxels along each axis below which 3D convolutions on a CPU stay in float32. oneDNN's bfloat16 kernels give wrong
# results there: with torch 2.14 the gradient of a kernel of 3 over a map 2 deep came from memory never written to, and
# pytorch issue 169688 reports wrong outputs one voxel wide.
NARROWEST_MAP = 3
DTYPES = {
    "64-true": torch.float64,
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}

_asked = "auto"  # of the whole process, as torch's own switches of precision are


def use_precision(name: str) -> None:
    """Compute in one of `DTYPES` from here on, or by ``auto`` in bfloat16 where the hardware has it.

    Weights of networks that are built from here on are in double precision for ``64-true``, else in single.
    """
    global _asked
    if name == "16-mixed" and not torch.cuda.is_available():
        raise UserError("--precision 16-mixed needs a GPU; leave it out")
    _asked = name
    torch.set_default_dtype(torch.float64 if name == "64-true" else torch.float32)


def precision_on(device: torch.device) -> str:
    """The one of `DTYPES` that a device computes in."""
    if _asked == "auto":
        return "bf16-mixed" if has_bfloat16(device) else "32-true"
    return _asked


def autocast(device: torch.device, narrowest_map: int = NARROWEST_MAP) -> torch.autocast:
    """A context that computes in the precision asked for.

    Args:
        narrowest_map: fewest voxels along an axis of any map that a 3D convolution works on.
    """
    wrong = device.type == "cpu" and narrowest_map < NARROWEST_MAP
    dtype = DTYPES[precision_on(device)]
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half and not wrong)


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class ScaledGradients(MixedPrecision):
    """Lightning's scaling of gradients, which float16 needs so that small ones do not vanish, without its autocast."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cuda")

    def forward_context(self):
        return nullcontext()


def gradient_scaling() -> list[MixedPrecision]:
    """Plugins that a Lightning trainer needs for the precision asked for."""
    return [ScaledGradients()] if _asked == "16-mixed" else []
