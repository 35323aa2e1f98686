"""Half precision where the hardware computes in it; elsewhere it would be emulated and slower."""

import torch

# Voxels along each axis below which 3D convolutions on a CPU stay in float32. oneDNN's bfloat16 kernels give wrong
# results there: with torch 2.14 the gradient of a kernel of 3 over a map 2 deep came from memory never written to, and
# pytorch issue 169688 reports wrong outputs one voxel wide.
NARROWEST_MAP = 3


def autocast(device: torch.device, narrowest_map: int = NARROWEST_MAP) -> torch.autocast:
    """A context that computes in bfloat16 where `device` has it and in float32 elsewhere.

    Args:
        narrowest_map: fewest voxels along an axis of any map that a 3D convolution works on.
    """
    wrong = device.type == "cpu" and narrowest_map < NARROWEST_MAP
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device) and not wrong)


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
