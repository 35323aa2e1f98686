"""The network that finds the brain, small enough to search a head in a quarter of a second on one core."""

import torch
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn
from torch.nn import functional

PATCH = 2  # voxels along an edge of the cube that is one place of the first level
CHANNELS = (24, 32, 56)  # at a half, a quarter and an eighth of the resolution


class BrainNet(nn.Module):
    """A 3D U-Net of 250,000 weights, whose skips are added.

    At full resolution convolutions would take most of the time: the eight voxels of a cube are channels of one place
    instead, and so are their logits (the sub-pixel convolution of Shi et al., 2016, arXiv 1609.05158).
    """

    def __init__(self) -> None:
        super().__init__()
        before = (PATCH**3, *CHANNELS[:-1])
        self.encoders = nn.ModuleList(
            nn.Sequential(_convolution(i, o), _convolution(o, o)) for i, o in zip(before, CHANNELS, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv3d(o, i, 1) for i, o in zip(before[1:], CHANNELS[1:], strict=True))
        self.decoders = nn.ModuleList(_convolution(i, i) for i in CHANNELS[:-1])
        self.head = nn.Conv3d(CHANNELS[0], PATCH**3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) in [0, 1], sides multiples of 8, to the logits of being brain."""
        features, skips = pixelunshuffle(image, 3, PATCH), []
        for level, encoder in enumerate(self.encoders):
            features = encoder(functional.max_pool3d(features, 2) if level else features)
            skips.append(features)
        skips.pop()
        for shrink, decoder in zip(reversed(self.shrink), reversed(self.decoders), strict=True):
            wide = functional.interpolate(shrink(features), scale_factor=2.0, mode="nearest")
            features = decoder(wide + skips.pop())
        return pixelshuffle(self.head(features), 3, PATCH)


def _convolution(in_channels: int, out_channels: int) -> nn.Module:
    """With instance norm: batch norm mixes the contrasts of a step's two heads, and learned half as fast."""
    convolution = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.InstanceNorm3d(out_channels, affine=True), nn.ReLU(inplace=True))
