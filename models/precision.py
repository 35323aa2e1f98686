"""Half precision where the hardware computes in it. Not by Lightning's ``precision``, which ignores `NARROWEST_MAP`,
holds in training alone, and includes the losses."""

from contextlib import nullcontext

import torch
from pytorch_lightning.plugins import MixedPrecision

from models.training.settings import PRECISIONS
from utils.errors import UserError

# Voxels along an axis below which 3D convolutions on a CPU stay in float32. oneDNN's bfloat16 kernels are wrong there:
# torch 2.14 took the gradient of a kernel of 3 over a map 2 deep from memory never written to, and pytorch issue
# 169688 reports wrong outputs one voxel wide.
NARROWEST_MAP = 3

_precision = "auto"  # of the whole process, as torch's own switches of precision are


def use_precision(name: str) -> None:
    """Compute in one of `PRECISIONS` from here on, or with ``auto`` in bfloat16 where the hardware has it."""
    global _precision
    if name == "16-mixed" and not torch.cuda.is_available():
        raise UserError("--precision 16-mixed needs a GPU; leave it out")
    _precision = name


def precision_on(device: torch.device) -> str:
    """The one of `PRECISIONS` that a device computes in."""
    if _precision == "auto":
        return "bf16-mixed" if has_bfloat16(device) else "32-true"
    return _precision


def autocast(device: torch.device, narrowest_map: int = NARROWEST_MAP) -> torch.autocast:
    """A context in the precision of `use_precision`, for 3D convolutions of maps of `narrowest_map` voxels or more."""
    wrong = device.type == "cpu" and narrowest_map < NARROWEST_MAP
    dtype = getattr(torch, PRECISIONS[precision_on(device)])
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half and not wrong)


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class ScaledGradients(MixedPrecision):
    """Lightning's scaling of gradients, or small ones vanish in float16, without its autocast."""

    def forward_context(self):
        return nullcontext()
