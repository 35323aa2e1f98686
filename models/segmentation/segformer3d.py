"""SegFormer3D (Perera et al., 2024, arXiv 2404.10156): a light hierarchical transformer with a decoder of MLPs."""

import math

import torch
from torch import nn
from torch.nn import functional

# As published, from the first stage to the last.
FEATURES, HEADS = (32, 64, 160, 256), (1, 2, 5, 8)
KERNELS, STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)  # of the patch embeddings, which overlap
REDUCTIONS = (4, 2, 1, 1)  # by which attention shrinks the keys along each axis
LAYERS, MLP_RATIO = 2, 4  # transformer blocks of each stage, and by how much their feed-forward layers are wider
DECODER_FEATURES = 256


class SegFormer3D(nn.Module):
    """Four stages of efficient attention at 1/4 to 1/32 of the resolution, fused at a quarter of it: a lesion of a few
    voxels is lost."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        inputs = (in_channels, *FEATURES[:-1])
        self.stages = nn.ModuleList(
            Stage(*arguments) for arguments in zip(inputs, FEATURES, KERNELS, STRIDES, HEADS, REDUCTIONS, strict=True)
        )
        self.decoder = MLPDecoder()
        self.apply(_initialise)
        self.logits = nn.Conv3d(DECODER_FEATURES, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, D, H, W), sides multiples of 16, to logits (B, num_classes, D, H, W)."""
        maps, features = [], image
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return functional.interpolate(self.logits(self.decoder(maps)), image.shape[2:], mode="trilinear")


class Stage(nn.Module):
    """Embeds overlapping patches as tokens (B, d, h, w, C) and lets them attend to each other."""

    def __init__(self, in_channels: int, features: int, kernel: int, stride: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(in_channels, features, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(features)
        self.transformer = nn.Sequential(
            *(Block(features, heads, reduction) for _ in range(LAYERS)), nn.LayerNorm(features)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, D, H, W) to (B, features, D/stride, H/stride, W/stride)."""
        tokens = self.norm(self.embed(image).movedim(1, -1))
        return self.transformer(tokens).movedim(-1, 1)


class Block(nn.Module):
    """Attention and a mix-FFN, each on normalised tokens (B, d, h, w, C) and added to them."""

    def __init__(self, features: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(features), EfficientAttention(features, heads, reduction))
        self.feed_forward = nn.Sequential(nn.LayerNorm(features), MixFFN(features))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class EfficientAttention(nn.Module):
    """Each token attends to learned means of cubes of tokens, `reduction` along an edge."""

    def __init__(self, features: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(features, features), nn.Linear(features, 2 * features)
        self.out = nn.Linear(features, features)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv3d(features, features, reduction, reduction)
            self.norm = nn.LayerNorm(features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w, C) to the same, d, h and w multiples of the reduction."""
        reduced = tokens
        if self.reduction > 1:
            reduced = self.norm(self.reduce(tokens.movedim(-1, 1)).movedim(1, -1))
        keys, values = self.key_value(reduced).chunk(2, dim=-1)
        queries, keys, values = (  # (B, heads, d * h * w, C / heads)
            t.flatten(1, 3).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(tokens), keys, values)
        )
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(attended.transpose(1, 2).reshape(tokens.shape))


class MixFFN(nn.Module):
    """A feed-forward layer on tokens (B, d, h, w, C) with a depthwise convolution in place of a position embedding."""

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * features
        self.widen, self.narrow = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.mix = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(self.widen(tokens).movedim(-1, 1)).movedim(1, -1)
        return self.narrow(functional.gelu(mixed))


class MLPDecoder(nn.Module):
    """Fuses the maps of all stages voxel by voxel, at one width and at the first one's size."""

    def __init__(self) -> None:
        super().__init__()
        width = DECODER_FEATURES
        self.project = nn.ModuleList(nn.Conv3d(channels, width, 1) for channels in FEATURES)
        fused = nn.Conv3d(len(FEATURES) * width, width, 1, bias=False)
        self.fuse = nn.Sequential(fused, nn.BatchNorm3d(width), nn.ReLU())

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, d_i, h_i, w_i), the largest first, to (B, width, d_0, h_0, w_0)."""
        projected = (project(features) for project, features in zip(self.project, maps, strict=True))
        size = maps[0].shape[2:]
        return self.fuse(torch.cat([functional.interpolate(p, size, mode="trilinear") for p in projected], 1))


def _initialise(module: nn.Module) -> None:
    """As SegFormer's encoder: narrow normal weights for linear layers, by the fan-out for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv3d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
