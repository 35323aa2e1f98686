"""Whether scans are of the contrast that a network has learned: by their names, and T1w by its looks too."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from data.files.names import CONTRASTS, contrast_of, only_contrast, standard_contrast
from utils.errors import UserError
from utils.regions.region import bounding_box

COARSE_MM = 3.0  # voxels are joined up to this size
LOCAL_MM = 12.0  # standard deviation of the neighbourhood: a coil's bias is smoother
# `brighter_inside` below which a scan is no T1w. Measured: T1w 0.10 to 0.50 in 80 synthetic heads of variety 0.5 and 1,
# 0.26 and 0.29 in two real ones (one 87 years old), 0.15 with noise of a fifth of white matter, 0.13 beside a coil four
# times as bright at the surface, 0.08 with the skull taken for brain, 0.02 where half of the white matter is as dark as
# grey. Of variety 0.5: FLAIR -0.23 to 0.17, real ones -0.17 and -0.09; DWI -0.23 to 0.23, real ones -0.14 to 0.14.
LEAST_T1W = -0.05


def common_contrast(names: Iterable[Path | str]) -> str | None:
    """The contrast that all names of scans say; None where some say nothing, another one or several."""
    contrasts = set(map(only_contrast, names))
    return contrasts.pop() if len(contrasts) == 1 else None


def require_contrast(
    names: Iterable[Path | str], learned: str | None, network: Path | str, known: str | None = None
) -> None:
    """Refuse scans of another contrast than a network has learned; None where that is unknown.

    Args:
        known: the contrast of the scans; None for what their names say.
    """
    if known is not None and known not in CONTRASTS:
        raise UserError(f"--contrast {known} is none of {', '.join(CONTRASTS)}; give one of them")
    if learned is None:
        return
    if known not in (None, learned):
        raise UserError(f"{network} was trained on {learned} scans, not on {known}; take a network of {known}")
    for name in names if known is None else ():
        if (named := standard_contrast(contrast_of(name))) not in (None, learned):
            raise UserError(
                f"{name} is of {named} by its name, but {network} was trained on {learned} scans; take a network of "
                f"{named}, or give --contrast {learned} where the name is wrong"
            )


def require_look(
    scan: np.ndarray, brain: np.ndarray, spacing_mm: Sequence[float], path: Path, contrast: str | None
) -> None:
    """Refuse a scan (D, H, W) that is obviously not of a contrast; T1w alone is known by its looks."""
    if contrast == "t1w" and brighter_inside(scan, brain, spacing_mm) < LEAST_T1W:
        raise UserError(
            f"{path} looks like no T1w scan, on which the network was trained: its white matter is darker than its "
            "grey matter; take a network of its contrast, or give --contrast t1w if it is T1w"
        )


def brighter_inside(scan: np.ndarray, brain: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """How much brighter tissue is than its neighbourhood where it lies deeper below fluid and the brain's surface.

    The correlation, from -1 to 1, over what is brighter than fluid: white matter lies deeper than grey. 0 where there
    is too little tissue.
    """
    box, steps = bounding_box(brain), [max(int(COARSE_MM / side), 1) for side in spacing_mm]
    every, sides = tuple(slice(None, None, step) for step in steps), np.multiply(spacing_mm, steps)
    level, brain = ndimage.uniform_filter(scan[box].astype(np.float32), steps)[every], brain[box][every]
    if not brain.any():
        return 0.0
    level -= np.percentile(level[brain], 1)
    tissue = brain & (level > np.median(level[brain]) / 2)
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1), sides)[1:-1, 1:-1, 1:-1].astype(np.float32)
    compared = ndimage.binary_erosion(tissue)  # what borders on fluid is mixed with it
    weight, around, deep = (
        ndimage.gaussian_filter(values * tissue, LOCAL_MM / sides)[compared]
        for values in (np.ones_like(level), level, depth)
    )
    relative, deeper = level[compared] * weight / around, depth[compared] - deep / weight
    known = len(relative) > 1 and relative.std() > 0 and deeper.std() > 0
    return float(np.corrcoef(relative, deeper)[0, 1]) if known else 0.0
