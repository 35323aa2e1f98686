"""The 3D networks of stage 2 by name, all built of MONAI's transformers; logits (B, num_classes, D, H, W)."""

import math

import torch
from monai.networks.blocks import TransformerBlock, UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from utils.errors import UserError

# A window's sides must be multiples of what the deepest level of each network shrinks by.
STRIDES = {"trans_unet": 8, "unetr": 16, "swin_unetr": 32}


def build_segmenter(arch: str, in_channels: int, num_classes: int, roi_size: tuple[int, int, int]) -> nn.Module:
    """A network for windows of `roi_size` (D, H, W).

    Raises:
        UserError: a side of `roi_size` is no multiple of the network's stride.
    """
    stride = STRIDES[arch]
    deepest = math.prod(side // stride for side in roi_size)
    if any(side % stride for side in roi_size) or deepest < 2:  # instance norm needs more than one voxel there
        raise UserError(
            f"--roi_size {tuple(roi_size)} does not fit --arch {arch}; use multiples of {stride}, not all {stride}"
        )
    if arch == "unetr":  # the light configuration: 0.13 s a 64 x 64 x 64 window on two cores
        return UNETR(in_channels, num_classes, roi_size, feature_size=8, hidden_size=192, mlp_dim=768, num_heads=6)
    if arch == "swin_unetr":
        return SwinUNETR(in_channels, num_classes, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    return TransUNet(in_channels, num_classes, roi_size)


class TransUNet(nn.Module):
    """A convolutional encoder and decoder around transformer blocks that see the whole window at an eighth of its size.

    The layout of TransBTS (Wang et al., 2021, arXiv 2103.04430) from MONAI's blocks, narrow at full resolution where
    the time goes. Convolutions learn the local contrast of a lesion within minutes on a CPU; attention weighs it
    against the rest of the window.

    Args:
        roi_size: (D, H, W) of every input, multiples of 8.
        features: channels at full, half, quarter and eighth resolution.
        layers: transformer blocks.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        roi_size: tuple[int, int, int],
        features: tuple[int, int, int, int] = (8, 24, 48, 96),
        layers: int = 4,
        heads: int = 6,
    ) -> None:
        super().__init__()
        tokens = torch.Size([side // 8 for side in roi_size]).numel()
        inputs = (in_channels, *features[:-1])
        self.encoders = nn.ModuleList(
            _convolutions(i, o, stride=1 if level == 0 else 2)
            for level, (i, o) in enumerate(zip(inputs, features, strict=True))
        )
        self.position = nn.Parameter(torch.randn(1, tokens, features[-1]) * 0.02)
        self.transformer = nn.Sequential(
            *(TransformerBlock(features[-1], 4 * features[-1], heads) for _ in range(layers)),
            nn.LayerNorm(features[-1]),
        )
        self.decoders = nn.ModuleList(_up(features[level + 1], features[level]) for level in (2, 1, 0))
        self.head = nn.Conv3d(features[0], num_classes, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, *roi_size) to logits (B, num_classes, *roi_size)."""
        skips = []
        for encoder in self.encoders:
            image = encoder(image)
            skips.append(image)
        decoded = self.attend(skips.pop())
        for decoder in self.decoders:
            decoded = decoder(decoded, skips.pop())
        return self.head(decoded)

    def attend(self, features: torch.Tensor) -> torch.Tensor:
        tokens = features.flatten(2).transpose(1, 2) + self.position
        return self.transformer(tokens).transpose(1, 2).reshape(features.shape) + features


def _convolutions(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return UnetrBasicBlock(3, in_channels, out_channels, 3, stride, norm_name="instance", res_block=True)


def _up(in_channels: int, out_channels: int) -> nn.Module:
    return UnetrUpBlock(3, in_channels, out_channels, 3, 2, norm_name="instance", res_block=True)
