"""Where a training gets whole scans and their slices from: prepared scans, or slices that were cut into files."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from data.batches.cutting import MEASURES, brain_path, measure_slices
from data.batches.slices import grid_of_slices, parse_spacing, read_slice
from data.batches.workers import require_room
from data.files.nifti import affine_of
from data.files.space import Space, resample, resized_space, space_from_json
from data.scans.cohort import Case
from data.scans.grid import UNKNOWN_MM
from data.scans.head import head_mask
from data.scans.open import Cohort
from data.scans.prepared import PreparedScan, map_part, prepared_key
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.progress import map_in_order


class SliceFiles:
    """Slices that `data.batches.cutting` cut into files; `table` is that of `read_slice_table`."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table, self.grid = table, grid_of_slices(table)
        self.files = list(zip(table.scan, table["mask"], strict=True))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image (C, H, W) float32 in [0, 1] and the lesions (H, W) bool of a row of the table."""
        scan, mask = self.files[index]
        return read_slice(scan), read_slice(mask)[0] > 0

    def scans(self, num_workers: int) -> DataLoader:
        """The whole scans, in the order of the table."""
        return stacked_scans(self.table, num_workers)


class ScanSlices:
    """The slices with brain of scans that are kept prepared, read from there; as `SliceFiles` otherwise."""

    def __init__(self, cases: Sequence[Case], cohort: Cohort, num_workers: int = 0) -> None:
        self.cases, self.prepare, self.grid = sorted(cases, key=lambda case: case.name), cohort.prepare, cohort.grid
        listings = [listing_of(case, cohort) for case in self.cases]
        # Of the others alone: processes take seconds to start, and at a resume there is nothing left to list.
        unlisted = [case for case, path in zip(self.cases, listings, strict=True) if not path.exists()]
        deque(map_in_order(partial(_list_slices, cohort=cohort), unlisted, num_workers, "Listing slices"), maxlen=0)
        of_cases = [(path.parent, read_json(path)) for path in listings]
        rows = [[case.name, *row] for case, (_, own) in zip(self.cases, of_cases, strict=True) for row in own]
        self.table = pd.DataFrame(rows, columns=["volume", *MEASURES])
        self.places = [(folder, z) for folder, own in of_cases for z, *_ in own]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        folder, z = self.places[index]  # all that a slice does not need would take as long to open
        return map_part(folder, "scan")[:, z].astype(np.float32), np.array(map_part(folder, "mask")[z])

    def scans(self, num_workers: int) -> DataLoader:
        return scan_loader(self.cases, self.prepare, num_workers)


def listing_of(case: Case, cohort: Cohort) -> Path:
    """Where the `measure_slices` of a prepared scan are kept, for other folds and for a resume."""
    assert cohort.cache_dir is not None
    return cohort.cache_dir / prepared_key(case, cohort.grid) / "slices.json"


def _list_slices(case: Case, cohort: Cohort) -> None:
    write_json(listing_of(case, cohort), measure_slices(cohort.prepare(case)))


Slices = SliceFiles | ScanSlices


def scan_loader(cases: Sequence, prepare: Callable[..., PreparedScan], num_workers: int = 0) -> DataLoader:
    """A loader of ``prepare(case)`` for each case, made ahead by `num_workers` processes."""
    require_room(num_workers)
    # Without a batch size the collate function gets the items one by one, in the workers.
    return DataLoader(cases, batch_size=None, num_workers=num_workers, collate_fn=prepare)  # type: ignore[arg-type]


def stacked_scans(table: pd.DataFrame, num_workers: int = 0, resize_to: tuple[int, int] | None = None) -> DataLoader:
    """A loader of volumes put back together from a table of slices, at their true depth; those without brain are air.

    The brain comes from ``Brains/`` beside the folder of the slices or, without that, is all that is not air.
    `resize_to` is an in-plane (H, W) that slices are resampled to.
    """
    volumes = list(table.groupby("volume", sort=True))
    return scan_loader(volumes, partial(_stack_volume, resize_to=resize_to), num_workers)


def _stack_volume(volume: tuple[str, pd.DataFrame], resize_to: tuple[int, int] | None) -> PreparedScan:
    name, rows = volume
    scan = _stack(rows.scan, rows.slice, rows.depth.iloc[0], name)
    mask = _stack(rows["mask"], rows.slice, rows.depth.iloc[0], name)[0] > 0
    path = brain_path(rows.scan.iloc[0], name)
    brain = read_slice(path) > 0 if path.is_file() else head_mask(scan[0])
    if brain.shape != mask.shape:
        raise UserError(f"{path} has shape {brain.shape}, its slices make {mask.shape}; cut the slices anew")
    spacing_mm = parse_spacing(rows.spacing_mm.iloc[0])
    own = space = Space(mask.shape, affine_of(spacing_mm or UNKNOWN_MM))
    if is_placed := (place := path.with_suffix(".json")).is_file():
        own = space = space_from_json(read_json(place))
    if resize_to:
        space = resized_space(own, (len(mask) - 1) / 2, len(mask), resize_to)
        scan = resample(scan, own, space, outside=[0.0] * len(scan))
        mask, brain = (resample(m[None], own, space)[0] for m in (mask, brain))
    subject = rows.subject.iloc[0]
    arrays, known = (scan.astype(np.float16), brain, mask), spacing_mm is not None
    return PreparedScan(name, subject, *arrays, space, own, known, place_known=is_placed)


def _stack(paths: pd.Series, slices: pd.Series, depth: int, volume: str) -> np.ndarray:
    """(C, D, H, W) float32 of slice files."""
    arrays = [read_slice(path) for path in paths]
    if len(shapes := {a.shape for a in arrays}) > 1:
        raise UserError(f"the slices of {volume} have shapes {sorted(shapes)}; cut them anew")
    c, h, w = arrays[0].shape
    stack = np.zeros((c, depth, h, w), np.float32)
    stack[:, slices] = np.stack(arrays, 1)
    return stack
