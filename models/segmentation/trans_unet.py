"""TransUNet, the default network of stage 2."""

import torch
from monai.networks.blocks import TransformerBlock
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn

from models.segmentation.blocks import convolutions, up


class TransUNet(nn.Module):
    """A convolutional encoder and decoder around transformer blocks that see the whole window at an eighth of its size.

    The layout of TransBTS (Wang et al., 2021, arXiv 2103.04430) from MONAI's blocks. Convolutions learn the local
    contrast of a lesion within minutes on a CPU; attention weighs it against the rest of the window. At full resolution
    convolutions would take most of the time: where `patch` is 2, the eight voxels of a cube are channels of one place
    instead, and so are their logits (the sub-pixel convolution of Shi et al., 2016, arXiv 1609.05158).

    Args:
        roi_size: (D, H, W) of every input, multiples of 8.
        patch: voxels along an edge of the cube that is one place of the first level.
        features: channels of each level, each of half the resolution of the one before; the last has an eighth.
        layers: transformer blocks.
        deep_supervision: whether the coarser levels have heads of their own.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        roi_size: tuple[int, int, int],
        patch: int = 2,
        features: tuple[int, ...] = (16, 48, 96),
        layers: int = 4,
        heads: int = 6,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        tokens = torch.Size([side // 8 for side in roi_size]).numel()
        inputs = (in_channels * patch**3, *features[:-1])
        self.patch = patch
        self.encoders = nn.ModuleList(
            convolutions(i, o, stride=1 if level == 0 else 2)
            for level, (i, o) in enumerate(zip(inputs, features, strict=True))
        )
        self.position = nn.Parameter(torch.randn(1, tokens, features[-1]) * 0.02)
        self.transformer = nn.Sequential(
            *(TransformerBlock(features[-1], 4 * features[-1], heads) for _ in range(layers)),
            nn.LayerNorm(features[-1]),
        )
        self.decoders = nn.ModuleList(
            up(features[level + 1], features[level]) for level in reversed(range(len(features) - 1))
        )
        self.head = nn.Conv3d(features[0], num_classes * patch**3, kernel_size=1)
        supervised = features[1:] if deep_supervision else ()
        self.coarse_heads = nn.ModuleList(nn.Conv3d(count, num_classes, kernel_size=1) for count in supervised)

    def forward(self, image: torch.Tensor, all_levels: bool = False) -> torch.Tensor | list[torch.Tensor]:
        """(B, in_channels, *roi_size) to logits (B, num_classes, *roi_size).

        Args:
            all_levels: for a list of these and the logits of the coarser levels, (B, num_classes, d, h, w).
        """
        finest, *coarser = self.decode(image)
        logits = pixelshuffle(self.head(finest), 3, self.patch)
        if not all_levels:
            return logits
        return [logits, *(head(maps) for head, maps in zip(self.coarse_heads, coarser, strict=True))]

    def decode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """What the decoder makes of an image: maps (B, features, d, h, w) of each level, finest first."""
        image, skips = pixelunshuffle(image, 3, self.patch), []
        for encoder in self.encoders:
            image = encoder(image)
            skips.append(image)
        decoded = [self.attend(skips.pop())]
        for decoder in self.decoders:
            decoded.append(decoder(decoded[-1], skips.pop()))
        return decoded[::-1]

    def attend(self, features: torch.Tensor) -> torch.Tensor:
        tokens = features.flatten(2).transpose(1, 2) + self.position
        return self.transformer(tokens).transpose(1, 2).reshape(features.shape) + features
