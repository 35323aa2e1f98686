"""Scans and masks brought onto one grid: turned to RAS, resampled where their spacing differs, cropped or padded.

Voxels are copied, not interpolated, where the spacing is right already. `data.prepare.restore` takes predictions back.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.files.names import brain_name, stem_of
from data.files.space import Space, resample
from data.files.volumes import write_volume
from data.prepare.fit import Settings, mask_space, place_about, scan_space
from data.prepare.overview import describe_scan, lesion_cm3
from data.prepare.records import Record, read_record, record_path, write_record
from data.scans.brain import brain_is, read_brain
from data.scans.checks import find_head, read_mask, read_scan, require_mask_in_head
from data.scans.cohort import BRAINS, Case
from data.scans.fingerprints import PREPARATION, combined, fingerprint_cases
from data.scans.prepared import brains_in
from utils.errors import UserError
from utils.parallel import map_in_order
from utils.progress import progress

BYTES_PER_VOXEL = 6  # float32 scan, uint8 lesion and brain masks
SHRUNK = 0.95  # a lesion that keeps less of its volume was cut by the grid or lost to a coarse spacing


@dataclass(frozen=True)
class PlacedCase:
    """A case on its prepared grid.

    scan: (C, D, H, W) float32 in its own units.
    mask, brain: (D, H, W) bool.
    """

    scan: np.ndarray
    mask: np.ndarray
    brain: np.ndarray
    space: Space
    source_lesion_cm3: float


def prepare_case(case: Case, made_of: str, settings: Settings, root: Path, out_dir: Path) -> dict:
    """Prepare one scan and its mask unless that was done, and return its row of ``cohort.csv``.

    Args:
        made_of: digest of the case's files, of the grid and of the code; another one than on record prepares the case
            anew.
    """
    record = record_path(case.scan, out_dir)
    if not (record.exists() and read_record(record).made_of == made_of):
        remove_prepared(record, out_dir)
        placed = place_case(case, settings, kept_brains(out_dir))
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
            "brain": brain_is(case, kept_brains(out_dir)),
            **describe_scan(placed.mask, placed.brain, placed.space.spacing_mm),
            "source_lesion_cm3": placed.source_lesion_cm3,
        }
        sources = (str(path.relative_to(root)) for path in (case.scan, case.mask))
        # Written last: its presence says that the volumes are whole.
        write_record(record, Record(*sources, made_of, placed.space, row))
    return read_record(record).row


def place_case(case: Case, settings: Settings, brains: Path) -> PlacedCase:
    """Bring a case onto its prepared grid, whose axes are those of the mask.

    Args:
        brains: folder of the brains that were found.
    """
    scan, mask, brain = read_scan(case), read_mask(case), read_brain(case, brains)
    own, axes = scan_space(case), mask_space(case)
    space = place_about(brain, own, axes, settings)
    placed_head, placed_brain = (resample(m[None], own, space)[0] for m in (find_head(scan, case), brain))
    placed_mask = resample(mask[None], axes, space)[0]
    require_mask_in_head(placed_mask, placed_head, case)
    source_cm3 = lesion_cm3(np.count_nonzero(mask), axes.spacing_mm)
    return PlacedCase(resample(scan, own, space), placed_mask, placed_brain, space, source_cm3)


def kept_brains(out_dir: Path) -> Path:
    """Where the brains that were found are kept, on the grids of the original scans."""
    return brains_in(out_dir / "cache")


# --- a whole cohort ------------------------------------------------------------------------------------


def prepare_cohort(
    cases: list[Case], settings: Settings, root: Path, out_dir: Path, num_workers: int
) -> tuple[list[dict], list[str]]:
    """Prepare all cases; rows of ``cohort.csv`` and, of the cases that cannot be read, the reasons.

    A broken file does not stop the others: they are done when it has been fixed.
    """
    digests = fingerprint_cases(cases, out_dir / "sources.json")
    fixed = {"code": PREPARATION, "grid": repr(settings)}
    items = [(case, combined({"files": digests[case.name], **fixed})) for case in cases]
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
        remove_prepared(record, out_dir)
    return len(absent)


def remove_prepared(record: Path, out_dir: Path) -> None:
    """Remove what was prepared of a scan, its record first, if it has one; its mask may have had another name."""
    if record.exists():
        row = read_record(record).row
        scan, mask = out_dir / "Scans" / row["scan"], out_dir / "Masks" / row["mask"]
        for file in (record, scan, mask, out_dir / BRAINS / brain_name(scan)):
            file.unlink(missing_ok=True)
