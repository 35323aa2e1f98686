"""What a brain mask lacks on one side of the head and has on the other.

Networks for brain extraction learn healthy brains: of an old infarct at the brain's rim, as dark as CSF, they may leave
out a third.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

from data.files.space import Space, centred_space, resample

COARSE_MM = 3.0  # the search needs no finer voxels
FIRST_STEP = (0.5, 0.05, 0.05)  # voxels and radians of the simplex that looks for the plane
LEAST_MM3 = 1000.0  # a smaller piece is no lesion that was left out


def complete_by_symmetry(brain: np.ndarray, head: np.ndarray, own: Space) -> np.ndarray:
    """The brain (D, H, W), H across the head, with the solid pieces that only its mirror image holds in its outline."""
    from skimage.morphology import convex_hull_image  # here, since the runner of exported models does without it

    shape = np.ceil(np.multiply(own.shape, own.spacing_mm) / COARSE_MM).astype(int)
    centre = tuple((np.array(own.shape) - 1) / 2)
    coarse = centred_space(own, centre, tuple(shape.tolist()), (COARSE_MM,) * 3)
    small, small_head = (resample(mask[None], own, coarse)[0] for mask in (brain, head))
    outline = np.stack([convex_hull_image(z) if z.any() else z for z in small])
    lacking = mirrored(small) & outline & small_head & ~small
    # Opened, so that what is left is thicker than the error of the plane.
    pieces, n = ndimage.label(ndimage.binary_opening(lacking, np.ones((3, 3, 3), bool)))
    large = np.flatnonzero(np.bincount(pieces.ravel(), minlength=n + 1) * COARSE_MM**3 >= LEAST_MM3)
    missing = np.isin(pieces, large[large > 0])
    if not missing.any():
        return brain
    missing = ndimage.binary_dilation(missing, iterations=2) & lacking  # what opening took off; up to the brain
    return brain | (resample(missing[None], coarse, own)[0] & head)


def mirrored(mask: np.ndarray) -> np.ndarray:
    """A mask (D, H, W) of cubic voxels reflected at the plane in which it is most like its reflection."""
    smooth: np.ndarray = ndimage.gaussian_filter(mask.astype(np.float32), 1)
    half, middle = smooth[::2, ::2, ::2], np.array(ndimage.center_of_mass(mask))

    def unlike(plane: np.ndarray) -> float:
        return -float(np.vdot(half, _reflect(half, middle / 2, plane)))

    simplex = np.vstack([np.zeros(3), np.diag(FIRST_STEP)])
    options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1.0, "maxiter": 50}
    shift, turn, tilt = minimize(unlike, np.zeros(3), method="Nelder-Mead", options=options).x
    return _reflect(smooth, middle, (2 * shift, turn, tilt)) > 0.5


def _reflect(image: np.ndarray, middle: np.ndarray, plane: Sequence[float] | np.ndarray) -> np.ndarray:
    """The image reflected at a plane: its shift from the `middle` in voxels, and two turns of its normal in radians."""
    shift, turn, tilt = plane
    normal = np.array([np.sin(tilt), np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn)])  # (D, H, W)
    matrix = np.eye(3) - 2 * np.outer(normal, normal)
    offset = middle - matrix @ middle + 2 * shift * normal
    return ndimage.affine_transform(image, matrix, offset, order=1)
