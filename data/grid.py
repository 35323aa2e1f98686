"""The fixed grid that the networks see, and scans brought onto it.

A prepared scan is normalised, placed on the grid and kept as memory-mapped files, so that an epoch reads only the
voxels it needs and no cohort has to fit into memory.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.checks import read_mask, read_scan, spacing_table
from data.cohort import Case
from data.fingerprints import code_digest, stamp_of
from data.head import head_mask, normalise
from data.space import fit
from utils.files import atomic_path, read_json, write_json

# What another version of this code has prepared is not taken for what this one would.
PREPARATION = code_digest("data")


def resize_in_plane(array: np.ndarray, size: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Resample (..., H, W) to `size` in plane, linearly (antialiased when shrinking) or to the nearest voxel."""
    import torch
    from torch.nn import functional

    if array.shape[-2:] == tuple(size):
        return array
    stack = torch.from_numpy(np.ascontiguousarray(array, np.float32)).flatten(0, -3)[:, None]
    mode = {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "antialias": True}
    resized = functional.interpolate(stack, size=tuple(size), **mode)
    return resized.numpy().reshape(*array.shape[:-2], *size).astype(array.dtype)


@dataclass(frozen=True)
class Grid:
    """The grid that the networks see.

    scan_dim: (C, D, H, W) that scans are centre-cropped or padded to.
    resize_to: (H, W) that whole slices are resampled to instead, so that scans of different sizes become one.
    """

    scan_dim: tuple[int, int, int, int]
    resize_to: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of everything on this grid, regions included."""
        _, d, h, w = self.scan_dim
        return (d, *(self.resize_to or (h, w)))

    @property
    def bytes_per_scan(self) -> int:
        """What a `PreparedScan` takes: float16 scan, head and mask."""
        return (2 * self.scan_dim[0] + 2) * math.prod(self.shape)

    def place(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        """Bring a (..., D, H, W) array of a scan's own grid onto this one."""
        if self.resize_to:
            array = resize_in_plane(array, self.resize_to, nearest)
        return fit(array, self.shape)

    def restore(self, array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Bring a (..., D, H, W) array of this grid back to a scan's own `shape` (D, H, W)."""
        if self.resize_to:
            array = resize_in_plane(array, shape[1:])
        return fit(array, shape)


def grid_of(args) -> Grid:
    """The grid that ``--scan_dim`` and ``--resize_to`` ask for."""
    return Grid(tuple(args.scan_dim), args.resize_to and tuple(args.resize_to))


def cropped_to(args) -> tuple[int, int, int] | None:
    """The (D, H, W) that scans are cropped to about their centre; None where ``--resize_to`` resamples whole slices."""
    return None if args.resize_to else grid_of(args).shape


@dataclass(frozen=True)
class PreparedScan:
    """A scan on the networks' grid.

    scan: (C, D, H, W) float16 in [0, 1].
    head: (D, H, W) bool.
    mask: (D, H, W) bool lesion mask, or None.
    spacing_mm: (D, H, W) voxel size of the scan's own grid, or None.
    own_shape: (D, H, W) of the scan's own grid.
    """

    name: str
    subject: str
    scan: np.ndarray
    head: np.ndarray
    mask: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None
    own_shape: tuple[int, int, int]


def prepare_scan(case: Case, grid: Grid) -> PreparedScan:
    """Read, normalise and place one case; nothing but this scan's own voxels takes part."""
    raw, spacing_mm = read_scan(case)
    head = head_mask(raw[0])
    scan = grid.place(normalise(raw, head)).astype(np.float16)
    mask = None if case.mask is None else grid.place(read_mask(case), nearest=True)
    return PreparedScan(case.name, case.subject, scan, grid.place(head, nearest=True), mask, spacing_mm, raw.shape[1:])


def cached_scan(case: Case, grid: Grid, cache_dir: Path) -> PreparedScan:
    """`prepare_scan` once, memory-mapped from `cache_dir` ever after; a changed file is prepared anew."""
    folder = cache_folder(case, grid, cache_dir)
    if not (folder / "meta.json").exists():
        _store(prepare_scan(case, grid), folder)
    meta = read_json(folder / "meta.json")
    spacing_mm = meta["spacing_mm"] and tuple(meta["spacing_mm"])
    arrays = {
        part: np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False) if part in meta["parts"] else None
        for part in ("scan", "head", "mask")
    }
    return PreparedScan(case.name, case.subject, **arrays, spacing_mm=spacing_mm, own_shape=tuple(meta["own_shape"]))


def _store(prepared: PreparedScan, folder: Path) -> None:
    parts = [part for part in ("scan", "head", "mask") if getattr(prepared, part) is not None]
    for part in parts:
        with atomic_path(folder / f"{part}.npy") as temporary:
            np.save(temporary, getattr(prepared, part))
    # Written last: its presence says that the arrays are whole.
    write_json(
        folder / "meta.json",
        {"spacing_mm": prepared.spacing_mm, "own_shape": prepared.own_shape, "parts": parts},
    )


def cache_folder(case: Case, grid: Grid, cache_dir: Path) -> Path:
    """Where a case is cached; another place for other files, a file that has changed, another grid or other code."""
    stamps = [stamp_of(path) for path in (case.scan, case.mask, spacing_table(case)) if path]
    key = repr((stamps, grid, PREPARATION))
    return cache_dir / f"{case.stem}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
