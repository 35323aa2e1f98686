"""The grid that the networks see, and scans brought onto it and back.

A prepared scan is stripped, normalised, resampled to the networks' voxel size, placed with its brain in the middle, and
kept as memory-mapped files, so that an epoch reads only the voxels it needs and no cohort has to fit into memory.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.brain import read_brain
from data.checks import read_mask, read_scan, space_of, spacing_table
from data.cohort import Case
from data.fingerprints import PREPARATION, stamp_of
from data.head import normalise
from data.listing import counted
from data.names import SCAN
from data.nifti import affine_of
from data.space import Space, centred_space, places_in, resample, resized_space, share_outside
from data.volumes import volume_shape
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json
from utils.progress import progress

SCAN_DIM = (1, 189, 192, 192)  # of ATLAS
ORIENTATION = "RAS"  # of (H, W, D): what networks learn from, and what their checkpoints say
# Half a per cent at each end: stray voxels do not pull the brain off the centre.
EXTENT = (0.005, 0.995)
CUT_OFF, WORTH_TELLING = 0.05, 0.001  # of a brain: that much lost to the grid is refused, or told
OUTSIDE_BRAIN = 0.05  # of a scan's lesion voxels, from which on it is told
UNKNOWN_MM = (1.0, 1.0, 1.0)  # taken for a voxel size that neither the scan nor the network tells


@dataclass(frozen=True)
class Grid:
    """The grid that the networks see.

    scan_dim: (C, D, H, W) that scans are cropped or padded to.
    resize_to: (H, W) that whole slices are resampled to instead, whatever their voxel size.
    spacing_mm: (D, H, W) that scans are resampled to; None to leave them as they are.
    """

    scan_dim: tuple[int, int, int, int]
    resize_to: tuple[int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of everything on this grid, regions included."""
        _, d, h, w = self.scan_dim
        return (d, *(self.resize_to or (h, w)))

    @property
    def bytes_per_scan(self) -> int:
        """What a `PreparedScan` takes: float16 scan, brain and mask."""
        return (2 * self.scan_dim[0] + 2) * math.prod(self.shape)

    def space_about(self, brain: np.ndarray, own: Space) -> Space:
        """This grid in the place of a scan, with its brain (D, H, W) in the middle."""
        centre = centre_of(brain)
        if self.resize_to:
            return resized_space(own, centre[0], self.shape[0], self.resize_to)
        return centred_space(own, centre, self.shape, self.spacing_mm)


def grid_of(args) -> Grid:
    """The grid that ``--scan_dim``, ``--resize_to`` and ``--spacing`` ask for."""
    spacing_mm = None if args.resize_to or args.spacing is None else tuple(args.spacing)
    return Grid(tuple(args.scan_dim), args.resize_to and tuple(args.resize_to), spacing_mm)


def centre_of(mask: np.ndarray) -> tuple[float, ...]:
    """(D, H, W) in voxels, midway between the ends of a brain."""
    centre = []
    for axis in range(3):
        mass = np.cumsum(np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})))
        centre.append(float(np.searchsorted(mass, np.multiply(EXTENT, mass[-1])).mean()))
    return tuple(centre)


# --- voxel size ----------------------------------------------------------------------------------------


def choose_spacing(cases: list[Case], wanted: Sequence[float] | None, resize_to) -> tuple[float, ...] | None:
    """``--spacing`` or, without it, the median of the scans that tell theirs, (D, H, W) in mm; said in a line.

    None where no scan tells, or where ``--resize_to`` asks for voxels of any size.
    """
    if resize_to:
        if wanted:
            raise UserError("--spacing and --resize_to ask for two voxel sizes; give one of them")
        return None
    known = [space.spacing_mm for case in cases if (space := space_of(case)) is not None]
    if wanted is None and not known:
        return None
    # One of the scans' own sizes, not the mean of two: most of them then need no resampling.
    median = np.percentile(known, 50, axis=0, method="lower") if known else wanted
    spacing_mm = tuple(float(size) for size in (median if wanted is None else wanted))
    others = sum(not np.allclose(spacing, spacing_mm, rtol=1e-3) for spacing in known)
    what = "the median of the scans; --spacing sets another" if wanted is None else "--spacing"
    resampled = f"; {counted(others, SCAN)} of another size will be resampled" if others else ""
    print(f"Voxels of {size_text(spacing_mm)} mm (D x H x W; {what}){resampled}")
    return spacing_mm


def size_text(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing_mm)


def say_untold(cases: list[Case], grid: Grid) -> None:
    """One line on scans of untold voxel size, where the grid has one."""
    untold = [case.name for case in cases if space_of(case) is None]
    if grid.spacing_mm and untold:
        print(
            f"{counted(len(untold), SCAN)} (e.g. {untold[0]}) tell no voxel size: {size_text(grid.spacing_mm)} mm is "
            "taken for it; a cohort.csv beside their folder tells it"
        )


def say_untold_network(cases: list[Case], grid: Grid) -> None:
    """One line on a network that does not know its voxel size, where scans know theirs."""
    if grid.spacing_mm is None and not grid.resize_to and any(space_of(case) for case in cases):
        print("The network was trained on scans of untold voxel size: these are taken as they are")


# --- placing -------------------------------------------------------------------------------------------


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
    placed = resample(brain[None], own, space)[0]
    mask = None if case.mask is None else resample(read_mask(case)[None], own, space)[0]
    known = space_of(case) is not None
    return PreparedScan(case.name, case.subject, (scan * placed).astype(np.float16), placed, mask, space, own, known)


def own_space(case: Case, grid: Grid) -> Space:
    """Where a case's scan lies; voxels of untold size are taken for the grid's."""
    return space_of(case) or Space(volume_shape(case.scan), affine_of(grid.spacing_mm or UNKNOWN_MM))


def check_brains(cases: list[Case], grid: Grid, brains: Path) -> None:
    """Refuse brains that the grid would cut, and tell of small losses and of lesions outside, before any long work."""
    say_untold(cases, grid)
    lost, outside = {}, {}
    for case in progress(cases, "Checking brains"):
        brain, own = read_brain(case, brains), own_space(case, grid)
        if not brain.any():
            raise UserError(f"{case.brain} is empty; give the mask of a brain, or take it out to have the brain found")
        lost[case.name] = share_outside(brain, own, grid.space_about(brain, own))
        if lost[case.name] > CUT_OFF:
            needed = shape_that_holds(brain, own, own, centre_of(brain), grid.spacing_mm)
            raise UserError(too_large(case, lost[case.name], grid.scan_dim, needed))
        if case.mask is not None:
            mask = read_mask(case)
            outside[case.mask.name] = np.count_nonzero(mask & ~brain) / max(np.count_nonzero(mask), 1)
    say_cut(lost)
    _say_worst(
        outside,
        OUTSIDE_BRAIN,
        "{share:.0%} of the lesion voxels of {name} lie outside the brain{more} and are not looked at; check the mask, "
        "or give a brain mask with --brains_dir",
    )


def shape_that_holds(
    mask: np.ndarray, own: Space, axes: Space, centre: Sequence[float], spacing_mm: tuple | None
) -> tuple[int, int, int]:
    """The smallest shape (D, H, W) with which `centred_space` makes a grid that holds all of a mask.

    Args:
        mask: (D, H, W) bool, on the grid `own`.
        axes: the source of the new grid.
        centre: (D, H, W) of the new grid, in voxels of `axes`.
        spacing_mm: voxel size of the new grid; None for that of `axes`.
    """
    if not mask.any():
        return 1, 1, 1
    lines = mask.any(2)  # of voxels along W; their ends tell how far the mask reaches in any direction
    ends = [mask.argmax(2)[lines], mask.shape[2] - 1 - mask[..., ::-1].argmax(2)[lines]]
    voxels = np.concatenate([np.column_stack([np.argwhere(lines), end]) for end in ends])
    reach = np.abs(places_in(axes, voxels, own) - centre).max(0)
    zoom = np.divide(spacing_mm or axes.spacing_mm, axes.spacing_mm)
    # The grid begins at a voxel of `axes`, which moves its middle by up to half of one.
    return tuple(int(n) + 1 for n in (2 * reach + 1) / zoom)


def too_large(case: Case, lost: float, scan_dim: Sequence[int], needed: Sequence[int]) -> str:
    """What is wrong with a grid of `scan_dim` (C, D, H, W) that loses a share of a brain which needs (D, H, W)."""
    at_least = " ".join(map(str, np.maximum(needed, scan_dim[1:])))
    return (
        f"{case.scan} has a brain larger than the grid, which cuts {lost:.0%} of it off; give at least --scan_dim "
        f"{scan_dim[0]} {at_least}, or a coarser --spacing"
    )


def say_cut(lost: dict[str, float]) -> None:
    """One line on the scans of whose brain the grid cuts a small share off, by the scan's name."""
    _say_worst(lost, WORTH_TELLING, "--scan_dim cuts {share:.1%} of the brain off in {name}{more}; give a larger one")


def _say_worst(shares: dict[str, float], above: float, line: str) -> None:
    """Print the line on the largest of the shares, and how many others exceed the bound, if any does."""
    exceeding = {name: share for name, share in shares.items() if share > above}
    if exceeding:
        worst = max(exceeding, key=exceeding.get)
        more = f" (and {len(exceeding) - 1} others exceed {above:.1%})" if len(exceeding) > 1 else ""
        print(line.format(share=exceeding[worst], name=worst, more=more))


# --- kept ----------------------------------------------------------------------------------------------

PARTS = ("scan", "brain", "mask")


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
    key = repr((stamps, grid, PREPARATION))
    return cache_dir / f"{case.stem}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
