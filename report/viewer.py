"""An interactive view of a scan with its lesions, that turns with a click and needs no network."""

import warnings

import nibabel as nib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import ListedColormap

from utils.plots import DETECTION, PREDICTION, TARGET

# What a voxel of lesion is, and its colour.
FOUND, MISSED, FALSE = 1, 2, 3
COLOURS = {FOUND: TARGET, MISSED: DETECTION, FALSE: PREDICTION}
LARGEST_VOXELS = 2e6  # of a view; scans of more are shown on a coarser grid, so that the page stays small
WIDTH, HEIGHT = 860, 440  # pixels


def lesion_kinds(prediction: np.ndarray, target: np.ndarray | None) -> np.ndarray:
    """`FOUND`, `MISSED` or `FALSE` for each voxel of lesion, uint8; 0 elsewhere. Without `target` all is `FALSE`."""
    if target is None:
        return np.where(prediction, FALSE, 0).astype(np.uint8)
    return np.select([prediction & target, target, prediction], [FOUND, MISSED, FALSE], 0).astype(np.uint8)


def view(scan: np.ndarray, kinds: np.ndarray, affine: np.ndarray, centre: tuple[int, int, int]) -> Markup:
    """A frame with three planes of a scan through a point; a click moves them.

    Args:
        scan: (D, H, W) in [0, 1].
        kinds: (D, H, W), see `lesion_kinds`.
        affine: (4, 4) from voxel (H, W, D) to mm in RAS.
        centre: (D, H, W) voxel to begin at.
    """
    from nilearn.plotting import view_img  # here, since it takes seconds

    head, lesions = (nib.Nifti1Image(array.transpose(1, 2, 0), affine) for array in (scan.astype(np.float32), kinds))
    d, h, w = centre
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*must not exceed.*")  # of a scan without any lesion
        shown = view_img(
            place_evenly(lesions, "nearest"),
            bg_img=place_evenly(head, "continuous"),
            cut_coords=tuple(nib.affines.apply_affine(affine, (h, w, d))),
            cmap=ListedColormap(list(COLOURS.values())),
            threshold=0.5,
            vmin=FOUND - 0.5,
            vmax=FALSE + 0.5,
            symmetric_cmap=False,
            resampling_interpolation="nearest",
            black_bg=True,
            colorbar=False,
            opacity=0.7,
            title=None,
        )
    return Markup(shown.get_iframe(width=WIDTH, height=HEIGHT))


def place_evenly(image: nib.Nifti1Image, interpolation: str) -> nib.Nifti1Image:
    """An image along the axes of the scanner with voxels of one size, as small as `LARGEST_VOXELS` lets them be."""
    from nilearn.image import resample_img

    sizes = np.array(nib.affines.voxel_sizes(image.affine))
    volume = np.prod(sizes * image.shape)
    side = max(sizes.min(), (volume / LARGEST_VOXELS) ** (1 / 3))
    return resample_img(image, np.eye(3) * side, interpolation=interpolation, copy_header=True, force_resample=True)
