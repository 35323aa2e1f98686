"""Where a scan lies in MNI space: an affine registration to the MNI152 template that nilearn ships, of any contrast."""

from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from skimage.transform import downscale_local_mean

from data.files.space import Space, coarse_space, resample
from data.files.volumes import read_volume
from data.scans.prepared import PreparedScan

MAP_MM = 2.0  # of maps over a cohort
STEP_MM = 4.0  # of the points that are compared, or the voxels of a coarser scan; finer ones were no better
BLURS = (2.0, 1.0, 0.5)  # standard deviations in steps, one after the other
MOST_STEPS, SMALLEST_STEP_MM = 10, 0.05  # of each blur
REACH_MM = 50.0  # makes places and intensities numbers of one size
OUTLIER = 2.0  # robust standard deviations of the residual from which on a voxel, of a lesion say, counts little
# Dice of the moved brain and the template's, below which there is no registration. It was 0.95 to 0.97 in real brains,
# 0.83 where half of a head was scanned, and up to 0.91 where the whole head is used as the brain mask.
LEAST_OVERLAP = 0.93


@lru_cache(maxsize=1)
def template_t1() -> tuple[np.ndarray, Space]:
    """The template's T1w (D, H, W) float32 in [0, 1], without skull, at 1 mm, and its place in MNI mm."""
    return read_template("t1")


@lru_cache(maxsize=2)
def _template(step_mm: float) -> tuple[np.ndarray, Space]:
    """Grey matter, white matter and brain (3, D, H, W) float32 in [0, 1] on cubic voxels."""
    t1, own = template_t1()
    maps = read_template("gm")[0], read_template("wm")[0], (t1 > 0).astype(np.float32)
    # By blocks first, which takes half a second less.
    halved = np.stack([downscale_local_mean(tissue, 2) for tissue in maps])
    half = Space(halved.shape[1:], own.affine @ nib.affines.from_matvec(2 * np.eye(3), (0.5,) * 3))
    space = coarse_space(own, step_mm)
    return resample(halved, half, space, outside=(0.0,) * 3), space


def map_space() -> Space:
    """The grid of maps over a cohort, in MNI mm."""
    return coarse_space(template_t1()[1], MAP_MM)


def read_template(tissue: str) -> tuple[np.ndarray, Space]:
    """The map ``t1``, ``gm`` or ``wm``, (D, H, W) float32 in [0, 1] at 1 mm, and its place in MNI mm."""
    import nilearn

    folder = Path(nilearn.__file__).parent / "datasets/data"
    volume = read_volume(folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
    assert volume.affine is not None
    return volume.array[0] / 255, Space(volume.array.shape[1:], volume.affine)


def register(scan: PreparedScan) -> np.ndarray | None:
    """(4, 4) from the scanner's mm to MNI mm; None where the voxel size is unknown or the brains do not overlap.

    Each contrast is a function of the tissues. So the scan is compared with that sum of the template's tissues, and of
    a linear receive field, that is most like it, and its brain mask with the template's. The affine and the sum are
    found together by Gauss-Newton steps (Lucas and Kanade, 1981), reweighted against outliers as lesions are (Geman and
    McClure, 1987).
    """
    if not (scan.spacing_known and scan.place_known):
        return None
    step_mm = max(STEP_MM, round(float(np.prod(scan.space.spacing_mm)) ** (1 / 3), 1))
    maps, space = _template(step_mm)
    brain, coarse = maps[2] > 0.5, coarse_space(scan.space, step_mm)
    pair = np.stack([scan.scan[0].astype(np.float32), scan.brain.astype(np.float32)])
    pair = resample(pair, scan.space, coarse, outside=(0.0, 0.0))
    inside = pair[1] > 0.5
    if not inside.any() or not (deviation := pair[0][inside].std()):
        return None
    pair[0] /= deviation
    to_scan = _first_guess(_places(brain, space), _places(inside, coarse))
    for blur in BLURS:
        to_scan = _refine(to_scan, _points(step_mm, blur), pair, coarse, blur)
    if not np.isfinite(to_scan).all() or np.linalg.det(to_scan) <= 0:
        return None
    to_mni = np.linalg.inv(to_scan)
    moved = resample(inside[None], Space(coarse.shape, to_mni @ coarse.affine), space)[0]
    overlap = 2 * np.count_nonzero(moved & brain) / (np.count_nonzero(moved) + np.count_nonzero(brain))
    return to_mni if overlap >= LEAST_OVERLAP else None


def _first_guess(template: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(4, 4) from MNI mm to the scanner's, given (N, 3) places of both brains, that agree in middle and size."""
    (middle, size), (own_middle, own_size) = ((p.mean(0), p.std(0).prod() ** (1 / 3)) for p in (template, own))
    scale = own_size / size
    return nib.affines.from_matvec(scale * np.eye(3), own_middle - scale * middle)


def _places(mask: np.ndarray, space: Space) -> np.ndarray:
    """(N, 3) mm of the voxels of a mask."""
    return nib.affines.apply_affine(space.affine, np.argwhere(mask)[:, [1, 2, 0]])


@lru_cache(maxsize=2 * len(BLURS))
def _points(step_mm: float, blur: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template in and about the brain: places (N, 4) in MNI mm and 1, brain (N,), and what a scan is a sum of."""
    maps, space = _template(step_mm)
    near = ndimage.binary_dilation(maps[2] > 0.02, iterations=2)
    points = np.c_[_places(near, space), np.ones(np.count_nonzero(near))]
    grey, white, brain = (ndimage.gaussian_filter(m, blur)[near] for m in maps)
    tissues = np.stack([grey, white, np.clip(brain - grey - white, 0, None)], 1)
    return points, brain, np.c_[tissues, brain[:, None] * points[:, :3] / REACH_MM]


def _refine(
    to_scan: np.ndarray, template: tuple[np.ndarray, ...], pair: np.ndarray, own: Space, blur: float
) -> np.ndarray:
    """Steps at one blur; `pair` holds scan and brain (2, D, H, W) on `own`, which `to_scan` leads to from MNI mm.

    `template` is that of `_points`.
    """
    points, brain, tissues = template
    scale = np.array([REACH_MM] * 3 + [1.0])
    smooth = [ndimage.gaussian_filter(volume, blur) for volume in pair]
    slopes = [np.gradient(volume) for volume in smooth]
    weights, n = np.ones(len(points)), tissues.shape[1]
    for _ in range(MOST_STEPS):
        to_voxel = np.linalg.inv(own.affine) @ to_scan
        places = (points @ to_voxel[:3].T)[:, [2, 0, 1]].T
        values, jacobians = [], []
        for volume, (d, h, w) in zip(smooth, slopes, strict=True):
            value, *slope = (ndimage.map_coordinates(v, places, order=1, mode="constant") for v in (volume, h, w, d))
            slope_mm = np.stack(slope, 1) @ to_voxel[:3, :3]
            values.append(value)
            jacobians.append((slope_mm[:, :, None] * (points / scale)[:, None]).reshape(-1, 12))
        columns = np.c_[tissues, -jacobians[0]]
        weighted = columns * weights[:, None]
        normal, target = columns.T @ weighted, weighted.T @ values[0]
        normal[n:, n:] += jacobians[1].T @ jacobians[1]
        target[n:] += jacobians[1].T @ (brain - values[1])
        solution = np.linalg.lstsq(normal, target, rcond=1e-9)[0]
        residual = np.abs(values[0] - columns @ solution)
        deviation = 1.4826 * np.median(residual[brain > 0.5]) + 1e-6
        weights = 1 / (1 + (residual / (OUTLIER * deviation)) ** 2) ** 2
        step = solution[n:].reshape(3, 4) / scale
        to_scan = to_scan @ (np.eye(4) + np.vstack([step, np.zeros(4)]))
        if np.abs(step @ scale).max() < SMALLEST_STEP_MM:
            break
    return to_scan
