"""The 3D networks of stage 2 by name; `models.segmentation.settings.NETWORKS` lists them."""

import math
from importlib import import_module

from torch import nn

from models.segmentation.settings import NETWORKS
from utils.errors import UserError

UNUSED = "norm_cross_attn"  # of MONAI's transformer blocks, for a cross-attention that these networks do not have


def build_segmenter(arch: str, in_channels: int, num_classes: int, window: tuple[int, int, int]) -> nn.Module:
    """A network for windows (D, H, W); a `UserError` where the sides are no multiples of its stride."""
    network = NETWORKS[arch]
    deepest = math.prod(side // network.stride for side in window)
    if any(side % network.stride for side in window) or deepest < 2:  # norms need more than one voxel there
        raise UserError(
            f"windows of {tuple(window)} (--window_size, else --roi_size) do not fit --arch {arch}; use multiples of "
            f"{network.stride}, not all {network.stride}"
        )
    module, _, name = network.path.rpartition(".")
    sized = (window,) if network.of_one_window else ()
    built = getattr(import_module(module), name)(in_channels, num_classes, *sized, **network.arguments)
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(UNUSED not in name)  # several devices wait for each gradient, and these have none
    return built
