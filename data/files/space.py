"""Where a volume lies: voxel grids in scanner millimetres, and volumes brought from one grid to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.files.nifti import spacing_of
from utils.regions.region import bounding_box

Shape = tuple[int, int, int]  # (D, H, W)
Spacing = tuple[float, float, float]  # (D, H, W) in mm
Start = tuple[int, int, int]  # first voxel (D, H, W) of a window
# Of a voxel: two grids whose voxels lie closer together than this are one grid, and nothing is interpolated.
SAME_VOXEL = 0.01
# Of a voxel, by which a grid of another spacing is moved: of voxels midway between two, one half goes to either side.
# Exactly midway none would reach a mask's 0.5, and a ball of 3 voxels across would lose 0.4 of its volume.
OFF_MIDWAY = 0.01


@dataclass(frozen=True)
class Space:
    """A voxel grid: its shape (D, H, W) and the (4, 4) affine from voxel (H, W, D) to mm in RAS."""

    shape: Shape
    affine: np.ndarray

    @property
    def spacing_mm(self) -> Spacing:
        """Size of a voxel along (D, H, W)."""
        return spacing_of(self.affine)

    def in_mm(self, voxels: np.ndarray) -> np.ndarray:
        """Where (N, 3) voxels (D, H, W) lie, (N, 3) as (x, y, z)."""
        return voxels[:, [1, 2, 0]] @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def as_json(self) -> dict[str, list]:
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    def is_close(self, other: "Space") -> bool:
        """Whether both have the same shape and no voxel lies further off than a hundredth of its size."""
        return self.shape == other.shape and _whole_steps(_steps(self, other), self.shape) == (0, 0, 0)

    def has_voxels_of(self, other: "Space") -> bool:
        """Whether the voxels of both grids are the same wherever both lie."""
        return _whole_steps(_steps(self, other), other.shape) is not None


def space_from_json(held: Mapping) -> Space:
    return Space(tuple(held["shape"]), np.array(held["affine"], float))


def _steps(source: Space, target: Space) -> np.ndarray:
    """(4, 4) from a voxel (D, H, W) of `target` to where it lies among the voxels of `source`."""
    # Rounded, or a voxel on the border would fall outside by the fifteenth digit.
    steps = np.round(np.linalg.solve(source.affine, target.affine), 9)
    dhw = [2, 0, 1, 3]  # affines are for voxels (H, W, D)
    return steps[dhw][:, dhw]


def _whole_steps(steps: np.ndarray, shape: Shape) -> Start | None:
    """The shift (D, H, W) in voxels where `steps` is one, all over a volume of `shape`; None where it is not."""
    shift = np.round(steps[:3, 3])
    corners = np.array([*np.ndindex(2, 2, 2)]) * shape
    moved = corners @ steps[:3, :3].T + steps[:3, 3]
    if np.abs(moved - corners - shift).max() > SAME_VOXEL:
        return None
    d, h, w = shift.astype(int).tolist()
    return d, h, w


def cut(array: np.ndarray, start: Sequence[int], shape: Sequence[int], fill=0) -> np.ndarray:
    """The window of the last axes of an array, of `shape` from voxel `start`, with `fill` where it leaves the array."""
    lead = array.ndim - len(shape)
    low, high = np.clip([start, np.add(start, shape)], 0, array.shape[lead:])
    source: list[slice] = [*[slice(None)] * lead, *map(slice, low, high)]
    target: list[slice] = [*[slice(None)] * lead, *map(slice, low - start, high - start)]
    window = np.full((*array.shape[:lead], *shape), fill, array.dtype)
    window[tuple(target)] = array[tuple(source)]
    return window


def centred_space(source: Space, centre: Sequence[float], shape: Shape, spacing_mm: Sequence[float] | None) -> Space:
    """A grid of `shape` along the axes of `source`, about its voxel `centre` (D, H, W) where nothing is lost by it.

    Where the grid is larger than the source it holds all of the source, and where it is smaller it stays inside. It
    begins at a voxel of the source, so that with the same spacing, which None stands for, nothing is interpolated.
    """
    zoom = np.divide(spacing_mm or source.spacing_mm, source.spacing_mm)
    zoom[np.abs(zoom - 1) * shape < SAME_VOXEL] = 1
    room = np.array(source.shape) - 1 - zoom * (np.array(shape) - 1)  # negative where the grid is larger
    start = np.array(centre) - zoom * (np.array(shape) - 1) / 2
    start = np.round(np.clip(start, np.minimum(room, 0), np.maximum(room, 0)))
    return _space_in(source, start + np.where(zoom == 1, 0, OFF_MIDWAY), zoom, shape)


def resized_space(source: Space, centre: float, depth: int, size: tuple[int, int]) -> Space:
    """A grid of `depth` slices, each a whole slice of `source` by (H, W) voxels, about its slice `centre`."""
    zoom = np.array([1.0, *np.divide(source.shape[1:], size)])
    room = source.shape[0] - depth
    start = np.round(np.clip(centre - (depth - 1) / 2, min(room, 0), max(room, 0)))
    return _space_in(source, np.array([start, *(zoom[1:] - 1) / 2]), zoom, (depth, *size))


def _space_in(source: Space, start: np.ndarray, zoom: np.ndarray, shape: Shape) -> Space:
    """The grid of `shape` that begins at `start` of `source`, with voxels of `zoom` times the size, along (D, H, W)."""
    to_source = np.diag([*np.roll(zoom, -1), 1.0])  # (D, H, W) to (H, W, D)
    to_source[:3, 3] = np.roll(start, -1)
    d, h, w = shape
    return Space((d, h, w), source.affine @ to_source)


def coarse_space(own: Space, size_mm: float) -> Space:
    """A grid of cubic voxels of that size in the place of another, about its middle."""
    d, h, w = (int(n) for n in np.ceil(np.multiply(own.shape, own.spacing_mm) / size_mm))
    return centred_space(own, tuple((np.array(own.shape) - 1) / 2), (d, h, w), (size_mm,) * 3)


def places_in(target: Space, voxels: np.ndarray, own: Space) -> np.ndarray:
    """Where (N, 3) voxels (D, H, W) of a grid `own` lie among the voxels of another, (N, 3) along its (D, H, W)."""
    steps = _steps(target, own)
    return voxels @ steps[:3, :3].T + steps[:3, 3]


def share_outside(mask: np.ndarray, own: Space, target: Space) -> float:
    """The share of a (D, H, W) mask's voxels whose centre lies beyond the grid `target`."""
    shift = _whole_steps(_steps(own, target), target.shape)
    if shift is not None:
        n_inside = np.count_nonzero(cut(mask, shift, target.shape))
    else:
        places = places_in(target, np.argwhere(mask), own)
        n_inside = np.count_nonzero(((places > -0.5) & (places < np.array(target.shape) - 0.5)).all(1))
    n = int(np.count_nonzero(mask))
    return (n - int(n_inside)) / max(n, 1)


def resample(array: np.ndarray, source: Space, target: Space, outside: Sequence[float] | None = None) -> np.ndarray:
    """Bring a scan, probabilities or a mask from one grid to another.

    Voxel by voxel where the grids differ by whole voxels. Otherwise linearly, after a Gaussian where the target is
    coarser (of half the excess in voxels, as in scikit-image), and a mask is what exceeds a half.

    Args:
        array: (C, D, H, W), float32 scan or bool mask.
        outside: (C,) values beyond the source; None for the background of each channel, no lesion in a mask.
    """
    is_mask, steps = array.dtype == bool, _steps(source, target)
    fills = [False if is_mask else _background(c) for c in array] if outside is None else outside
    shift = _whole_steps(steps, target.shape)
    if shift is not None:
        return np.stack([cut(c, shift, target.shape, fill) for c, fill in zip(array, fills, strict=True)])
    matrix, offset = steps[:3, :3], steps[:3, 3]
    blur = np.maximum(np.linalg.norm(matrix, axis=1) - 1, 0) / 2
    out = np.empty((len(array), *target.shape), np.float32)
    for channel, resampled, fill in zip(array, out, fills, strict=True):
        smooth = ndimage.gaussian_filter(channel.astype(np.float32), blur)
        resampled[:] = fill
        part, corner = _reached(smooth != fill, steps, target.shape)
        start, inside = offset + matrix @ corner, resampled[part]
        ndimage.affine_transform(smooth, matrix, start, inside.shape, output=inside, order=1, cval=float(fill))
    return out > 0.5 if is_mask else out


def _reached(voxels: np.ndarray, steps: np.ndarray, shape: Shape) -> tuple[tuple[slice, ...], np.ndarray]:
    """The part of a grid of `shape` that a linear interpolation of these (D, H, W) voxels reaches, and its corner."""
    ends = [(span.start - 1, span.stop) for span in bounding_box(voxels)]  # without voxels it is a box of no matter
    corners = np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)
    places = (corners - steps[:3, 3]) @ np.linalg.inv(steps[:3, :3]).T
    low = np.clip(np.floor(places.min(0)), 0, shape).astype(int)
    high = np.clip(np.ceil(places.max(0)) + 1, low, shape).astype(int)
    return tuple(map(slice, low, high)), low


def resample_nearest(array: np.ndarray, source: Space, target: Space) -> np.ndarray:
    """Bring a map (D, H, W) from one grid to another, each voxel that of the nearest place; 0 beyond the source."""
    steps = _steps(source, target)
    return ndimage.affine_transform(array, steps[:3, :3], steps[:3, 3], target.shape, order=0)


def _background(channel: np.ndarray) -> float:
    """The median of a (D, H, W) scan's outer faces: air, of which neither the neck nor a stray voxel is the most.

    It is one of the voxels, not the mean of two: what was of whole numbers stays so.
    """
    faces = [channel.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return float(np.percentile(np.concatenate(faces), 50, method="lower"))
