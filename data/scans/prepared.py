"""Scans as the networks see them: stripped, normalised, on the networks' grid, and kept as memory-mapped files.

So an epoch reads only the voxels it needs, and no cohort has to fit into memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files.space import Space, Spacing, resample, space_from_json
from data.scans.brain import read_brain
from data.scans.checks import read_lesions, read_scan, space_of, spacing_table
from data.scans.cohort import Case
from data.scans.fingerprints import PREPARATION_VERSION, cache_key, stamp_of
from data.scans.grid import Grid, own_space
from data.scans.head import normalise
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json

PARTS = ("scan", "brain", "mask", "own_brain")


@dataclass(frozen=True)
class PreparedScan:
    """A scan on the networks' grid.

    scan: (C, D, H, W) float16 in [0, 1], 0 outside the brain.
    brain, mask: (D, H, W) bool; the lesion mask is None where there is none.
    space, own: where this grid lies, and the scan's own.
    spacing_known: whether the scan's voxel size is known, so that millimetres mean something.
    own_brain: (D, H, W) bool on the scan's own grid; None where its voxels are those of this grid.
    place_known: whether `space` is where the scan lies, not only of its size.
    """

    name: str
    subject: str
    scan: np.ndarray
    brain: np.ndarray
    mask: np.ndarray | None
    space: Space
    own: Space
    spacing_known: bool
    own_brain: np.ndarray | None = None
    place_known: bool = True

    @property
    def lesions(self) -> np.ndarray:
        """The mask of a scan that must have one."""
        if self.mask is None:
            raise UserError(f"{self.name} has no lesion mask; give one")
        return self.mask

    @property
    def spacing_mm(self) -> Spacing | None:
        """(D, H, W) voxel size of the networks' grid, or None."""
        return self.space.spacing_mm if self.spacing_known else None

    @property
    def own_spacing_mm(self) -> Spacing | None:
        """(D, H, W) voxel size of the scan's own grid, or None."""
        return self.own.spacing_mm if self.spacing_known else None

    def slices(self) -> dict[int, np.ndarray]:
        """What stage 1 sees: every slice with brain, (C, H, W) float32 in [0, 1], by its index."""
        return {z: self.scan[:, z].astype(np.float32) for z in np.flatnonzero(self.brain.any((1, 2))).tolist()}

    def to_own_grid(self, probabilities: np.ndarray) -> np.ndarray:
        """Class probabilities (C, D, H, W) on the scan's own grid; background, class 0, beyond this one and brain."""
        background = [1.0] + [0.0] * (len(probabilities) - 1)
        on_own_grid = resample(probabilities, self.space, self.own, outside=background)
        if self.own_brain is not None:  # what is interpolated reaches beyond it
            for channel, fill in zip(on_own_grid, background, strict=True):
                channel[~self.own_brain] = fill
        return on_own_grid


def prepare_scan(case: Case, grid: Grid, brains: Path) -> PreparedScan:
    """Read, strip, normalise and place one case, by its own voxels alone; `brains` is the folder of `read_brain`."""
    mask = None if case.mask is None else read_lesions(case.mask)[0]
    brain, own = read_brain(case, brains), own_space(case, grid.spacing_mm)
    return place(case, read_scan(case), brain, mask, own, grid.space_about(brain, own))


def place(
    case: Case, raw: np.ndarray, brain: np.ndarray, mask: np.ndarray | None, own: Space, space: Space
) -> PreparedScan:
    """`prepare_scan` of what was read: a scan (C, D, H, W), its brain and its lesions (D, H, W) bool, on `own`."""
    scan = resample(normalise(raw, brain), own, space, outside=[0.0] * len(raw))
    own_brain = None if space.has_voxels_of(own) else brain
    brain = resample(brain[None], own, space)[0]
    mask = None if mask is None else resample(mask[None], own, space)[0]
    scan, known = (scan * brain).astype(np.float16), space_of(case) is not None
    return PreparedScan(case.name, case.subject, scan, brain, mask, space, own, known, own_brain)


def cached_scan(case: Case, grid: Grid, cache_dir: Path) -> PreparedScan:
    """`prepare_scan` once, memory-mapped from `cache_dir` ever after; a changed file is prepared anew."""
    folder = kept_in(case, grid, cache_dir)
    meta = read_json(folder / "meta.json")
    arrays = {part: map_part(folder, part) for part in meta["parts"]}
    space, own = (space_from_json(meta[key]) for key in ("space", "own"))
    known, mask, own_brain = meta["spacing_known"], arrays.get("mask"), arrays.get("own_brain")
    return PreparedScan(case.name, case.subject, arrays["scan"], arrays["brain"], mask, space, own, known, own_brain)


def kept_in(case: Case, grid: Grid, cache_dir: Path) -> Path:
    """The folder of a case, which is prepared where it has not been."""
    folder = cache_dir / prepared_key(case, grid)
    if not (folder / "meta.json").exists():
        store(prepare_scan(case, grid, brains_in(cache_dir)), folder)
    return folder


def map_part(folder: Path, part: str) -> np.ndarray:
    """One of the `PARTS` that a folder has."""
    return np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)


def store(prepared: PreparedScan, folder: Path) -> None:
    """Keep a prepared scan where `cached_scan` finds it."""
    parts = [part for part in PARTS if getattr(prepared, part) is not None]
    for part in parts:
        with atomic_path(folder / f"{part}.npy") as temporary:
            np.save(temporary, getattr(prepared, part))
    placed = {key: getattr(prepared, key).as_json for key in ("space", "own")}
    # Written last: its presence says that the arrays are whole.
    write_json(folder / "meta.json", {**placed, "spacing_known": prepared.spacing_known, "parts": parts})


def brains_in(cache_dir: Path) -> Path:
    """Where the brains that were found are kept beside the prepared scans."""
    return cache_dir / "brains"


def prepared_key(case: Case, grid: Grid) -> str:
    """The folder of a prepared case: another one for a file that has changed, another grid or another preparation."""
    stamps = [stamp_of(path) for path in (case.scan, case.mask, case.brain, spacing_table(case)) if path]
    return f"{case.stem}_{cache_key(stamps, grid, PREPARATION_VERSION)}"
