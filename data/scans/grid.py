"""The grid that the networks see: its shape, its voxel size, and whether it holds a brain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.files.listing import counted
from data.files.names import SCAN
from data.files.nifti import affine_of, size_text
from data.files.space import Shape, Space, Spacing, centred_space, places_in, resized_space, share_outside
from data.files.volumes import read_header
from data.scans.checks import space_of
from data.scans.cohort import Case
from data.settings import GridSettings, TrainingGrid
from utils.errors import UserError

ORIENTATION = "RAS"  # of (H, W, D): what networks learn from, and what their checkpoints say
# Half a per cent at each end: stray voxels do not pull the brain off the centre.
EXTENT = (0.005, 0.995)
CUT_OFF, CUT_PRINTED = 0.05, 0.001  # of a brain: that much lost to the grid is refused, or printed
UNKNOWN_MM = (1.0, 1.0, 1.0)  # taken for a voxel size that is known of neither the scan nor the network


@dataclass(frozen=True)
class Grid:
    """The grid that the networks see."""

    scan_dim: tuple[int, int, int, int]  # (C, D, H, W) that scans are cropped or padded to
    resize_to: tuple[int, int] | None = None  # (H, W) that whole slices are resampled to instead, of any voxel size
    spacing_mm: Spacing | None = None  # (D, H, W) that scans are resampled to; None to leave them as they are

    @property
    def shape(self) -> Shape:
        """(D, H, W) of everything on this grid, regions included."""
        _, depth, *plane = self.scan_dim
        h, w = self.resize_to or plane
        return depth, h, w

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


def grid_of(settings: GridSettings) -> Grid:
    """The grid that ``--scan_dim`` and ``--resize_to`` ask for; its voxel size is that of ``--spacing``, if any."""
    spacing_mm = settings.spacing if isinstance(settings, TrainingGrid) and not settings.resize_to else None
    return Grid(settings.scan_dim, settings.resize_to, spacing_mm)


def centre_of(mask: np.ndarray) -> Sequence[float]:
    """(D, H, W) in voxels, midway between the ends of a brain."""
    centre = []
    for axis in range(3):
        mass = np.cumsum(np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})))
        centre.append(float(np.searchsorted(mass, np.multiply(EXTENT, mass[-1])).mean()))
    return tuple(centre)


def choose_spacing(cases: list[Case], wanted: Sequence[float] | None, resize_to) -> Spacing | None:
    """``--spacing`` or, without it, the median of the scans' known ones, (D, H, W) in mm; printed in a line.

    None where none is known, or where ``--resize_to`` asks for voxels of any size.
    """
    if resize_to:
        if wanted:
            raise UserError("--spacing and --resize_to ask for two voxel sizes; give one of them")
        return None
    known = [space.spacing_mm for case in cases if (space := space_of(case)) is not None]
    if wanted is None and not known:
        return None
    # One of the scans' own sizes, not the mean of two: most of them then need no resampling.
    chosen = np.percentile(known, 50, axis=0, method="lower") if wanted is None else wanted
    d, h, w = (float(size) for size in chosen)
    spacing_mm = d, h, w
    others = sum(not np.allclose(spacing, spacing_mm, rtol=1e-3) for spacing in known)
    what = "the median of the scans; --spacing sets another" if wanted is None else "--spacing"
    resampled = f"; {counted(others, SCAN)} of another size will be resampled" if others else ""
    print(f"Voxels of {size_text(spacing_mm)} mm (D x H x W; {what}){resampled}")
    return spacing_mm


def print_unknown_spacing(cases: Sequence[Case], grid: Grid) -> None:
    """One line on scans of unknown voxel size, where that of the grid is known."""
    unknown = [case.name for case in cases if space_of(case) is None]
    if grid.spacing_mm and unknown:
        print(
            f"Unknown voxel size of {counted(len(unknown), SCAN)} (e.g. {unknown[0]}): {size_text(grid.spacing_mm)} mm "
            "is used; give it in a cohort.csv beside their folder"
        )


def own_space(case: Case, spacing_mm: Spacing | None = None) -> Space:
    """Where a case's scan lies; voxels of unknown size are taken for that of a network, or for 1 mm."""
    return space_of(case) or Space(read_header(case.scan).shape[1:], affine_of(spacing_mm or UNKNOWN_MM))


def shape_that_holds(
    mask: np.ndarray, own: Space, axes: Space, centre: Sequence[float], spacing_mm: Sequence[float] | None
) -> Shape:
    """The smallest shape with which `centred_space` of `axes` makes a grid that holds all of a mask on `own`."""
    if not mask.any():
        return 1, 1, 1
    reach = np.abs(places_in(axes, np.argwhere(mask), own) - centre).max(0)
    zoom = np.divide(spacing_mm or axes.spacing_mm, axes.spacing_mm)
    # The grid begins at a voxel of `axes`, which moves its middle by up to half of one.
    d, h, w = (int(n) + 1 for n in (2 * reach + 1) / zoom)
    return d, h, w


def too_large(case: Case, lost: float, scan_dim: Sequence[int], needed: Sequence[int]) -> str:
    """The message on a grid of `scan_dim` (C, D, H, W) that loses a share of a brain, which needs (D, H, W)."""
    at_least = " ".join(map(str, np.maximum(needed, scan_dim[1:])))
    return (
        f"{case.scan} has a brain larger than the grid, which cuts {lost:.0%} of it off; give at least --scan_dim "
        f"{scan_dim[0]} {at_least}, or a coarser --spacing"
    )


def brain_cut(case: Case, brain: np.ndarray, own: Space, grid: Grid) -> float:
    """The share of a brain (D, H, W) that the grid cuts off; refuses a large one, and names the shape that holds it."""
    lost = share_outside(brain, own, grid.space_about(brain, own))
    if lost > CUT_OFF:
        needed = shape_that_holds(brain, own, own, centre_of(brain), grid.spacing_mm)
        raise UserError(too_large(case, lost, grid.scan_dim, needed))
    return lost


def print_cut(lost: dict[str, float]) -> None:
    """One line on the scans of whose brain the grid cuts a small share off, by the scan's name."""
    print_worst(lost, CUT_PRINTED, "--scan_dim cuts {share:.1%} of the brain off in {name}{more}; give a larger one")


def print_worst(shares: dict[str, float], above: float, line: str) -> None:
    """Print the line on the largest of the shares, and how many others exceed the bound, if any does."""
    exceeding = {name: share for name, share in shares.items() if share > above}
    if exceeding:
        worst = max(exceeding, key=lambda name: exceeding[name])
        more = f" (and {len(exceeding) - 1} others exceed {above:.1%})" if len(exceeding) > 1 else ""
        print(line.format(share=exceeding[worst], name=worst, more=more))
