"""Random augmentations of whole batches, slices and windows alike, on the device that they lie on.

A slice is a window of depth 1. Images are (B, C, D, H, W) float32 in [0, 1], label maps (B, L, D, H, W) uint8. Each
item has a generator of its own, so that what happens to it does not depend on its batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from torch.nn import functional

from data.batches.tissue import REACH, lesion_width, surrounding_tissue
from utils.regions.region import box_around

PROBABILITY = 0.5
ANGLE = np.deg2rad(10)
SCALE, GAMMA, ZOOM = (0.9, 1.1), (0.7, 1.5), (0.5, 1.0)
NOISE = 0.05  # largest standard deviation
DEGREE, BIAS = 3, (0.0, 0.2)  # of the polynomial in the logarithm of a receive field, and its coefficients
LESION_CONTRAST = (0.3, 1.2)  # at 0 lesions vanish, at 1 they stay

Generators = Sequence[np.random.Generator]
Pair = tuple[torch.Tensor, torch.Tensor]  # images and label maps


def augment(names: Sequence[str], images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """Random transforms, the ``--transforms`` of these names, in their order; each changes half of the items."""
    items, maps = list(images), list(labels)
    for name in names:
        chosen = [i for i, generator in enumerate(generators) if generator.random() < PROBABILITY]
        # One window after the other stays in the cache of a CPU.
        for group in filter(None, [chosen] if images.device.type != "cpu" else [[i] for i in chosen]):
            pair = (torch.stack([tensors[i] for i in group]) for tensors in (items, maps))
            for i, image, label in zip(group, *TRANSFORMS[name](*pair, [generators[i] for i in group]), strict=True):
                items[i], maps[i] = image, label
    return torch.stack(items), torch.stack(maps)


def uniform(span: tuple[float, float], like: torch.Tensor, generators: Generators) -> torch.Tensor:
    """A random number for each item of a batch, (B, 1, 1, 1, 1)."""
    return _tensor([g.uniform(*span) for g in generators], like).view(-1, 1, 1, 1, 1)


def _tensor(values, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=like.dtype, device=like.device)


def flip(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """Left and right are alike enough to swap; front and back or top and bottom are not."""
    return images.flip(-2), labels.flip(-2)


def affine(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """A rotation in plane and a scaling of each axis about the middle; zeros beyond the border."""
    *_, depth, height, width = images.shape
    angles = np.array([g.uniform(-ANGLE, ANGLE) for g in generators])
    scales = np.array([g.uniform(*SCALE, size=3) for g in generators])
    # Rows and columns are x and y, in units of half a width and half a height.
    cosine, sine, none = np.cos(angles), np.sin(angles), np.zeros(len(angles))
    x = [cosine * scales[:, 2], sine * scales[:, 1] * height / width, none]
    y = [-sine * scales[:, 2] * width / height, cosine * scales[:, 1], none]
    theta = _tensor(np.stack([np.stack(x, 1), np.stack(y, 1)], 1), images)
    plane = functional.affine_grid(theta, [len(images), 1, height, width], align_corners=False)
    places = scales[:, :1] * (np.arange(depth) - (depth - 1) / 2) + (depth - 1) / 2
    return _resample(images, plane, places, "bilinear"), _resample(labels, plane, places, "nearest")


def _resample(volumes: torch.Tensor, plane: torch.Tensor, slices: np.ndarray, mode: str) -> torch.Tensor:
    """Volumes at places in plane (B, H, W, 2), as `grid_sample` has them, of slices (B, D), which may lie between two.

    No axis mixes with the depth, so that all slices are interpolated in plane as channels of one.
    """
    if volumes.shape[2] > 1:
        volumes = _slices_at(volumes, slices, mode)
    moved = functional.grid_sample(volumes.flatten(1, 2).float(), plane, mode, align_corners=False)
    return moved.view_as(volumes).to(volumes.dtype)


def _slices_at(volumes: torch.Tensor, places: np.ndarray, mode: str) -> torch.Tensor:
    n, _, depth, *_ = volumes.shape
    padded = functional.pad(volumes, (0, 0, 0, 0, 1, 1)).transpose(1, 2)
    planes, first = padded.flatten(0, 1), (depth + 2) * np.arange(n)[:, None]  # of each volume
    places = places.clip(-1, depth) + 1
    below = np.round(places) if mode == "nearest" else np.floor(places)

    def at(slices: np.ndarray) -> torch.Tensor:
        rows = torch.tensor(first + slices, dtype=torch.int64, device=volumes.device)
        return planes.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)

    if mode == "nearest":
        return at(below)
    share = _tensor(places - below, volumes)[:, None, :, None, None]
    return torch.lerp(at(below), at(np.minimum(below + 1, depth + 1)), share)


def contrast(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """A random gamma; the least and the largest intensity stay."""
    low = images.amin((1, 2, 3, 4), keepdim=True)
    span = images.amax((1, 2, 3, 4), keepdim=True) - low
    logarithm = ((images - low) / (span + 1e-7)).log_()  # a power of its own takes twice as long
    return (logarithm * uniform(GAMMA, images, generators)).exp_() * span + low, labels


def noise(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """Gaussian, of a random standard deviation."""
    values = []
    # No generator of torch's own, which every kind of device would have to offer.
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        for image, generator in zip(images, generators, strict=True):
            torch.manual_seed(int(generator.integers(2**31)))
            values.append(torch.randn_like(image))
    return images + uniform((0, NOISE), images, generators) * torch.stack(values), labels


def bias_field(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """A receive field: the exponential of a sum of Legendre polynomials along the axes."""
    i, j, k = np.indices((DEGREE + 1,) * 3)
    terms = i + j + k <= DEGREE if images.shape[2] > 1 else (i == 0) & (k <= j)
    coefficients = np.zeros((len(images), *terms.shape))
    coefficients[:, terms] = [g.uniform(*BIAS, size=np.count_nonzero(terms)) for g in generators]
    axes = [_tensor(legvander(np.linspace(-1, 1, size), DEGREE), images) for size in images.shape[2:]]
    field = torch.einsum("bijk,zi,yj,xk->bzyx", _tensor(coefficients, images), *axes)
    return images * field.exp()[:, None], labels


def resolution(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """Some of the voxels alone, and the others between them."""
    shape, coarse = images.shape[2:], []
    for image, generator in zip(images, generators, strict=True):
        zoom = generator.uniform(*ZOOM)
        smaller = functional.interpolate(image[None], [max(1, round(size * zoom)) for size in shape])
        coarse.append(functional.interpolate(smaller, shape, mode="trilinear")[0])
    return torch.stack(coarse), labels


def lesion_contrast(images: torch.Tensor, labels: torch.Tensor, generators: Generators) -> Pair:
    """Scales how lesions, the first of the label maps, differ from the tissue around them."""
    factors = uniform(LESION_CONTRAST, images, generators)
    lesions = (labels[:, 0] > 0).cpu().numpy()
    chosen = [i for i, lesion in enumerate(lesions) if lesion.any() and not lesion.all()]
    if not chosen:
        return images, labels
    widths = [lesion_width(lesion) for lesion in lesions[chosen]]
    around = box_around(lesions[chosen].max(0), round(REACH * max(widths)))
    rows, near = torch.tensor(chosen, device=images.device), images[:, :, *around]
    part, inside = near[rows], labels[:, :1, *around][rows] > 0
    tissue = surrounding_tissue(part, ~inside & (part > 0), widths)
    changed = (tissue + factors[rows] * (part - tissue)).clamp(0, 1)
    near.index_copy_(0, rows, torch.where(inside, changed, part))
    return images, labels


TRANSFORMS: dict[str, Callable[..., Pair]] = {
    "flip": flip,
    "affine": affine,
    "contrast": contrast,
    "noise": noise,
    "bias_field": bias_field,
    "resolution": resolution,
    "lesion_contrast": lesion_contrast,
}
