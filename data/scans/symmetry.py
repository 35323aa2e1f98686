"""The mid-sagittal plane of a brain, in which its mask is most like its reflection, and the side of lesions."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

from data.files.space import Space, coarse_space, resample

COARSE_MM = 3.0  # the search for what is symmetric needs no finer voxels
LEAST_VOXELS = 60  # along the longest side: of a scan of unknown voxel size 3 "mm" may be too coarse
FIRST_STEP = (0.5, 0.05, 0.05)  # voxels and radians of the simplex that looks for the plane
SIDED = 0.9  # of a lesion's voxels that lie on one side
MIDLINE_MM = 10.0  # from the plane: as wide as half of the brain stem


def midsagittal_plane(brain: np.ndarray, own: Space) -> np.ndarray:
    """(4,) whose product with a place (x, y, z, 1) in scanner mm is how many mm to the right of the plane it lies.

    It is the plane in which the brain mask (D, H, W) is most like its reflection; NaN where the mask is too thin.
    """
    size = min(COARSE_MM, max(np.multiply(own.shape, own.spacing_mm)) / LEAST_VOXELS)
    coarse = coarse_space(own, size)
    small = resample(brain[None], own, coarse)[0]
    if not small.any():
        return np.full(4, np.nan)
    middle, (shift, turn, tilt) = symmetry_plane(small)
    normal = _normal(turn, tilt)
    from_mm = np.linalg.inv(coarse.affine)[[2, 0, 1]]  # to voxels (D, H, W)
    return size * (normal @ from_mm - [0, 0, 0, normal @ middle + shift])


def mm_right_of(plane: np.ndarray, voxels: np.ndarray, own: Space) -> np.ndarray:
    """How many mm to the right of a `midsagittal_plane` (N, 3) voxels (D, H, W) lie, (N,)."""
    return own.in_mm(voxels) @ plane[:3] + plane[3]


def side_of(right_mm: np.ndarray) -> str | float:
    """The side that holds `SIDED` of the voxels, given how far each lies to the right of the plane; NaN of none.

    ``left`` or ``right``; else ``midline`` where as many lie within `MIDLINE_MM`, and ``both`` where they do not.
    """
    if not len(right_mm) or np.isnan(right_mm).any():
        return np.nan
    shares = {"left": right_mm < 0, "right": right_mm > 0, "midline": np.abs(right_mm) <= MIDLINE_MM}
    return next((side for side, inside in shares.items() if inside.mean() >= SIDED), "both")


def symmetry_plane(mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The plane in which a mask (D, H, W) of cubic voxels is most like its reflection.

    Returns:
        Its centre of mass, and the plane: its shift from there in voxels, and two turns of its normal in radians.
    """
    smooth: np.ndarray = ndimage.gaussian_filter(mask.astype(np.float32), 1)
    half, middle = smooth[::2, ::2, ::2], np.array(ndimage.center_of_mass(mask))

    def unlike(plane: np.ndarray) -> float:
        return -float(np.vdot(half, _reflect(half, middle / 2, plane)))

    simplex = np.vstack([np.zeros(3), np.diag(FIRST_STEP)])
    shift, turn, tilt = minimize(
        unlike,
        np.zeros(3),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1.0, "maxiter": 50},
    ).x
    return middle, (2 * float(shift), float(turn), float(tilt))


def _normal(turn: float, tilt: float) -> np.ndarray:
    return np.array([np.sin(tilt), np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn)])  # (D, H, W)


def _reflect(image: np.ndarray, middle: np.ndarray, plane: Sequence[float] | np.ndarray) -> np.ndarray:
    """The image reflected at a plane: its shift from the `middle` in voxels, and two turns of its normal in radians."""
    shift, turn, tilt = plane
    normal = _normal(turn, tilt)
    matrix = np.eye(3) - 2 * np.outer(normal, normal)
    offset = middle - matrix @ middle + 2 * shift * normal
    return ndimage.affine_transform(image, matrix, offset, order=1)
