"""What lets a case in: one look at all of its voxels, before any long work.

A cohort is looked at by several processes. Where its scans are kept prepared, the same look prepares them, and what it
saw is kept beside them: the next start reads no voxel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.files.space import Space, share_outside
from data.scans.brain import Finder, brain_is, has_brain, keep_brain, read_brain, say_heads
from data.scans.checks import find_head, read_mask, read_scan, require_mask_in_head
from data.scans.cohort import Case
from data.scans.fingerprints import case_files, content_digest
from data.scans.grid import (
    CUT_OFF,
    Grid,
    centre_of,
    own_space,
    say_cut,
    say_untold,
    say_worst,
    shape_that_holds,
    too_large,
)
from data.scans.prepared import cache_folder, place, store
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.parallel import map_in_order
from utils.progress import progress

OUTSIDE = 0.05  # of the lesion voxels of a scan, from which on it is told
FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class Facts:
    """What a look at a case tells; shares are in [0, 1], those of a lesion 0 where there is none.

    digest: of its files.
    brain: how it came to be (`data.scans.brain.brain_is`).
    lesion: share of the scan's voxels that are lesion.
    brain_cut, lesion_cut: share of it that lies beyond the grid.
    lesion_outside: share of it that lies outside the brain.
    """

    digest: str
    brain: str
    lesion: float
    brain_cut: float
    lesion_cut: float
    lesion_outside: float


def admit(
    cases: Sequence[Case],
    grid: Grid,
    brains: Path,
    num_workers: int = 0,
    cache_dir: Path | None = None,
    finder: Finder | None = None,
) -> dict[Case, Facts]:
    """Look at all cases, find the brains that nobody gave, and tell of small losses.

    Args:
        brains: folder of the brains that are found.
        cache_dir: where scans are prepared and looks remembered (`data.scans.prepared.cached_scan`); None for neither.
        finder: what finds brains; None for `data.scans.brain.find_brain`.

    Raises:
        UserError: for the first case, in their order, that has impossible voxels, a mask outside the head, or a brain
            that the grid would cut.
    """
    say_untold(cases, grid)
    facts = {case: cache_dir and _recall(case, grid, cache_dir) for case in cases}
    # A brain takes long to find: none is looked for before all scans have passed.
    for what, find in (("Checking scans", False), ("Finding brains", True)):
        unknown = [case for case in facts if facts[case] is None]
        look = partial(_look, grid=grid, brains=brains, cache_dir=cache_dir, find=find, finder=finder)
        seen = map_in_order(look, unknown, num_workers)
        facts.update(zip(unknown, progress(seen, what, len(unknown)), strict=True))
    _say(facts)
    return facts


# --- one case ------------------------------------------------------------------------------------------


def _look(
    case: Case, grid: Grid, brains: Path, cache_dir: Path | None, find: bool, finder: Finder | None
) -> Facts | None:
    """The facts of a case; None for one whose brain has yet to be found, unless `find` asks for that."""
    folder = cache_dir and cache_folder(case, grid, cache_dir)  # first: the files may change meanwhile
    scan = read_scan(case)
    head = find_head(scan, case)
    mask = None if case.mask is None else read_mask(case)
    if mask is not None:
        require_mask_in_head(mask, head, case)
    if not has_brain(case, brains):
        if not find:
            return None
        keep_brain(case, brains, scan, head, finder)
    brain, own = read_brain(case, brains), own_space(case, grid)
    space = grid.space_about(brain, own)
    facts = Facts(
        digest=content_digest(case_files(case)),
        brain=brain_is(case, brains),
        brain_cut=_require_brain(brain, case, grid, own, space),
        **_lesion_facts(mask, brain, own, space),
    )
    if folder is not None:
        store(place(case, scan, brain, mask, own, space), folder)
        write_json(folder / FACTS_FILE, asdict(facts))
    return facts


def _require_brain(brain: np.ndarray, case: Case, grid: Grid, own: Space, space: Space) -> float:
    """The share of a brain (D, H, W) that the grid cuts off; refuses a large one."""
    lost = share_outside(brain, own, space)
    if lost > CUT_OFF:
        needed = shape_that_holds(brain, own, own, centre_of(brain), grid.spacing_mm)
        raise UserError(too_large(case, lost, grid.scan_dim, needed))
    return lost


def _lesion_facts(mask: np.ndarray | None, brain: np.ndarray, own: Space, space: Space) -> dict[str, float]:
    if mask is None:
        return {"lesion": 0.0, "lesion_cut": 0.0, "lesion_outside": 0.0}
    outside = np.count_nonzero(mask & ~brain) / max(np.count_nonzero(mask), 1)
    return {"lesion": float(mask.mean()), "lesion_cut": share_outside(mask, own, space), "lesion_outside": outside}


def _recall(case: Case, grid: Grid, cache_dir: Path) -> Facts | None:
    """The facts of a case whose files have not changed since; None where they are not known."""
    try:
        return Facts(**read_json(cache_folder(case, grid, cache_dir) / FACTS_FILE))
    except (UserError, TypeError):  # it only saves time: without it the scan is looked at again
        return None


# --- said at every start -------------------------------------------------------------------------------


def _say(facts: Mapping[Case, Facts]) -> None:
    say_heads([case for case in facts if facts[case].brain == "head"])
    say_cut({case.name: seen.brain_cut for case, seen in facts.items()})
    of_masks = {case.mask.name: seen for case, seen in facts.items() if case.mask is not None}
    say_worst(
        {name: seen.lesion_cut for name, seen in of_masks.items()},
        0,
        "--scan_dim cuts {share:.0%} of the lesions off in {name}{more}; give a larger one",
    )
    say_worst(
        {name: seen.lesion_outside for name, seen in of_masks.items()},
        OUTSIDE,
        "{share:.0%} of the lesion voxels of {name} lie outside the brain{more} and are not looked at; check the mask, "
        "or give a brain mask with --brains_dir",
    )
