"""Half precision where the hardware computes in it; elsewhere it would be emulated and slower."""

import torch


def autocast(device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 where `device` has it and in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
