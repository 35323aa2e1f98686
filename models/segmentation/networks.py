"""The 3D networks of stage 2 by name and size; logits (B, num_classes, D, H, W)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from models.segmentation.segformer3d import SegFormer3D
from models.segmentation.trans_unet import TransUNet
from utils.errors import UserError


@dataclass(frozen=True)
class Segmenter:
    """A network that can be built.

    build: from channels, classes, window (D, H, W) and the arguments of a size to the network.
    stride: a window's sides must be multiples of it: what the deepest level shrinks by.
    sizes: the network's own arguments by ``--arch_size``.
    """

    build: Callable[..., nn.Module]
    stride: int
    sizes: dict[str, dict]


def _of_any_window(kind: type[nn.Module], **fixed) -> Callable[..., nn.Module]:
    """A builder of a network that need not know the size of its windows."""
    return lambda in_channels, num_classes, roi_size, **size: kind(in_channels, num_classes, **fixed, **size)


# "base" is as published, but for TransUNet, which is ours. "small" is what a CPU trains in minutes.
SEGFORMER_SIZES = {
    "tiny": {"features": (16, 32, 64, 128), "heads": (1, 2, 4, 8), "layers": 1, "decoder_features": 64},
    "small": {"features": (32, 64, 128, 192), "heads": (1, 2, 4, 6), "layers": 2, "decoder_features": 128},
    "base": {"features": (32, 64, 160, 256), "heads": (1, 2, 5, 8), "layers": 2, "decoder_features": 256},
}
UNUSED = "norm_cross_attn"  # MONAI's transformer blocks hold it for a cross-attention that ours do not ask for
SEGMENTERS = {
    "trans_unet": Segmenter(
        TransUNet,
        8,
        {
            "tiny": {"patch": 2, "features": (16, 32, 64), "layers": 2, "heads": 4},
            "small": {"patch": 2, "features": (16, 48, 96), "layers": 4, "heads": 6},
            "base": {"patch": 1, "features": (16, 48, 96, 192), "layers": 6, "heads": 6},
        },
    ),
    "unetr": Segmenter(
        UNETR,
        16,
        {
            "tiny": {"feature_size": 4, "hidden_size": 96, "mlp_dim": 384, "num_heads": 3},
            "small": {"feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 6},
            "base": {"feature_size": 16, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
        },
    ),
    "swin_unetr": Segmenter(
        _of_any_window(SwinUNETR),
        32,
        {
            "tiny": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4), "mlp_ratio": 2.0},
            "small": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
            "base": {"feature_size": 48, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)},
        },
    ),
    "segformer3d": Segmenter(_of_any_window(SegFormer3D), 16, SEGFORMER_SIZES),
    "segformer3d_full": Segmenter(_of_any_window(SegFormer3D, full_resolution=True), 16, SEGFORMER_SIZES),
}


def build_segmenter(
    arch: str,
    in_channels: int,
    num_classes: int,
    window: tuple[int, int, int],
    size: str = "small",
    deep_supervision: bool = False,
) -> nn.Module:
    """A network for windows of that size (D, H, W).

    Args:
        deep_supervision: whether it gives logits of its coarser levels as well, given ``all_levels``.

    Raises:
        UserError: a side of the window is no multiple of the network's stride, or its levels cannot be supervised.
    """
    segmenter = SEGMENTERS[arch]
    stride = segmenter.stride
    deepest = math.prod(side // stride for side in window)
    if any(side % stride for side in window) or deepest < 2:  # norms need more than one voxel there
        raise UserError(
            f"windows of {tuple(window)} (--window_size, else --roi_size) do not fit --arch {arch}; use multiples of "
            f"{stride}, not all {stride}"
        )
    if deep_supervision and segmenter.build is not TransUNet:
        raise UserError(f"--deep_supervision needs --arch trans_unet; leave it out for {arch}")
    more = {"deep_supervision": True} if deep_supervision else {}
    network = segmenter.build(in_channels, num_classes, window, **segmenter.sizes[size], **more)
    for name, parameter in network.named_parameters():
        # Processes that train together wait for each gradient, and these have none.
        parameter.requires_grad_(UNUSED not in name)
    return network
