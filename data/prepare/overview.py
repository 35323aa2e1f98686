"""Overview of a cohort: a row of numbers for each scan, and a page of pictures for all."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from data.files.space import Space, Spacing, places_in
from data.files.volumes import read_volume
from data.prepare.records import read_record, record_path
from data.scans.head import normalise
from utils.plots import save_figure
from utils.plots_cohort import plot_cohort
from utils.progress import progress
from utils.scores.components import lesion_load
from utils.scores.metrics import size_bin

ONE_SIDED = 0.9  # share of the lesion voxels on one side from which on a lesion is left or right
TILES = 32  # scans on the contact sheet
MAP_RESOLUTION_MM = 2


def describe_scan(mask: np.ndarray, brain: np.ndarray, spacing_mm: Spacing) -> dict:
    """Shape, spacing and lesions of a scan, from (D, H, W) bool masks, as columns of ``cohort.csv``.

    ``shape`` and ``spacing_mm`` are "H W D", ``n_lesions`` counts 26-connected ones, and ``size`` is the bin of the
    lesions' share of the brain, by the bounds of the slices' bins.
    """
    lesion_voxels, (n_lesions, cm3) = int(np.count_nonzero(mask)), lesion_load(mask, spacing_mm)
    return {
        "shape": " ".join(map(str, np.roll(mask.shape, -1))),
        "spacing_mm": " ".join(str(round(float(size), 6)) for size in np.roll(spacing_mm, -1)),
        "lesion_voxels": lesion_voxels,
        "lesion_cm3": round(cm3, 4),
        "n_lesions": n_lesions,
        "size": str(size_bin(lesion_voxels, int(np.count_nonzero(brain)))),
        "laterality": laterality(mask, brain),
    }


def laterality(mask: np.ndarray, brain: np.ndarray) -> str:
    """The side, along H, that holds the lesion; "" where there is none."""
    across = np.flatnonzero(brain.any((0, 2)))
    if not mask.any() or not len(across):
        return ""
    middle = (across[0] + across[-1] + 1) // 2
    left = np.count_nonzero(mask[:, :middle]) / np.count_nonzero(mask)
    return "left" if left >= ONE_SIDED else "right" if left <= 1 - ONE_SIDED else "both"


def draw_overview(table: pd.DataFrame, out_dir: Path, in_mni: bool) -> None:
    """Write ``cohort.png``: lesion sizes, where lesions lie on the MNI152 template, and a contact sheet of scans."""
    figure = plot_cohort(table, *_lesion_frequency(table, out_dir, in_mni), _tiles(table, out_dir), registered=in_mni)
    save_figure(figure, out_dir / "cohort.png")


def _lesion_frequency(table: pd.DataFrame, out_dir: Path, in_mni: bool) -> tuple[np.ndarray, np.ndarray]:
    """The MNI152 template, (D, H, W) in [0, 1], and on it the share of the scans with a lesion at each voxel.

    Without `in_mni` scans are laid on the template by the middle of their grid, where their brain is.
    """
    from nilearn.datasets import load_mni152_template

    spaces = {scan: read_record(record_path(scan, out_dir)).space for scan in table.scan}
    # No finer than the scans, or their lesions would have holes.
    coarsest = math.ceil(max([MAP_RESOLUTION_MM, *(size for space in spaces.values() for size in space.spacing_mm)]))
    image = load_mni152_template(resolution=coarsest)
    template = np.asarray(image.dataobj, np.float32).transpose(2, 0, 1)
    d, h, w = template.shape
    target, count = Space((d, h, w), image.affine), np.zeros(template.shape)
    for scan, mask in progress(zip(table.scan, table["mask"], strict=True), "Mapping lesions", len(table)):
        own = spaces[scan] if in_mni else _about(spaces[scan], target)
        places = np.round(places_in(target, np.argwhere(_read_mask(out_dir, mask)), own)).astype(int)
        lesion = np.zeros(target.shape, bool)  # voxels in which a voxel of the mask has its centre
        lesion[tuple(places[((places >= 0) & (places < target.shape)).all(1)].T)] = True
        count += lesion
    return template / template.max(), count / len(table)


def _about(own: Space, other: Space) -> Space:
    """The grid moved so that its middle lies on the middle of another's."""
    own_middle, middle = (s.affine @ [*(np.roll(s.shape, -1) - 1) / 2, 1] for s in (own, other))
    moved = own.affine.copy()
    moved[:3, 3] += (middle - own_middle)[:3]
    return Space(own.shape, moved)


def _tiles(table: pd.DataFrame, out_dir: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Up to `TILES` scans, from the smallest lesion to the largest, each by the slice with most lesion:
    caption, slice (H, W) in [0, 1] and mask (H, W)."""
    ordered = table.sort_values("lesion_cm3", kind="stable")
    chosen = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, min(TILES, len(ordered))).astype(int))]
    tiles = []
    columns = (chosen[name] for name in ("scan", "mask", "subject", "lesion_cm3"))
    for scan_name, mask_name, subject, size_cm3 in zip(*columns, strict=True):
        scan, mask = read_volume(out_dir / "Scans" / scan_name).array, _read_mask(out_dir, mask_name)
        z = int(mask.sum((1, 2)).argmax()) if mask.any() else len(mask) // 2
        image = normalise(scan[:, z : z + 1], np.ones((1, *scan.shape[2:]), bool))[0, 0]
        # The mask's slice is copied, or the page would keep every volume in memory.
        tiles.append((f"{subject}  {size_cm3:.3g} cm³", image, mask[z].copy()))
    return tiles


def _read_mask(out_dir: Path, name: str) -> np.ndarray:
    return read_volume(out_dir / "Masks" / name).array[0] > 0
