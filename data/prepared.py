"""Scans as the networks see them: stripped, normalised, on the networks' grid, and kept as memory-mapped files.

So an epoch reads only the voxels it needs, and no cohort has to fit into memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.brain import read_brain
from data.checks import read_mask, read_scan, space_of, spacing_table
from data.cohort import Case
from data.fingerprints import PREPARATION, cache_key, stamp_of
from data.grid import CUT_OFF, Grid, centre_of, own_space, say_cut, say_untold, say_worst, shape_that_holds, too_large
from data.head import normalise
from data.space import Space, resample, share_outside
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json
from utils.progress import progress

OUTSIDE = 0.05  # of the lesion voxels of a scan, from which on it is told
PARTS = ("scan", "brain", "mask")


@dataclass(frozen=True)
class PreparedScan:
    """A scan on the networks' grid.

    scan: (C, D, H, W) float16 in [0, 1], 0 outside the brain.
    brain: (D, H, W) bool.
    mask: (D, H, W) bool lesion mask, or None.
    space: where this grid lies.
    own: where the scan's own grid lies.
    spacing_known: whether the scan told its voxel size, so that millimetres mean something.
    """

    name: str
    subject: str
    scan: np.ndarray
    brain: np.ndarray
    mask: np.ndarray | None
    space: Space
    own: Space
    spacing_known: bool

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """(D, H, W) voxel size of the networks' grid, or None."""
        return self.space.spacing_mm if self.spacing_known else None

    @property
    def own_spacing_mm(self) -> tuple[float, float, float] | None:
        """(D, H, W) voxel size of the scan's own grid, or None."""
        return self.own.spacing_mm if self.spacing_known else None

    def to_own_grid(self, probabilities: np.ndarray) -> np.ndarray:
        """Class probabilities (C, D, H, W) on the scan's own grid; background, class 0, beyond this one."""
        return resample(probabilities, self.space, self.own, outside=[1.0] + [0.0] * (len(probabilities) - 1))


def prepare_scan(case: Case, grid: Grid, brains: Path) -> PreparedScan:
    """Read, strip, normalise and place one case; nothing but this scan's own voxels takes part.

    Args:
        brains: folder of the brains that were found (`data.brain.read_brain`).
    """
    raw, brain, own = read_scan(case), read_brain(case, brains), own_space(case, grid)
    space = grid.space_about(brain, own)
    scan = resample(normalise(raw, brain), own, space, outside=[0.0] * len(raw))
    mask = None if case.mask is None else read_mask(case)
    brain, mask = (m if m is None else resample(m[None], own, space)[0] for m in (brain, mask))
    scan, known = (scan * brain).astype(np.float16), space_of(case) is not None
    return PreparedScan(case.name, case.subject, scan, brain, mask, space, own, known)


# --- checks --------------------------------------------------------------------------------------------


def check_brains(cases: list[Case], grid: Grid, brains: Path) -> None:
    """Refuse brains that the grid would cut, and tell of small losses and of lesions outside, before any long work."""
    say_untold(cases, grid)
    lost, lesions_lost, outside = {}, {}, {}
    for case in progress(cases, "Checking brains"):
        brain, own = read_brain(case, brains), own_space(case, grid)
        space = grid.space_about(brain, own)
        lost[case.name] = share_outside(brain, own, space)
        if lost[case.name] > CUT_OFF:
            needed = shape_that_holds(brain, own, own, centre_of(brain), grid.spacing_mm)
            raise UserError(too_large(case, lost[case.name], grid.scan_dim, needed))
        if case.mask is not None:
            mask = read_mask(case)
            lesions_lost[case.mask.name] = share_outside(mask, own, space)
            outside[case.mask.name] = np.count_nonzero(mask & ~brain) / max(np.count_nonzero(mask), 1)
    say_cut(lost)
    say_worst(lesions_lost, 0, "--scan_dim cuts {share:.0%} of the lesions off in {name}{more}; give a larger one")
    say_worst(
        outside,
        OUTSIDE,
        "{share:.0%} of the lesion voxels of {name} lie outside the brain{more} and are not looked at; check the mask, "
        "or give a brain mask with --brains_dir",
    )


# --- kept ----------------------------------------------------------------------------------------------


def cached_scan(case: Case, grid: Grid, cache_dir: Path) -> PreparedScan:
    """`prepare_scan` once, memory-mapped from `cache_dir` ever after; a changed file is prepared anew."""
    folder = cache_folder(case, grid, cache_dir)
    if not (folder / "meta.json").exists():
        _store(prepare_scan(case, grid, brains_in(cache_dir)), folder)
    meta = read_json(folder / "meta.json")
    arrays = {
        part: np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False) if part in meta["parts"] else None
        for part in PARTS
    }
    space, own = (Space(tuple(meta[key]["shape"]), np.array(meta[key]["affine"])) for key in ("space", "own"))
    return PreparedScan(case.name, case.subject, **arrays, space=space, own=own, spacing_known=meta["spacing_known"])


def _store(prepared: PreparedScan, folder: Path) -> None:
    parts = [part for part in PARTS if getattr(prepared, part) is not None]
    for part in parts:
        with atomic_path(folder / f"{part}.npy") as temporary:
            np.save(temporary, getattr(prepared, part))
    spaces = {key: getattr(prepared, key) for key in ("space", "own")}
    placed = {key: {"shape": space.shape, "affine": space.affine.tolist()} for key, space in spaces.items()}
    # Written last: its presence says that the arrays are whole.
    write_json(folder / "meta.json", {**placed, "spacing_known": prepared.spacing_known, "parts": parts})


def brains_in(cache_dir: Path) -> Path:
    """Where the brains that were found are kept beside the prepared scans."""
    return cache_dir / "brains"


def cache_folder(case: Case, grid: Grid, cache_dir: Path) -> Path:
    """Where a case is cached; another place for other files, a file that has changed, another grid or other code."""
    stamps = [stamp_of(path) for path in (case.scan, case.mask, case.brain, spacing_table(case)) if path]
    return cache_dir / f"{case.stem}_{cache_key(stamps, grid, PREPARATION)}"
