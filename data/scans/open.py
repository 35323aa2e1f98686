"""From paired scans and a grid to a cohort: scans with brains, checked and ready to be prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.files.listing import Paths
from data.scans.admission import Facts, admit
from data.scans.brain import Finder, with_brains
from data.scans.checks import check_headers
from data.scans.cohort import Case
from data.scans.contrast import require_contrast
from data.scans.grid import Grid, choose_spacing, print_unknown_network_spacing
from data.scans.prepared import PreparedScan, brains_in, cached_scan, prepare_scan, prepared_key
from utils.files import require_writable


@dataclass(frozen=True)
class Cohort:
    """Cases on the networks' grid, whose headers have passed; `admit` looks at their voxels.

    sides: the cases of a training and of its validation, or of one source.
    augmented: further cases, whose brains were written with them.
    brains: folder of the brains that are found.
    cache_dir: folder of the prepared scans; None to prepare a scan whenever it is read.
    contrast: that the scans must look like; None for any.
    """

    sides: tuple[list[Case], ...]
    grid: Grid
    augmented: tuple[Case, ...] = ()
    brains: Path = Path("brains")
    cache_dir: Path | None = None
    contrast: str | None = None

    @property
    def cases(self) -> list[Case]:
        return [case for side in self.sides for case in side]

    @property
    def everything(self) -> list[Case]:
        return [*self.cases, *self.augmented]

    def with_spacing(self, wanted: Sequence[float] | None) -> "Cohort":
        """On voxels of a size (D, H, W) in mm, or of the median of the scans; see `choose_spacing`."""
        spacing_mm = choose_spacing(self.cases, wanted, self.grid.resize_to)
        return replace(self, grid=replace(self.grid, spacing_mm=spacing_mm))

    def on(self, grid: Grid, learned: str | None, network: Path | str, contrast: str | None) -> "Cohort":
        """On the grid of a network; prints a line where that does not know its voxel size.

        Args:
            learned: the contrast that the network has learned; names that say another one are refused.
            network: what messages call it.
            contrast: that of the scans, in the place of what their names say and of how they look.
        """
        require_contrast((case.name for case in self.cases), learned, network, contrast)
        print_unknown_network_spacing(self.cases, grid)
        return replace(self, grid=grid, contrast=None if contrast else learned)

    def cached_in(self, cache_dir: Path, argument: str, copies: int = 1) -> "Cohort":
        """Kept prepared in the folder of an `argument`; refuses one without room for so many copies of each scan."""
        missing = sum(not (cache_dir / prepared_key(case, self.grid)).exists() for case in self.everything)
        require_writable(cache_dir, argument, copies * missing * self.grid.bytes_per_scan)
        return replace(self, cache_dir=cache_dir, brains=brains_in(cache_dir))

    def admit(self, num_workers: int = 0, finder: Finder | None = None) -> Mapping[Case, Facts]:
        """Look at all voxels, find the brains that are missing, prepare what is kept; raises as `admission.admit`."""
        return admit(self.everything, self.grid, self.brains, num_workers, self.cache_dir, finder, self.contrast)

    def prepare(self, case: Case) -> PreparedScan:
        """A case as the networks see it."""
        if self.cache_dir is None:
            return prepare_scan(case, self.grid, self.brains)
        return cached_scan(case, self.grid, self.cache_dir)


def open_cohort(
    *sides: list[Case], grid: Grid, brains_dir: Paths | None = None, augmented: Sequence[Case] = ()
) -> Cohort:
    """Pair the scans of all sides with brain masks made elsewhere, and check all headers; no voxel is read.

    Args:
        grid: its voxel size may be chosen later (`Cohort.with_spacing`).
        brains_dir: as for `with_brains`.
        augmented: further cases, for training alone.

    Raises:
        UserError: names that cannot be paired, broken headers, files that do not fit together.
    """
    return cohort_of(*(with_brains(side, brains_dir) for side in sides), grid=grid, augmented=augmented)


def cohort_of(*sides: list[Case], grid: Grid, augmented: Sequence[Case] = ()) -> Cohort:
    """`open_cohort` of cases that have their brain masks already."""
    cohort = Cohort(sides, grid, tuple(augmented))
    check_headers(cohort.everything, grid.scan_dim, grid.resize_to)
    return cohort
