"""Scans and masks brought onto one grid: turned to RAS, resampled where their spacing differs, cropped or padded.

Voxels are copied, not interpolated, where the spacing is right already. `data.prepare.restore` takes predictions back.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.brain import find_brain_of
from data.checks import check_alignment, find_head, read_mask, read_scan, require_mask_in_head
from data.cohort import BRAINS, Case
from data.fingerprints import PREPARATION, combined, fingerprint_cases
from data.grid import centre_of
from data.names import brain_name, stem_of
from data.prepare.layouts import Layout
from data.prepare.overview import describe_scan, lesion_cm3
from data.prepare.records import Record, read_record, record_path, write_record
from data.space import Space, centred_space, resample
from data.volumes import read_header, write_volume
from utils.errors import UserError
from utils.parallel import map_in_order
from utils.progress import progress

BYTES_PER_VOXEL = 6  # float32 scan, uint8 lesion and brain masks
SHRUNK = 0.95  # a lesion that keeps less of its volume was cut by the grid or lost to a coarse spacing


@dataclass(frozen=True)
class Settings:
    """What fixes the prepared files. Shapes and spacings run along (D, H, W)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    ext: str


@dataclass(frozen=True)
class PlacedCase:
    """A case on its prepared grid.

    scan: (C, D, H, W) float32 in its own units.
    mask, brain: (D, H, W) bool.
    has_brain: whether a brain was found or given; False where the head stands for it.
    """

    scan: np.ndarray
    mask: np.ndarray
    brain: np.ndarray
    has_brain: bool
    space: Space
    source_lesion_cm3: float


def prepare_case(case: Case, made_of: str, settings: Settings, root: Path, out_dir: Path) -> dict:
    """Prepare one scan and its mask unless that was done, and return its row of ``cohort.csv``.

    Args:
        made_of: digest of the case's files and of the code; another one than on record prepares the case anew.
    """
    record = record_path(case.scan, out_dir)
    if not (record.exists() and read_record(record).made_of == made_of):
        placed = place_case(case, settings)
        scan_path = out_dir / "Scans" / f"{case.stem}{settings.ext}"
        mask_path = out_dir / "Masks" / f"{stem_of(case.mask)}{settings.ext}"
        write_volume(scan_path, placed.scan, placed.space.affine)
        write_volume(mask_path, placed.mask[None].astype(np.uint8), placed.space.affine)
        brain_path = out_dir / BRAINS / brain_name(scan_path)
        write_volume(brain_path, placed.brain[None].astype(np.uint8), placed.space.affine)
        row = {
            "subject": case.subject,
            "session": case.session,
            "scan": scan_path.name,
            "mask": mask_path.name,
            "brain": "head" if not placed.has_brain else "given" if case.brain else "found",
            **describe_scan(placed.mask, placed.brain, placed.space.spacing_mm),
            "source_lesion_cm3": placed.source_lesion_cm3,
        }
        # Written last: its presence says that the volumes are whole.
        write_record(record, Record(str(case.scan.relative_to(root)), made_of, placed.space, row))
    return read_record(record).row


def place_case(case: Case, settings: Settings) -> PlacedCase:
    """Bring a case onto its prepared grid, whose axes are those of the mask."""
    scan, mask = read_scan(case), read_mask(case)
    scan_space, mask_space = (Space(h.shape[1:], h.affine) for h in map(read_header, (case.scan, case.mask)))
    head = find_head(scan, case)
    brain = find_brain_of(case, scan, head)
    inside = head if brain is None else brain
    centre_mm = scan_space.affine @ [*np.roll(centre_of(inside), -1), 1]
    centre = np.roll(np.linalg.solve(mask_space.affine, centre_mm)[:3], 1)
    space = centred_space(mask_space, tuple(centre), settings.shape, settings.spacing_mm)
    placed_head, placed_brain = (resample(m[None], scan_space, space)[0] for m in (head, inside))
    placed_mask = resample(mask[None], mask_space, space)[0]
    require_mask_in_head(placed_mask, placed_head, case)
    source_cm3 = lesion_cm3(np.count_nonzero(mask), mask_space.spacing_mm)
    placed_scan = resample(scan, scan_space, space)
    return PlacedCase(placed_scan, placed_mask, placed_brain, brain is not None, space, source_cm3)


# --- a whole cohort ------------------------------------------------------------------------------------


def prepare_cohort(
    cases: list[Case], settings: Settings, root: Path, out_dir: Path, num_workers: int
) -> tuple[list[dict], list[str]]:
    """Prepare all cases; rows of ``cohort.csv`` and, of the cases that cannot be read, the reasons.

    A broken file does not stop the others: they are done when it has been fixed.
    """
    digests = fingerprint_cases(cases, out_dir / "sources.json")
    items = [(case, combined({"files": digests[case.name], "code": PREPARATION})) for case in cases]
    rows, refused = [], []
    work = partial(_try_case, settings=settings, root=root, out_dir=out_dir)
    results = map_in_order(work, items, num_workers)
    for row, reason in progress(results, "Preparing scans", len(cases)):
        rows.append(row) if reason is None else refused.append(reason)
    return rows, refused


def _try_case(item: tuple[Case, str], **where) -> tuple[dict | None, str | None]:
    try:
        return prepare_case(*item, **where), None
    except UserError as error:
        return None, str(error)


def remove_absent(cases: list[Case], out_dir: Path) -> int:
    """Remove the prepared files of scans that the data set no longer has, and return how many scans these were."""
    present = {record_path(case.scan, out_dir) for case in cases}
    absent = set((out_dir / "Geometry").glob("*.json")) - present
    for record in absent:
        row = read_record(record).row
        brain = out_dir / BRAINS / brain_name(row["scan"])
        for file in (out_dir / "Scans" / row["scan"], out_dir / "Masks" / row["mask"], brain, record):
            file.unlink(missing_ok=True)
    return len(absent)


def check_headers(cases: list[Case], layout: Layout) -> None:
    for case in progress(cases, "Checking headers"):
        if layout.scan_has_own_grid:
            read_header(case.scan)
        else:
            check_alignment(case.scan, case.mask)
        if case.brain:
            check_alignment(case.scan, case.brain)
