"""Scans and masks brought onto one grid: turned to RAS, resampled where their spacing differs, cropped or padded.

Voxels are copied, not interpolated, where the spacing is right already. `data.prepare.restore` takes predictions back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.files.names import brain_name, stem_of
from data.files.space import Shape, Space, Spacing, resample
from data.files.volumes import write_volume
from data.prepare.attempts import attempt_all
from data.prepare.fit import place_about, space_in
from data.prepare.layouts import mask_path
from data.prepare.overview import describe_scan, lesion_cm3
from data.prepare.records import Record, read_record, record_path, write_record
from data.scans.brain import brain_origin, read_brain
from data.scans.checks import find_head, read_mask, read_scan, require_mask_in_head
from data.scans.cohort import BRAINS, Case
from data.scans.fingerprints import PREPARATION_VERSION, combined, fingerprint_cases
from data.scans.prepared import brains_in


@dataclass(frozen=True)
class PreparedGrid:
    """All that fixes the prepared files of a case."""

    shape: Shape
    spacing_mm: Spacing
    ext: str


@dataclass(frozen=True)
class PlacedCase:
    """A case on its prepared grid: a scan (C, D, H, W) float32 in its own units, and (D, H, W) bool masks."""

    scan: np.ndarray
    mask: np.ndarray
    brain: np.ndarray
    space: Space
    source_lesion_cm3: float


def prepare_case(case: Case, digests: Mapping[str, str], grid: PreparedGrid, root: Path, out_dir: Path) -> dict:
    """The row of one case in ``cohort.csv``; prepared unless its files (`digests`), grid and version are on record."""
    fixed = {"preparation": str(PREPARATION_VERSION), "grid": repr(grid)}
    made_of = combined({"files": digests[case.name], **fixed})
    record = record_path(case.scan, out_dir)
    if not (record.exists() and read_record(record).made_of == made_of):
        remove_prepared(record, out_dir)
        placed = place_case(case, grid, brains_folder(out_dir))
        row = _write_case(case, placed, grid.ext, out_dir)
        source, mask = (str(path.relative_to(root)) for path in (case.scan, mask_path(case)))
        # Written last: its presence says that the volumes are whole.
        write_record(record, Record(source, mask, made_of, placed.space, row))
    return read_record(record).row


def _write_case(case: Case, placed: PlacedCase, ext: str, out_dir: Path) -> dict:
    """Write the three volumes of a case; its row of ``cohort.csv``."""
    scan, mask = f"{case.stem}{ext}", f"{stem_of(mask_path(case))}{ext}"
    affine = placed.space.affine
    write_volume(out_dir / "Scans" / scan, placed.scan, affine)
    write_volume(out_dir / "Masks" / mask, placed.mask[None].astype(np.uint8), affine)
    write_volume(out_dir / BRAINS / brain_name(scan), placed.brain[None].astype(np.uint8), affine)
    return {
        "subject": case.subject,
        "session": case.session,
        "scan": scan,
        "mask": mask,
        "brain": brain_origin(case, brains_folder(out_dir)),
        **describe_scan(placed.mask, placed.brain, placed.space.spacing_mm),
        "source_lesion_cm3": placed.source_lesion_cm3,
    }


def place_case(case: Case, grid: PreparedGrid, brains: Path) -> PlacedCase:
    """Bring a case onto its prepared grid, whose axes are those of the mask; `brains` keeps those that are found."""
    scan, mask, brain = read_scan(case), read_mask(case), read_brain(case, brains)
    own, axes = space_in(case.scan), space_in(mask_path(case))
    space = place_about(brain, own, axes, grid.shape, grid.spacing_mm)
    placed_head, placed_brain = (resample(m[None], own, space)[0] for m in (find_head(scan, case), brain))
    placed_mask = resample(mask[None], axes, space)[0]
    require_mask_in_head(placed_mask, placed_head, case)
    source_cm3 = lesion_cm3(np.count_nonzero(mask), axes.spacing_mm)
    return PlacedCase(resample(scan, own, space), placed_mask, placed_brain, space, source_cm3)


def brains_folder(out_dir: Path) -> Path:
    """Where the brains that are found are kept, on the grids of the original scans."""
    return brains_in(out_dir / "cache")


def prepare_cohort(
    cases: list[Case], grid: PreparedGrid, root: Path, out_dir: Path, num_workers: int
) -> tuple[list[dict], list[str]]:
    """Prepare all cases: rows of ``cohort.csv``, and the reasons why others cannot be read."""
    digests = fingerprint_cases(cases, out_dir / "sources.json")
    work = partial(prepare_case, digests=digests, grid=grid, root=root, out_dir=out_dir)
    rows, reasons = attempt_all(work, cases, "Preparing scans", num_workers)
    return [row for row in rows if row is not None], reasons


def remove_absent(cases: list[Case], out_dir: Path) -> int:
    """Remove the prepared files of scans that the data set no longer has; how many scans these were."""
    absent = set((out_dir / "Geometry").glob("*.json")) - {record_path(case.scan, out_dir) for case in cases}
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
