"""The device that networks compute on: torch's current GPU, or the CPU where there is none."""

from collections.abc import Sequence

import torch

from utils.errors import UserError


def use_devices(gpus: Sequence[int]) -> None:
    """Make the first of some GPUs torch's current one, for all that is loaded from here on; refuse one that is not
    there. Without any GPU nothing happens."""
    there = torch.cuda.device_count()
    if there and (beyond := [gpu for gpu in gpus if gpu >= there]):
        raise UserError(f"--devices {beyond[0]}: this machine has {there} GPUs, from 0 to {there - 1}")
    if there:
        torch.cuda.set_device(gpus[0])


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_memory(place: torch.device) -> str:
    """The most memory that tensors have filled on a GPU, for a line of output; nothing on a CPU."""
    if place.type != "cuda":
        return ""
    return f", up to {torch.cuda.max_memory_allocated(place) / 2**30:.1f} GiB of the GPU"
