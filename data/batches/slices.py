"""Axial slices for stage 1, as ``python -m data.slices`` cuts them (`data.batches.cutting`): checked and read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.batches.cutting import COLUMNS, boxes_text, brain_path, lesion_boxes
from data.files.listing import choose_files
from data.files.names import bids_entity, stem_of
from data.files.nifti import SAME_SIZE
from data.files.space import Spacing
from data.files.volumes import map_npy, refusing
from data.scans.checks import require_binary
from data.scans.cohort import by_identity, identity
from data.scans.fingerprints import PREPARATION_VERSION, changed_since, content_digest, fingerprint
from data.scans.grid import Grid, size_text
from data.scans.head import head_mask
from utils.errors import UserError
from utils.progress import map_in_order, progress
from utils.provenance import read_run

SOURCES_FILE = "sources.json"  # the scans that the slices were cut of, with digests
CHECKING = "Checking slices"


def require_own_folder(out_dir: Path) -> None:
    """Refuse to cut into a folder with slices that this program did not cut there."""
    if not (out_dir / SOURCES_FILE).exists() and any(out_dir.glob("Scans/*_slice-*.npy")):
        raise UserError(f"--out_dir {out_dir} holds other slices; choose an empty folder or remove them")


def require_fresh(folder: Path) -> None:
    """Refuse slices of scans that have changed, or of another version of the preparation."""
    if not (folder / SOURCES_FILE).exists():
        return
    if not (folder / "slices.csv").exists():
        raise UserError(f"the slices in {folder} were not cut to the end; run python -m data.slices again")
    if read_run(folder).get("inputs") != {"preparation": PREPARATION_VERSION}:
        raise UserError(f"the slices in {folder} were cut by another version of StrokeFormer; cut them anew")
    if changed := changed_since(folder / SOURCES_FILE):
        raise UserError(f"{changed[0]} or its mask has changed since its slices were cut into {folder}; cut them anew")


def read_slice_table(
    scans_dir: Path | str, masks_dir: Path | str, names: tuple[str, str] = ("--scans", "--masks")
) -> pd.DataFrame:
    """The table of the slices in two 2D folders.

    Taken from ``slices.csv`` where it lists just these files; otherwise they are paired by their names, and every file
    is read once.
    """
    require_fresh(Path(scans_dir).parent)
    scans, masks = choose_files([scans_dir], [masks_dir], ".npy", names)
    masks = masks or []
    table = _listed_slices(Path(scans_dir).parent / "slices.csv", {p.name for p in scans}, {p.name for p in masks})
    if table is None:
        table = _measure_slices(scans, masks, names)
    for column, paths in (("scan", scans), ("mask", masks)):
        table[column] = table[column].map({path.name: str(path) for path in paths})
    return table.sort_values(["volume", "slice"], ignore_index=True)


def _listed_slices(path: Path, scans: set[str], masks: set[str]) -> pd.DataFrame | None:
    try:
        table = pd.read_csv(path, dtype={"subject": str, "spacing_mm": str, "boxes": str})
    except (FileNotFoundError, ValueError):  # pandas' errors of a broken table: the slices are measured anew
        return None
    listed = list(table.columns) == COLUMNS and set(table.scan) == scans and set(table["mask"]) <= masks
    return table.fillna({"spacing_mm": "", "boxes": ""}) if listed else None


def _measure_slices(scans: list[Path], masks: list[Path], names: tuple[str, str]) -> pd.DataFrame:
    scan_of, mask_of = by_identity(scans, names[0], _identity), by_identity(masks, names[1], _identity)
    if missing := [scan for key, scan in scan_of.items() if key not in mask_of]:
        raise UserError(f"{missing[0]} has no mask in {names[1]}; cut both with python -m data.slices")
    rows, brains = [], {}
    for key, scan in progress(scan_of.items(), "Measuring slices", unit="slice"):
        mask, volume = mask_of[key], _volume_of(scan)
        brains[volume] = brain_path(scan, volume)
        brain = int(np.count_nonzero(head_mask(read_slice(scan)[:1])))
        subject, lesion = bids_entity(scan, "sub") or volume, read_slice(mask)[0] > 0
        measures = brain, int(np.count_nonzero(lesion)), boxes_text(lesion_boxes(lesion))
        rows.append([scan.name, mask.name, volume, subject, key[-1], 0, "", *measures])
    table = pd.DataFrame(rows, columns=COLUMNS)
    depths = {volume: len(read_slice(path)) for volume, path in brains.items() if path.is_file()}
    table["depth"] = table.volume.map(depths).fillna(table.groupby("volume").slice.transform("max") + 1).astype(int)
    return table


def _volume_of(path: Path) -> str:
    return stem_of(path).split("_slice-")[0] + ".npy"


def _identity(path: Path) -> tuple:
    """The identity of a slice: its volume's, and its index."""
    index = bids_entity(path, "slice")
    if index is None or not index.isdigit():
        raise UserError(f"{path} has no slice index; name it ..._slice-<index>.npy as python -m data.slices does")
    return *identity(path.with_name(_volume_of(path))), int(index)


def read_slice(path: Path | str) -> np.ndarray:
    """One slice file, (C, H, W) float32."""
    with refusing(path):
        array = map_npy(path)
        if array.ndim != 3:
            raise UserError(f"{path} has shape {array.shape}; a slice is (C, H, W)")
        return np.array(array, np.float32)


def check_slices(table: pd.DataFrame, resize_to: tuple[int, int] | None = None, num_workers: int = 0) -> None:
    """Refuse broken slices before any long work; with `resize_to` volumes may differ in shape."""
    _require_one_shape(table, resize_to)
    list(map_in_order(_check_volume, list(_files_of(table).values()), num_workers, CHECKING, "volume"))


def admit_slices(sides: dict[str, pd.DataFrame], store: Path, num_workers: int = 0) -> dict[str, str]:
    """The digests of the slices of each volume of ``train`` and ``val``; refuses broken ones. `store` (`fingerprint`)
    says which need not be read again.
    """
    _require_one_shape(pd.concat(sides.values()))
    groups = {f"{side} {name}": files for side, table in sides.items() for name, files in _files_of(table).items()}
    return fingerprint(groups, store, num_workers, _check_volume, CHECKING)


def _files_of(table: pd.DataFrame) -> dict[str, list[Path]]:
    """The scans and then the masks of each volume."""
    return {str(name): [Path(path) for path in (*rows.scan, *rows["mask"])] for name, rows in table.groupby("volume")}


def _require_one_shape(table: pd.DataFrame, resize_to: tuple[int, int] | None = None) -> None:
    """Refuse volumes of several shapes or numbers of channels, by their first slices."""
    first = read_slice(table.scan.iloc[0]).shape
    for path in table.groupby("volume").scan.first():
        _require_shape(path, read_slice(path).shape, first, resize_to)


def _require_shape(path: Path | str, shape: tuple, first: tuple, resize_to: tuple[int, int] | None = None) -> None:
    if shape[0] != first[0]:
        raise UserError(f"{path} has {shape[0]} channels, others {first[0]}; cut the slices anew")
    if resize_to is None and shape != first:
        raise UserError(f"{path} has shape {shape}, others {first}; cut all on one grid")


def _check_volume(files: Sequence[Path]) -> str:
    """The digest of a volume's slices, scans and then their masks; refuses broken ones."""
    scans, masks = files[: len(files) // 2], files[len(files) // 2 :]
    first = read_slice(scans[0]).shape
    for scan_path, mask_path in zip(scans, masks, strict=True):
        scan, mask = read_slice(scan_path), read_slice(mask_path)
        _require_shape(scan_path, scan.shape, first)
        if mask.shape != (1, *scan.shape[1:]):
            raise UserError(f"{mask_path} has shape {mask.shape} but its scan {scan.shape}; cut both anew")
        if not np.isfinite(scan).all():
            raise UserError(f"{scan_path} holds NaN or infinite pixels; cut the slices anew")
        require_binary(mask, mask_path)
    return content_digest(files)


def grid_of_slices(table: pd.DataFrame) -> Grid:
    """The grid that slices were cut on; its voxel size is known where it is one and the same for all."""
    channels, h, w = read_slice(table.scan.iloc[0]).shape
    sizes = set(table.spacing_mm)
    spacing_mm = parse_spacing(sizes.pop()) if len(sizes) == 1 else None
    return Grid((channels, int(table.depth.max()), h, w), spacing_mm=spacing_mm)


def parse_spacing(text: str) -> Spacing | None:
    """(D, H, W) in mm of the column ``spacing_mm``; None where it is empty."""
    if not text:
        return None
    d, h, w = map(float, text.split())
    return d, h, w


def require_one_size(train: pd.DataFrame, val: pd.DataFrame) -> None:
    """Refuse slices for training and validation of two voxel sizes, where both are known."""
    one, other = grid_of_slices(train).spacing_mm, grid_of_slices(val).spacing_mm
    if one and other and not np.allclose(one, other, rtol=SAME_SIZE):
        sizes = f"{size_text(one)} mm and {size_text(other)} mm"
        raise UserError(f"--train_scans and --val_scans have voxels of {sizes}; cut both with one --spacing")
