"""Axial slices for stage 1: ``python -m data.slices`` cuts 3D folders into the 2D folders that the RPN reads.

A slice file is ``<scan>_slice-<index>.npy``, (C, H, W) float16 in [0, 1]; its mask (1, H, W) uint8. The index is the
slice's true place in the volume. ``slices.csv`` beside the two folders lists them with their brain and lesion area
and the voxel size in mm of their grid (D H W, where it is known); ``Brains/`` holds the brain mask of each volume,
(D, H, W) bool.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from data.brain import find_brains, with_brains
from data.checks import check_headers, check_voxels, require_binary
from data.cohort import BRAINS, Case, by_identity, identity, pair_cases
from data.fingerprints import PREPARATION, changed_since, fingerprint, fingerprint_cases
from data.grid import Grid, choose_spacing, grid_of, size_text
from data.head import head_mask
from data.listing import choose_files, counted
from data.names import bids_entity, stem_of
from data.nifti import SAME_SIZE
from data.prepared import PreparedScan, check_brains, prepare_scan
from data.volumes import map_npy, refusing
from utils.cli import add_brains, add_cohort, add_grid, add_num_workers, add_spacing, make_parser, run
from utils.errors import UserError
from utils.files import atomic_path, require_writable, write_json
from utils.progress import progress
from utils.provenance import describe_run, read_run

SOURCES_FILE = "sources.json"  # what the slices were cut of, with digests
EIGHT_CONNECTED = np.ones((3, 3), bool)
COLUMNS = ["scan", "mask", "volume", "subject", "slice", "depth", "spacing_mm", "brain_voxels", "lesion_voxels"]


# --- cutting -------------------------------------------------------------------------------------------


def write_slices(prepared: PreparedScan, case: Case, out_dir: Path) -> pd.DataFrame:
    """Write every slice with brain of one scan and return their rows of ``slices.csv``."""
    rows = []
    spacing = " ".join(map(str, prepared.spacing_mm or []))
    _save(brain_path(out_dir / "Scans" / case.name, case.name), prepared.brain)
    for z in np.flatnonzero(prepared.brain.any((1, 2))):
        scan_file = f"{case.stem}_slice-{z:03d}.npy"
        mask_file = f"{stem_of(case.mask)}_slice-{z:03d}.npy"
        _save(out_dir / "Scans" / scan_file, prepared.scan[:, z])
        _save(out_dir / "Masks" / mask_file, prepared.mask[None, z].astype(np.uint8))
        areas = int(prepared.brain[z].sum()), int(prepared.mask[z].sum())
        rows.append([scan_file, mask_file, case.name, case.subject, z, len(prepared.brain), spacing, *areas])
    return pd.DataFrame(rows, columns=COLUMNS)


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def cut_cohort(cases: list[Case], prepare: Callable[[Case], PreparedScan], out_dir: Path) -> pd.DataFrame:
    """Write the slices of all cases and ``slices.csv`` in place of earlier ones; its rows with full paths."""
    _remove_slices(out_dir)
    rows = [write_slices(prepare(case), case, out_dir) for case in progress(cases, "Cutting slices")]
    # Written last: its presence says that all slices are there.
    with atomic_path(out_dir / "slices.csv") as temporary:
        pd.concat(rows, ignore_index=True).to_csv(temporary, index=False)
    return read_slice_table(out_dir / "Scans", out_dir / "Masks")


def _remove_slices(out_dir: Path) -> None:
    """Nothing of an earlier cut stays: a subject that has left the cohort would come back through its slices."""
    old = [*out_dir.glob("Scans/*_slice-*.npy"), *out_dir.glob("Masks/*_slice-*.npy"), *out_dir.glob(f"{BRAINS}/*.npy")]
    for path in (out_dir / "slices.csv", *old):
        path.unlink(missing_ok=True)


def require_own_folder(out_dir: Path) -> None:
    """Refuse to cut into a folder with slices that this program did not cut there."""
    if not (out_dir / SOURCES_FILE).exists() and any(out_dir.glob("Scans/*_slice-*.npy")):
        raise UserError(f"--out_dir {out_dir} holds other slices; choose an empty folder or remove them")


def require_fresh(folder: Path) -> None:
    """Refuse slices that are no longer what ``python -m data.slices`` would cut: of changed scans, or of other code."""
    if not (folder / SOURCES_FILE).exists():
        return
    if not (folder / "slices.csv").exists():
        raise UserError(f"the slices in {folder} were not cut to the end; run python -m data.slices again")
    if read_run(folder).get("inputs") != {"code": PREPARATION}:
        raise UserError(f"the slices in {folder} were cut by another version of StrokeFormer; cut them anew")
    if changed := changed_since(folder / SOURCES_FILE):
        raise UserError(f"{changed[0]} or its mask has changed since its slices were cut into {folder}; cut them anew")


# --- reading -------------------------------------------------------------------------------------------


def read_slice_table(scans_dir: Path | str, masks_dir: Path | str, names=("--scans", "--masks")) -> pd.DataFrame:
    """The slices of two 2D folders as rows of `COLUMNS`, with full paths in ``scan`` and ``mask``.

    Taken from ``slices.csv`` where it lists just these files; otherwise they are paired by their names, and every file
    is read once.
    """
    require_fresh(Path(scans_dir).parent)
    scans, masks = choose_files([scans_dir], [masks_dir], ".npy", names)
    table = _listed_slices(Path(scans_dir).parent / "slices.csv", {p.name for p in scans}, {p.name for p in masks})
    if table is None:
        table = _measure_slices(_pair_slices(scans, masks, names))
    for column, paths in (("scan", scans), ("mask", masks)):
        table[column] = table[column].map({path.name: str(path) for path in paths})
    return table.sort_values(["volume", "slice"], ignore_index=True)


def _pair_slices(scans: list[Path], masks: list[Path], names: tuple[str, str]) -> list[tuple[Path, Path]]:
    scan_of, mask_of = by_identity(scans, names[0], _identity), by_identity(masks, names[1], _identity)
    for key, scan in scan_of.items():
        if key not in mask_of:
            raise UserError(f"{scan} has no mask in {names[1]}; cut both with python -m data.slices")
    return [(scan, mask_of[key]) for key, scan in scan_of.items()]


def _listed_slices(path: Path, scans: set[str], masks: set[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype={"subject": str, "spacing_mm": str}).fillna({"spacing_mm": ""})
    except ValueError:  # pandas' errors of a broken table: the slices are measured anew
        return None
    listed = list(table.columns) == COLUMNS and set(table.scan) == scans and set(table["mask"]) <= masks
    return table if listed else None


def _measure_slices(pairs: list[tuple[Path, Path]]) -> pd.DataFrame:
    rows = []
    for scan, mask in progress(pairs, "Measuring slices", unit="slice"):
        brain = int(np.count_nonzero(head_mask(read_slice(scan)[:1])))
        volume = stem_of(scan).split("_slice-")[0] + ".npy"
        subject, lesion = bids_entity(scan, "sub") or volume, int(np.count_nonzero(read_slice(mask)))
        rows.append([scan.name, mask.name, volume, subject, slice_index(scan), 0, "", brain, lesion])
    table = pd.DataFrame(rows, columns=COLUMNS)
    scans = [scan for scan, _ in pairs]
    brains = {volume: brain_path(scan, volume) for volume, scan in zip(table.volume, scans, strict=True)}
    depths = {volume: len(read_slice(path)) for volume, path in brains.items() if path.is_file()}
    table["depth"] = table.volume.map(depths).fillna(table.groupby("volume").slice.transform("max") + 1).astype(int)
    return table


def brain_path(scan: Path | str, volume: str) -> Path:
    """Where `write_slices` leaves the brain mask of the volume that a scan slice is of."""
    return Path(scan).parent.parent / BRAINS / f"{stem_of(volume)}.npy"


def slice_index(path: Path) -> int:
    index = bids_entity(path, "slice")
    if index is None or not index.isdigit():
        raise UserError(f"{path} does not tell its slice; name it ..._slice-<index>.npy as python -m data.slices does")
    return int(index)


def _identity(path: Path) -> tuple:
    """What a slice is of: its volume's identity and its index."""
    return *identity(path.with_name(f"{stem_of(path).split('_slice-')[0]}.npy")), slice_index(path)


def read_slice(path: Path | str) -> np.ndarray:
    """One slice file, (C, H, W) float32."""
    with refusing(path):
        array = map_npy(path)
        if array.ndim != 3:
            raise UserError(f"{path} has shape {array.shape}; a slice is (C, H, W)")
        return np.array(array, np.float32)


def check_slices(table: pd.DataFrame, resize_to: tuple[int, int] | None = None) -> None:
    """Refuse broken slices before any long work.

    Args:
        table: rows of `COLUMNS` with full paths.
        resize_to: of ``--resize_to``; without it all slices must have one shape.
    """
    first = read_slice(table.scan.iloc[0]).shape
    for row in progress(table.itertuples(), "Checking slices", len(table), unit="slice"):
        scan, mask = read_slice(row.scan), read_slice(row.mask)
        if len(scan) != first[0]:
            raise UserError(f"{row.scan} has {len(scan)} channels, others {first[0]}; cut the slices anew")
        if resize_to is None and scan.shape != first:
            raise UserError(f"{row.scan} has shape {scan.shape}, others {first}; cut all on one grid")
        if mask.shape != (1, *scan.shape[1:]):
            raise UserError(f"{row.mask} has shape {mask.shape} but its scan {scan.shape}; cut both anew")
        if not np.isfinite(scan).all():
            raise UserError(f"{row.scan} holds NaN or infinite pixels; cut the slices anew")
        require_binary(mask, row.mask)


def fingerprint_slices(sides: dict[str, pd.DataFrame], store: Path) -> dict[str, str]:
    """The digest of all slices of each volume, scan and mask, by side and volume, as in `models.runs.inputs_of`.

    Args:
        sides: for ``train`` and ``val`` the rows of `COLUMNS` with full paths.
        store: as for `data.fingerprints.fingerprint`.
    """
    groups = {
        f"{side} {volume}": [Path(path) for path in (*rows.scan, *rows["mask"])]
        for side, table in sides.items()
        for volume, rows in table.groupby("volume")
    }
    return fingerprint(groups, store)


def grid_of_slices(table: pd.DataFrame) -> Grid:
    """The grid that slices were cut on; its voxel size is known where they all tell the same.

    Args:
        table: rows of `COLUMNS` with full paths.
    """
    channels, h, w = read_slice(table.scan.iloc[0]).shape
    sizes = set(table.spacing_mm)
    spacing_mm = tuple(map(float, sizes.pop().split())) if len(sizes) == 1 else ()
    return Grid((channels, int(table.depth.max()), h, w), spacing_mm=spacing_mm or None)


def require_one_size(train: pd.DataFrame, val: pd.DataFrame) -> None:
    """Refuse slices for training and validation of two voxel sizes, where both are known."""
    one, other = grid_of_slices(train).spacing_mm, grid_of_slices(val).spacing_mm
    if one and other and not np.allclose(one, other, rtol=SAME_SIZE):
        sizes = f"{size_text(one)} mm and {size_text(other)} mm"
        raise UserError(f"--train_scans and --val_scans have voxels of {sizes}; cut both with one --spacing")


def channels_of(table: pd.DataFrame) -> int:
    return len(read_slice(table.scan.iloc[0]))


def lesion_boxes(mask: np.ndarray) -> np.ndarray:
    """Boxes around the 8-connected lesions of a slice.

    Args:
        mask: (H, W) bool.

    Returns:
        (N, 4) float32, (xmin, ymin, xmax, ymax) in voxels, half-open, x along W and y along H.
    """
    labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
    found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(found, np.float32).reshape(-1, 4)


# --- command -------------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = make_parser("Cut 3D scans and masks into the 2D folders that the RPN scripts read.")
    add_cohort(parser)
    add_brains(parser)
    add_grid(parser)
    add_spacing(parser)
    add_num_workers(parser)
    parser.add_argument("--out_dir", required=True, help="folder for Scans/, Masks/ and slices.csv")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    cases = pair_cases([args.scans_dir], [args.masks_dir], args.ext, ("--scans_dir", "--masks_dir"))
    cases = with_brains(cases, args.brains_dir)
    check_headers(cases, args.scan_dim, args.resize_to)
    args.spacing = choose_spacing(cases, args.spacing, args.resize_to)
    require_writable(args.out_dir, "--out_dir")
    out_dir = Path(args.out_dir)
    require_own_folder(out_dir)
    check_voxels(cases)
    brains, grid = out_dir / "cache", grid_of(args)
    find_brains(cases, brains, args.num_workers)
    check_brains(cases, grid, brains)
    (out_dir / "slices.csv").unlink(missing_ok=True)  # first: an earlier cut must not pass for one of these scans
    fingerprint_cases(cases, out_dir / SOURCES_FILE)
    write_json(out_dir / "run.json", {**describe_run(vars(args)), "inputs": {"code": PREPARATION}})
    table = cut_cohort(cases, partial(prepare_scan, grid=grid, brains=brains), out_dir)
    print(f"Cut into {args.out_dir}: {counted(len(table), 'slice')} of {counted(len(cases), 'scan')}")


if __name__ == "__main__":
    run(main, parse_args)
