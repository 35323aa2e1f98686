"""From paired scans and a grid to a cohort, and its admission: one look at all voxels before any long work.

Where scans are kept prepared, admission prepares them and keeps its facts beside them: the next start reads no voxel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.files.listing import Paths
from data.files.space import share_outside
from data.scans.brain import (
    brain_origin,
    brain_path,
    doubt,
    print_doubts,
    print_heads,
    read_brain,
    store_brain,
    with_brains,
)
from data.scans.checks import (
    check_headers,
    find_head,
    lies_in,
    print_numbered,
    read_lesions,
    read_scan,
    require_mask_in_head,
    space_of,
)
from data.scans.cohort import Case
from data.scans.contrast import require_contrast, require_look
from data.scans.fingerprints import case_files, content_digest
from data.scans.grid import Grid, brain_cut, choose_spacing, own_space, print_cut, print_unknown_spacing, print_worst
from data.scans.prepared import PreparedScan, brains_in, cached_scan, place, prepare_scan, prepared_key, store
from utils.errors import UserError
from utils.files import read_json, require_writable, write_json
from utils.progress import map_in_order

OUTSIDE = 0.05  # of the lesion voxels of a scan, from which on a line is printed
FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class Facts:
    """What is known of a case; shares are in [0, 1], those of a lesion 0 where there is none."""

    digest: str  # of its files
    brain: str  # how it came to be (`data.scans.brain.brain_origin`)
    doubt: str  # whether it is unlikely (`data.scans.brain.doubt`)
    labels: int  # the largest value of its mask; above 1 where that numbers its lesions
    lesion: float  # share of the scan's voxels that are lesion
    brain_cut: float  # share that lies beyond the grid
    lesion_cut: float  # likewise
    lesion_outside: float  # share that lies outside the brain


@dataclass(frozen=True)
class Cohort:
    """Cases on the networks' grid, whose headers have passed; `admit` looks at their voxels."""

    sides: tuple[list[Case], ...]  # the cases of a training and of its validation, or of one source
    grid: Grid
    augmented: tuple[Case, ...] = ()  # further cases, whose brains were written with them
    brains: Path = Path("brains")  # folder of the brains that are found
    cache_dir: Path | None = None  # folder of the prepared scans; None to prepare a scan whenever it is read
    contrast: str | None = None  # that the scans must look like; None for any

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
        if grid.spacing_mm is None and not grid.resize_to and any(space_of(case) for case in self.cases):
            print("The network was trained on scans of unknown voxel size: these are taken as they are")
        return replace(self, grid=grid, contrast=None if contrast else learned)

    def cached_in(self, cache_dir: Path, argument: str) -> "Cohort":
        """Kept prepared in the folder of an `argument`; refuses one without room for them."""
        missing = sum(not (cache_dir / prepared_key(case, self.grid)).exists() for case in self.everything)
        require_writable(cache_dir, argument, missing * self.grid.bytes_per_scan)
        return replace(self, cache_dir=cache_dir, brains=brains_in(cache_dir))

    def admit(self, num_workers: int = 0) -> dict[Case, Facts]:
        """Look at all voxels, find the brains that nobody gave, prepare what is kept; prints a line on small losses.

        Raises:
            UserError: the first case with impossible voxels, a mask outside the head, a brain of too many litres, or
                one that the grid would cut.
        """
        print_unknown_spacing(self.everything, self.grid)
        facts = {case: self.recall(case) for case in self.everything}
        look = partial(_look, cohort=self)
        # A brain takes long to find: none is looked for before all scans have passed.
        for what, find in (("Checking scans", False), ("Finding brains", True)):
            unknown = [case for case in facts if facts[case] is None]
            facts.update(zip(unknown, map_in_order(partial(look, find=find), unknown, num_workers, what), strict=True))
        known = {case: of_case for case, of_case in facts.items() if of_case is not None}
        print_heads([case for case in known if known[case].brain == "head"])
        print_doubts({case.name: of_case.doubt for case, of_case in known.items()})
        _print_losses(known)
        return known

    def folder(self, case: Case) -> Path | None:
        """Where a case is kept prepared, with its facts; None for a cohort that keeps none."""
        return self.cache_dir and self.cache_dir / prepared_key(case, self.grid)

    def recall(self, case: Case) -> Facts | None:
        """The facts of a case whose files have not changed since; None where they are not known."""
        if (folder := self.folder(case)) is None:
            return None
        try:
            return Facts(**read_json(folder / FACTS_FILE))
        except (UserError, TypeError):  # without them the scan is looked at again
            return None

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


def _print_losses(facts: Mapping[Case, Facts]) -> None:
    print_cut({case.name: of_case.brain_cut for case, of_case in facts.items()})
    of_masks = {case.mask.name: of_case for case, of_case in facts.items() if case.mask is not None}
    print_numbered({name: of_mask.labels for name, of_mask in of_masks.items()})
    print_worst(
        {name: of_mask.lesion_cut for name, of_mask in of_masks.items()},
        0,
        "--scan_dim cuts {share:.0%} of the lesions off in {name}{more}; give a larger one",
    )
    print_worst(
        {name: of_mask.lesion_outside for name, of_mask in of_masks.items()},
        OUTSIDE,
        "{share:.0%} of the lesion voxels of {name} lie outside the brain{more} and are not looked at; check the mask, "
        "or give a brain mask with --brains_dir",
    )


def _look(case: Case, cohort: Cohort, find: bool) -> Facts | None:
    """The facts of a case; None for one whose brain has yet to be found, unless `find` asks for that."""
    folder, grid = cohort.folder(case), cohort.grid  # first: the files may change meanwhile
    scan = read_scan(case)
    mask, labels = (None, 1) if case.mask is None else read_lesions(case.mask)
    seen, own = _brain_of(case, scan, mask, cohort.brains, find), own_space(case, grid.spacing_mm)
    if seen is None:
        return None
    brain, head = seen
    require_look(scan[0], brain, own.spacing_mm, case.scan, cohort.contrast)
    space = grid.space_about(brain, own)
    lesions = np.zeros_like(brain) if mask is None else mask
    facts = Facts(
        digest=content_digest(case_files(case)),
        brain=brain_origin(case, cohort.brains),
        doubt=doubt(case, brain, head),
        labels=labels,
        lesion=float(lesions.mean()),
        brain_cut=brain_cut(case, brain, own, grid),
        lesion_cut=share_outside(lesions, own, space),
        lesion_outside=int(np.count_nonzero(lesions & ~brain)) / max(int(np.count_nonzero(lesions)), 1),
    )
    if folder is not None:
        store(place(case, scan, brain, mask, own, space), folder)
        write_json(folder / FACTS_FILE, asdict(facts))
    return facts


def _brain_of(
    case: Case, scan: np.ndarray, mask: np.ndarray | None, brains: Path, find: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """The brain of a case, whose lesions lie in it or in the head, and the head; None for one yet to be found.

    It is found at once where the lesions lie outside the head: that may be wrong, and the brain is then right.
    """
    brain = read_brain(case, brains) if brain_path(case, brains) else None
    head = find_head(scan, case, brain)
    if brain is None:
        if not find and (mask is None or lies_in(mask, head)):
            return None
        store_brain(case, brains, scan, head)
        brain = read_brain(case, brains)
    if mask is not None:
        require_mask_in_head(mask, head | brain, case)
    return brain, head
