"""Scans and masks brought onto one grid: turned to RAS, resampled where their spacing differs, cropped or padded.

Voxels are copied, not interpolated, where the spacing is right already. `data.restore` takes predictions back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.files.names import brain_name, stem_of
from data.files.space import Shape, Space, Spacing, centred_space, resample
from data.files.volumes import write_volume
from data.prepare.fit import centre_in, space_in
from data.prepare.layouts import mask_path
from data.prepare.records import Record, read_record, record_path, write_record
from data.scans.brain import brain_origin, read_brain
from data.scans.checks import find_head, read_mask, read_scan, require_mask_in_head
from data.scans.cohort import BRAINS, Case
from data.scans.fingerprints import PREPARATION_VERSION, combined
from data.scans.prepared import brains_in
from utils.errors import UserError
from utils.progress import map_in_order
from utils.scores.masks import lesion_load


@dataclass(frozen=True)
class PreparedGrid:
    """All that fixes the prepared files of a case."""

    shape: Shape
    spacing_mm: Spacing
    ext: str


def attempt_all(
    work: Callable[[Case], Any], cases: list[Case], what: str, num_workers: int
) -> tuple[dict[Case, Any], list[str]]:
    """The result for each case that is not refused, and the reasons of the refusals, which do not stop the others."""
    results, reasons = {}, []
    attempts = map_in_order(partial(_attempt, work), cases, num_workers, what)
    for case, (result, reason) in zip(cases, attempts, strict=True):
        if reason is None:
            results[case] = result
        else:
            reasons.append(reason)
    return results, reasons


def _attempt(work: Callable[[Case], Any], case: Case) -> tuple[Any, str | None]:
    try:
        return work(case), None
    except UserError as error:
        return None, str(error)


def prepare_case(case: Case, digests: Mapping[str, str], grid: PreparedGrid, root: Path, out_dir: Path) -> dict:
    """The row of one case in ``cohort.csv``; prepared unless its files (`digests`), grid and version are on record."""
    fixed = {"preparation": str(PREPARATION_VERSION), "grid": repr(grid)}
    made_of = combined({"files": digests[case.name], **fixed})
    record = record_path(case.scan, out_dir)
    if not (record.exists() and read_record(record).made_of == made_of):
        remove_prepared(record, out_dir)
        row, space = _write_case(case, grid, out_dir)
        source, mask = (str(path.relative_to(root)) for path in (case.scan, mask_path(case)))
        # Written last: its presence says that the volumes are whole.
        write_record(record, Record(source, mask, made_of, space, row))
    return read_record(record).row


def _write_case(case: Case, grid: PreparedGrid, out_dir: Path) -> tuple[dict, Space]:
    """Write the three volumes of a case; its row of ``cohort.csv``, and its grid, whose axes are those of the mask."""
    from data.prepare.overview import describe_scan  # with matplotlib, whose backend the command chooses first

    brains = brains_in(out_dir / "cache")
    scan, mask, brain = read_scan(case), read_mask(case), read_brain(case, brains)
    own, axes = space_in(case.scan), space_in(mask_path(case))
    space = centred_space(axes, centre_in(axes, brain, own), grid.shape, grid.spacing_mm)
    placed_head, placed_brain = (resample(m[None], own, space)[0] for m in (find_head(scan, case, brain), brain))
    placed_mask = resample(mask[None], axes, space)[0]
    require_mask_in_head(placed_mask, placed_head | placed_brain, case)
    scan_name, mask_name = f"{case.stem}{grid.ext}", f"{stem_of(mask_path(case))}{grid.ext}"
    write_volume(out_dir / "Scans" / scan_name, resample(scan, own, space), space.affine)
    write_volume(out_dir / "Masks" / mask_name, placed_mask[None].astype(np.uint8), space.affine)
    write_volume(out_dir / BRAINS / brain_name(scan_name), placed_brain[None].astype(np.uint8), space.affine)
    row = {
        "subject": case.subject,
        "session": case.session,
        "scan": scan_name,
        "mask": mask_name,
        "brain": brain_origin(case, brains),
        **describe_scan(placed_mask, placed_brain, space.spacing_mm),
        "source_lesion_cm3": round(lesion_load(mask, axes.spacing_mm)[1], 4),
    }
    return row, space


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
