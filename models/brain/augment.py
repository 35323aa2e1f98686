"""What a scan may look like: places, contrasts and faults that the phantom does not draw, on the network's voxels."""

from functools import partial

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data.scans.extraction import VIEW, VOXEL_MM, scale
from models.brain.heads import Head

TILT_DEGREES, SHIFT_MM = 20.0, 20.0  # at most, about and along each axis
SIZE, ASPECT = (0.85, 1.2), (0.93, 1.07)  # factors of the whole head, and of each axis
STRIPPED = 0.25  # share of the scans with the brain alone
KNOTS = 6  # of the piecewise linear maps of intensity
DARK = 0.1  # less is air or skull
LESION_WEIGHT = 12.0  # of a lesion's voxels in the loss, beside 1
Example = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_example(head: Head, rng: np.random.Generator) -> Example:
    """A random view of a head: image in [0, 1], share of brain in [0, 1] and weight of each voxel, `VIEW` float32."""
    image, brain, lesions = _place(head, rng)
    low, high = np.percentile(image, (0.5, 99.5))
    image = np.clip((image - low) / (high - low), 0, 1.2)
    inside = brain > 0.5
    if _happens(0.2, rng):
        lesions |= _paint_blob(image, inside, rng)
    if _happens(0.4, rng):  # muscle or fat as bright as brain
        _paint_blob(image, (brain == 0) & (image > DARK), rng)
    is_stripped = _happens(STRIPPED, rng)
    if is_stripped:  # by a tool whose mask is tighter or wider than the brain
        inside = ndimage.gaussian_filter(brain, rng.uniform(0.3, 1.2)) > rng.uniform(0.2, 0.7)
        brain = inside.astype(np.float32)
    image = _recolour(image, inside, rng)
    image = _spoil(image, rng)
    if is_stripped:
        image[~inside] = 0 if _happens(0.8, rng) else rng.uniform(-0.5, 1)
    elif _happens(0.06, rng):
        _fill_air(image, rng)
    if _happens(0.25, rng):
        _cut(image, brain, rng)
    return scale(image), brain, 1 + LESION_WEIGHT * (lesions & (brain > 0))


def _happens(probability: float, rng: np.random.Generator) -> bool:
    return bool(rng.random() < probability)


def _place(head: Head, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, share of brain and lesions of a head that is turned, moved, of another size, and mirrored or not."""
    spacing = np.array(head.spacing_mm)
    angles = rng.uniform(-TILT_DEGREES, TILT_DEGREES, 3) * rng.random()
    size = rng.uniform(*SIZE) * rng.uniform(*ASPECT, 3) * (1, rng.choice([-1, 1]), 1)
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(VOXEL_MM / size)
    matrix /= spacing[:, None]
    middle = np.array(ndimage.center_of_mass(head.brain))
    middle += rng.uniform(-SHIFT_MM, SHIFT_MM, 3) / spacing
    offset = middle - matrix @ (np.array(VIEW) - 1) / 2
    turn = partial(ndimage.affine_transform, matrix=matrix, offset=offset, output_shape=VIEW)
    # Half of the necks and faces go on as they end.
    image = turn(head.scan.astype(np.float32), order=1, mode="nearest" if _happens(0.5, rng) else "constant")
    lesions = turn(head.lesions.astype(np.uint8), order=0)
    return image, turn(head.brain.astype(np.float32), order=1), lesions > 0


def _cut(image: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> None:
    """Take off what lies below, above or beside a plane, as a field of view does."""
    axis = rng.choice(3, p=(0.7, 0.15, 0.15))
    n = int(rng.uniform(0, 0.4) * VIEW[axis])
    cut = [slice(None)] * 3
    cut[axis] = slice(0, n) if _happens(0.6, rng) else slice(VIEW[axis] - n // 2, None)
    image[tuple(cut)], brain[tuple(cut)] = image.min(), 0


def _field(points: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of about unit variance over a crop, from normal numbers at so many points along an axis."""
    field = rng.standard_normal((points,) * 3).astype(np.float32)
    return ndimage.zoom(field, np.divide(VIEW, points), order=1)


def _paint_blob(image: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A large lesion, darker or brighter than all tissue, anywhere `inside`; returns its mask."""
    places = np.argwhere(inside)
    if not len(places):
        return inside
    centre, radii = rng.choice(places), rng.uniform(3, 13, 3)
    d, h, w = (((np.arange(n) - c) / r) ** 2 for n, c, r in zip(VIEW, centre, radii, strict=True))
    distance = d[:, None, None] + h[:, None] + w + 0.5 * _field(12, rng)
    blob = inside & (distance < 1)
    image[blob] += rng.uniform(0.5, 1) * (rng.uniform(0, 1.2) - image[blob])
    return blob


def _recolour(image: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another contrast: one random map of all intensities, or one of the brain's and one of the others."""
    if _happens(0.35, rng):
        return image
    changed = _map(image, rng)
    if _happens(0.25, rng):
        changed = np.where(inside, changed, _map(image, rng))
    return changed


def _map(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Intensities through a random curve, which rises, falls, or does both."""
    levels, ramp, kind = rng.random(KNOTS), np.linspace(0, 1, KNOTS), rng.random()
    if kind < 0.75:
        share = rng.random()
        levels = (1 - share) * ramp + share * np.sort(levels)
        levels = levels if kind < 0.5 else levels[::-1]
    if kind < 0.5 or _happens(0.7, rng):
        levels[0] = 0  # air is mostly dark
    return np.interp(image, ramp, levels).astype(np.float32)


def _spoil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Receive field, thick slices, blur, noise."""
    image = image * np.exp(rng.uniform(0, 0.4) * _field(int(rng.integers(2, 5)), rng))
    if _happens(0.2, rng):
        image = _thicken(image, int(rng.integers(3)), int(rng.integers(2, 4)))
    if _happens(0.3, rng):
        image = ndimage.gaussian_filter(image, rng.uniform(0, 0.8, 3))
    if _happens(0.5, rng):
        strength = np.float32(rng.uniform(0, 0.1))
        noise = rng.standard_normal((2, *VIEW), np.float32) * strength
        image = np.hypot(image + noise[0], noise[1])
    return image


def _thicken(image: np.ndarray, axis: int, voxels: int) -> np.ndarray:
    """Slices of so many voxels, interpolated."""
    mean = ndimage.uniform_filter1d(image, voxels, axis).take(range(0, VIEW[axis], voxels), axis)
    return ndimage.zoom(mean, [n / m for n, m in zip(VIEW, mean.shape, strict=True)], order=1)


def _fill_air(image: np.ndarray, rng: np.random.Generator) -> None:
    """Noise as bright as tissue in the air, as in MP2RAGE (UNI)."""
    smooth = ndimage.gaussian_filter(image, 1)
    air = smooth < 0.1 * np.percentile(smooth, 99)
    image[air] = rng.random(np.count_nonzero(air), np.float32) * rng.uniform(0.3, 1)
