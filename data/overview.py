"""What a cohort holds: a row of numbers for each scan, and a page of pictures for all."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from data.records import read_record, record_path
from data.space import Space, resample
from data.volumes import head_mask, normalise, read_volume
from utils.metrics import MM3_PER_CM3, TWENTY_SIX_CONNECTED, size_bin
from utils.plots import save_figure
from utils.plots_cohort import plot_cohort

ONE_SIDED = 0.9  # share of the lesion voxels on one side from which on a lesion is left or right
TILES = 32  # scans on the contact sheet
MAP_RESOLUTION_MM = 2


def describe_scan(mask: np.ndarray, head: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict:
    """Shape, spacing and lesions of a scan, as columns of ``cohort.csv``.

    Args:
        mask, head: (D, H, W) bool.
        spacing_mm: along (D, H, W).

    Returns:
        ``shape`` and ``spacing_mm`` as "H W D", ``lesion_voxels``, ``lesion_cm3``, ``n_lesions`` (26-connected),
        ``size`` (bin of the lesions' share of the head, by the bounds of the slices' bins) and ``laterality``
        ("left", "right", "both", or empty without lesion).
    """
    lesion, brain = int(np.count_nonzero(mask)), int(np.count_nonzero(head))
    return {
        "shape": " ".join(map(str, np.roll(mask.shape, -1))),
        "spacing_mm": " ".join(str(round(float(size), 6)) for size in np.roll(spacing_mm, -1)),
        "lesion_voxels": lesion,
        "lesion_cm3": round(lesion * math.prod(spacing_mm) / MM3_PER_CM3, 4),
        "n_lesions": ndimage.label(mask, TWENTY_SIX_CONNECTED)[1],
        "size": str(size_bin(lesion, brain)),
        "laterality": laterality(mask, head),
    }


def laterality(mask: np.ndarray, head: np.ndarray) -> str:
    """The side, in (D, H, W) with H from left to right, that holds the lesion; "" where there is none."""
    across = np.flatnonzero(head.any((0, 2)))
    if not mask.any() or not len(across):
        return ""
    middle = (across[0] + across[-1] + 1) // 2
    left = np.count_nonzero(mask[:, :middle]) / np.count_nonzero(mask)
    return "left" if left >= ONE_SIDED else "right" if left <= 1 - ONE_SIDED else "both"


# --- pictures ------------------------------------------------------------------------------------------


def draw_overview(table: pd.DataFrame, out_dir: Path, in_mni: bool) -> None:
    """Write ``cohort.png``: lesion sizes, where lesions lie on the MNI152 template, and a contact sheet of scans."""
    template, frequency = lesion_frequency(table, out_dir, in_mni)
    figure = plot_cohort(table, template, frequency, _tiles(table, out_dir), registered=in_mni)
    save_figure(figure, out_dir / "cohort.png")


def lesion_frequency(table: pd.DataFrame, out_dir: Path, in_mni: bool) -> tuple[np.ndarray, np.ndarray]:
    """The MNI152 template, (D, H, W) in [0, 1], and on it the share of the scans with a lesion at each voxel.

    Scans that are not `in_mni` are laid on the template by the centre of their grid, where their brain is.
    """
    template, space = _template()
    count = np.zeros(space.shape, np.float32)
    for row in tqdm(table.itertuples(), "Mapping lesions", len(table), unit="scan", leave=False):
        if row.lesion_voxels:
            own = read_record(record_path(row.scan, out_dir)).space
            count += resample(_mask_of(row, out_dir)[None], own if in_mni else _about(own, space), space)[0]
    return template, count / len(table)


def _template() -> tuple[np.ndarray, Space]:
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=MAP_RESOLUTION_MM)
    array = np.asarray(image.dataobj, np.float32).transpose(2, 0, 1)
    return array / array.max(), Space(array.shape, image.affine)


def _about(own: Space, other: Space) -> Space:
    """The grid moved so that its middle lies on the middle of another's."""
    middle_of = [s.affine @ [*(np.roll(s.shape, -1) - 1) / 2, 1] for s in (own, other)]
    moved = own.affine.copy()
    moved[:3, 3] += (middle_of[1] - middle_of[0])[:3]
    return Space(own.shape, moved)


def _tiles(table: pd.DataFrame, out_dir: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Up to `TILES` scans, from the smallest lesion to the largest, each by the slice with most lesion:
    caption, slice (H, W) in [0, 1] and mask (H, W)."""
    ordered = table.sort_values("lesion_cm3", kind="stable")
    chosen = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, min(TILES, len(ordered))).astype(int))]
    tiles = []
    for row in chosen.itertuples():
        scan = read_volume(out_dir / "Scans" / row.scan).array
        mask, head = _mask_of(row, out_dir), head_mask(scan[0])
        z = int((mask if mask.any() else head).sum((1, 2)).argmax())
        tiles.append((f"{row.subject}  {row.lesion_cm3:.3g} cm³", normalise(scan, head)[0, z], mask[z]))
    return tiles


def _mask_of(row, out_dir: Path) -> np.ndarray:
    return read_volume(out_dir / "Masks" / row.mask).array[0] > 0
