"""Tissue as it may have looked without a lesion."""

import numpy as np
from scipy import ndimage


def surrounding_tissue(image: np.ndarray, lesion: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Intensities (H, W) or (D, H, W), in any units, interpolated over a lesion from the tissue around it.

    Each voxel is the mean of the known ones, healthy tissue, with Gaussian weights as wide as the lesion is thick
    (normalised convolution, Knutsson and Westin, 1993, doi 10.1109/CVPR.1993.341081).
    """
    width = float(ndimage.distance_transform_edt(lesion).max()) + 1
    weight = ndimage.gaussian_filter(known.astype(np.float32), width)
    return ndimage.gaussian_filter(np.where(known, image, 0).astype(np.float32), width) / np.maximum(weight, 1e-6)
