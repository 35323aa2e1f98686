"""Checks of a cohort's headers and voxels before any work, and reading of scans and masks that refuses bad ones."""

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.cohort import Case
from data.space import Space
from data.volumes import head_mask, read_header, read_volume
from utils.errors import UserError

# A mask of another space or orientation may still touch the head; one that belongs to it hardly leaves it.
LEAST_SHARE_IN_HEAD = 0.5


def read_spacing(case: Case) -> tuple[float, float, float] | None:
    """(D, H, W) spacing in mm of a ``.npy`` scan from the ``cohort.csv`` beside its folder; None if untold."""
    table = case.scan.parent.parent / "cohort.csv"
    if not table.is_file():
        return None
    try:
        rows = pd.read_csv(table, dtype=str)
        if not {"scan", "spacing_mm"} <= set(rows.columns) or case.name not in set(rows.scan):
            return None
        h, w, d = (float(size) for size in rows.set_index("scan").spacing_mm[case.name].split())
    except (ValueError, AttributeError, OSError):
        raise UserError(f"{table} gives no three numbers H W D as spacing_mm of {case.name}; mend it") from None
    return d, h, w


def read_scan(case: Case) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """A case's scan, (C, D, H, W) float32 in raw units and finite, and its spacing in mm or None."""
    volume = read_volume(case.scan)
    if not np.isfinite(volume.array).all():
        raise UserError(f"{case.scan} holds NaN or infinite voxels; mend or remove the scan")
    if volume.array.min() == volume.array.max():
        raise UserError(f"{case.scan} is constant; mend or remove the scan")
    return volume.array, volume.spacing_mm or read_spacing(case)


def read_mask(case: Case) -> np.ndarray:
    """A case's lesion mask, (D, H, W) bool."""
    mask = read_volume(case.mask).array[0]
    if not np.isin(np.unique(mask), (0, 1)).all():
        raise UserError(f"{case.mask} is not binary; a lesion mask holds 0 and 1 alone")
    return mask.astype(bool)


def check_headers(cases: list[Case], scan_dim: tuple[int, ...], resize_to: tuple[int, int] | None) -> None:
    """Refuse files whose headers say that they are broken or do not fit together; no voxel is read.

    Args:
        scan_dim: (C, D, H, W) of ``--scan_dim``.
        resize_to: of ``--resize_to``; without it all scans must have one shape.
    """
    first = read_header(cases[0].scan).shape
    for case in tqdm(cases, "Checking headers", unit="scan", leave=False):
        channels, *shape = read_header(case.scan).shape
        if channels != scan_dim[0]:
            raise UserError(f"{case.scan} has {channels} channels; --scan_dim says {scan_dim[0]}")
        if resize_to is None and tuple(shape) != first[1:]:
            raise UserError(
                f"{case.scan} has shape {tuple(shape)} (D, H, W) but {cases[0].scan} {first[1:]}; "
                "bring them to one grid with python -m data.prepare, or give --resize_to"
            )
        if case.mask is not None:
            check_alignment(case)


def check_alignment(case: Case) -> None:
    """Refuse a mask that does not lie on the voxels of its scan."""
    scan, mask = read_header(case.scan), read_header(case.mask)
    if mask.shape[0] != 1:
        raise UserError(f"{case.mask} has {mask.shape[0]} channels; a lesion mask has one")
    if mask.shape[1:] != scan.shape[1:]:
        raise UserError(
            f"{case.mask} has shape {mask.shape[1:]} (D, H, W) but its scan {scan.shape[1:]}; "
            "resample one onto the other"
        )
    if scan.affine is None or mask.affine is None:
        return
    if not Space(scan.shape[1:], scan.affine).is_close(Space(mask.shape[1:], mask.affine)):
        raise UserError(f"{case.mask} lies elsewhere than its scan (the affines differ); resample one onto the other")


def check_voxels(cases: list[Case]) -> None:
    """Refuse scans and masks with impossible voxels, and masks outside the head, before any long work."""
    for case in tqdm(cases, "Checking voxels", unit="scan", leave=False):
        scan, _ = read_scan(case)
        head = find_head(scan, case)
        if case.mask is not None:
            require_mask_in_head(read_mask(case), head, case)


def find_head(scan: np.ndarray, case: Case) -> np.ndarray:
    """`head_mask` of a case's scan (C, D, H, W); refuses a scan without a head."""
    head = head_mask(scan[0])
    if not head.any():
        raise UserError(f"{case.scan} shows no head; mend or remove the scan")
    return head


def require_mask_in_head(mask: np.ndarray, head: np.ndarray, case: Case) -> None:
    """Refuse a (D, H, W) lesion mask of which less than `LEAST_SHARE_IN_HEAD` lies in the (D, H, W) head."""
    if (mask & head).sum() < LEAST_SHARE_IN_HEAD * mask.sum():
        raise UserError(f"{case.mask} lies outside the head of {case.scan}; bring both into the same orientation")
