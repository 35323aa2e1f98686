"""SegFormer3D (Perera et al., 2024, arXiv 2404.10156): a light hierarchical transformer with a decoder of MLPs."""

import math

import torch
from torch import nn
from torch.nn import functional

from models.segmentation.blocks import convolutions, up

# As published, from the first stage to the last.
KERNELS, STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)  # of the patch embeddings, which overlap
REDUCTIONS = (4, 2, 1, 1)  # by which attention shrinks the keys along each axis
MLP_RATIO = 4
FULL_FEATURES, HALF_FEATURES = 8, 16  # of the convolutions at full and half resolution, where the time goes


class SegFormer3D(nn.Module):
    """Four stages of efficient attention at 1/4 to 1/32 of the resolution, brought together at a quarter of it.

    The published network enlarges its quarter-resolution logits, in which a lesion of a few voxels is lost. With
    `full_resolution` convolutions decode them together with features of the image at half and full resolution.

    Args:
        features: channels of the stages.
        heads: attention heads of the stages.
        layers: transformer blocks of each stage.
        decoder_features: channels of the decoder.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        features: tuple[int, int, int, int] = (32, 64, 160, 256),
        heads: tuple[int, int, int, int] = (1, 2, 5, 8),
        layers: int = 2,
        decoder_features: int = 256,
        full_resolution: bool = False,
    ) -> None:
        super().__init__()
        inputs = (in_channels, *features[:-1])
        self.stages = nn.ModuleList(
            Stage(*arguments, layers)
            for arguments in zip(inputs, features, KERNELS, STRIDES, heads, REDUCTIONS, strict=True)
        )
        self.decoder = MLPDecoder(features, decoder_features)
        self.apply(_initialise)
        if full_resolution:
            self.head = FullResolutionHead(in_channels, decoder_features, num_classes)
        else:
            self.head = EnlargingHead(decoder_features, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, D, H, W), sides multiples of 16, to logits (B, num_classes, D, H, W)."""
        maps, features = [], image
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return self.head(image, self.decoder(maps))


# --- encoder -------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """Embeds overlapping patches and lets them attend to each other.

    ``transformer`` acts on tokens (B, d, h, w, C) and keeps their shape, so that an identity can take its place.
    """

    def __init__(
        self, in_channels: int, features: int, kernel: int, stride: int, heads: int, reduction: int, layers: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv3d(in_channels, features, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(features)
        self.transformer = nn.Sequential(
            *(Block(features, heads, reduction) for _ in range(layers)), nn.LayerNorm(features)
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
    """Each token attends to means of `reduction`-sided cubes of tokens, learned ones, in place of all tokens."""

    def __init__(self, features: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(features, features), nn.Linear(features, 2 * features)
        self.out = nn.Linear(features, features)
        self.reduce = None
        if reduction > 1:
            self.reduce = nn.Conv3d(features, features, reduction, reduction)
            self.norm = nn.LayerNorm(features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w, C) to the same, d, h and w multiples of the reduction."""
        seen = tokens
        if self.reduce is not None:
            seen = self.norm(self.reduce(tokens.movedim(-1, 1)).movedim(1, -1))
        keys, values = self.key_value(seen).chunk(2, dim=-1)
        queries, keys, values = (self._split(t) for t in (self.query(tokens), keys, values))
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(attended.transpose(1, 2).reshape(tokens.shape))

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w, C) to (B, heads, d * h * w, C / heads)."""
        return tokens.flatten(1, 3).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MixFFN(nn.Module):
    """A feed-forward layer on tokens (B, d, h, w, C) whose depthwise convolution tells them where they are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * features
        self.widen, self.narrow = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.mix = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(self.widen(tokens).movedim(-1, 1)).movedim(1, -1)
        return self.narrow(functional.gelu(mixed))


# --- decoder -------------------------------------------------------------------------------------------


class MLPDecoder(nn.Module):
    """Brings the maps of all stages to one width and to the first one's size, and fuses them voxel by voxel."""

    def __init__(self, features: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv3d(channels, width, 1) for channels in features)
        self.fuse = nn.Sequential(
            nn.Conv3d(len(features) * width, width, 1, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, d_i, h_i, w_i), the largest first, to (B, width, d_0, h_0, w_0)."""
        size = maps[0].shape[2:]
        return self.fuse(torch.cat([_enlarge(p(m), size) for p, m in zip(self.project, maps, strict=True)], 1))


class EnlargingHead(nn.Module):
    """Logits at a quarter of the resolution, enlarged."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Conv3d(features, num_classes, 1)

    def forward(self, image: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        return _enlarge(self.logits(decoded), image.shape[2:])


class FullResolutionHead(nn.Module):
    """Logits from the decoded quarter and light convolutions of the image at half and full resolution."""

    def __init__(self, in_channels: int, features: int, num_classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            [convolutions(in_channels, FULL_FEATURES), convolutions(FULL_FEATURES, HALF_FEATURES, stride=2)]
        )
        self.decoders = nn.ModuleList([up(features, HALF_FEATURES), up(HALF_FEATURES, FULL_FEATURES)])
        self.logits = nn.Conv3d(FULL_FEATURES, num_classes, 1)

    def forward(self, image: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        full = self.encoders[0](image)
        half = self.encoders[1](full)
        return self.logits(self.decoders[1](self.decoders[0](decoded, half), full))


def _enlarge(features: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return functional.interpolate(features, size, mode="trilinear", align_corners=False)


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
