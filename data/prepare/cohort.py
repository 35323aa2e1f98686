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
from data.files.space import Shape, Spacing, centred_space, resample, space_from_json
from data.files.volumes import write_volume
from data.prepare.layouts import centre_in, space_in
from data.scans.brain import brain_origin, read_brain
from data.scans.checks import find_head, read_lesions, read_scan, require_mask_in_head
from data.scans.cohort import BRAINS, Case
from data.scans.fingerprints import PREPARATION_VERSION, combined
from data.scans.prepared import brains_in
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.progress import map_in_order
from utils.scores.masks import lesion_load
from utils.scores.metrics import size_bin

# Of a prepared scan: the original files, relative to the root of their data set; a digest of these, of the grid and of
# the version of the preparation; the row of ``cohort.csv``.
RECORDED = ("source", "mask", "made_of", "row")
ONE_SIDED = 0.9  # share of the lesion voxels on one side from which on a lesion is left or right


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
    attempts = map_in_order(partial(_attempt, work), cases, num_workers, what)
    results = dict(zip(cases, attempts, strict=True))
    refused = {case: str(result) for case, result in results.items() if isinstance(result, UserError)}
    return {case: result for case, result in results.items() if case not in refused}, list(refused.values())


def _attempt(work: Callable[[Case], Any], case: Case) -> Any:
    try:
        return work(case)
    except UserError as error:
        return error


def prepare_case(case: Case, digests: Mapping[str, str], grid: PreparedGrid, root: Path, out_dir: Path) -> dict:
    """The row of one case in ``cohort.csv``; prepared unless its files (`digests`), grid and version are on record."""
    fixed = {"preparation": str(PREPARATION_VERSION), "grid": repr(grid)}
    made_of = combined({"files": digests[case.name], **fixed})
    record, brains, mask_file = record_path(case.scan, out_dir), brains_in(out_dir / "cache"), case.lesion_mask
    if record.exists() and read_record(record)["made_of"] == made_of:
        return read_record(record)["row"]
    remove_prepared(record, out_dir)
    scan, mask, brain = read_scan(case), read_lesions(mask_file)[0], read_brain(case, brains)
    own, axes = space_in(case.scan), space_in(mask_file)  # the prepared scan has the axes of the mask
    space = centred_space(axes, centre_in(axes, brain, own), grid.shape, grid.spacing_mm)
    placed_head, placed_brain = (resample(m[None], own, space)[0] for m in (find_head(scan, case, brain), brain))
    placed_mask = resample(mask[None], axes, space)[0]
    require_mask_in_head(placed_mask, placed_head | placed_brain, case)
    scan_name, mask_name = f"{case.stem}{grid.ext}", f"{stem_of(mask_file)}{grid.ext}"
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
    sources = {"source": str(case.scan.relative_to(root)), "mask": str(mask_file.relative_to(root))}
    # Written last: its presence says that the volumes are whole.
    write_json(record, {**sources, "made_of": made_of, **space.as_json, "row": row})
    return row


def describe_scan(mask: np.ndarray, brain: np.ndarray, spacing_mm: Spacing) -> dict:
    """Shape, spacing and lesions of a scan, from (D, H, W) bool masks, as columns of ``cohort.csv``.

    ``shape`` and ``spacing_mm`` are "H W D", and ``size`` is the bin (`SIZE_BINS`) of the lesions' share of the brain.
    """
    lesion_voxels, (n_lesions, cm3) = int(np.count_nonzero(mask)), lesion_load(mask, spacing_mm)
    return {
        "shape": " ".join(map(str, np.roll(mask.shape, -1))),
        "spacing_mm": " ".join(str(round(float(size), 6)) for size in np.roll(spacing_mm, -1)),
        "lesion_voxels": lesion_voxels,
        "lesion_cm3": round(cm3, 4),
        "n_lesions": n_lesions,
        "size": str(size_bin(lesion_voxels, int(np.count_nonzero(brain)))),
        "laterality": laterality(mask, brain),
    }


def laterality(mask: np.ndarray, brain: np.ndarray) -> str:
    """The side, along H, that holds the lesion; "" where there is none."""
    across = np.flatnonzero(brain.any((0, 2)))
    if not mask.any() or not len(across):
        return ""
    middle = (across[0] + across[-1] + 1) // 2
    left = np.count_nonzero(mask[:, :middle]) / np.count_nonzero(mask)
    return "left" if left >= ONE_SIDED else "right" if left <= 1 - ONE_SIDED else "both"


def remove_prepared(record: Path, out_dir: Path) -> None:
    """Remove what was prepared of a scan, its record first, if it has one; its mask may have had another name."""
    if record.exists():
        row = read_record(record)["row"]
        scan, mask = out_dir / "Scans" / row["scan"], out_dir / "Masks" / row["mask"]
        for file in (record, scan, mask, out_dir / BRAINS / brain_name(scan)):
            file.unlink(missing_ok=True)


def record_path(scan: Path | str, prepared_dir: Path) -> Path:
    """The record of a scan by its file name, original or prepared: both have the same stem."""
    return prepared_dir / "Geometry" / f"{stem_of(scan)}.json"


def read_record(path: Path) -> dict[str, Any]:
    """The record of a prepared scan: what `prepare_case` wrote, and its grid as the `Space` ``space``."""
    content = read_json(path)
    try:
        return {name: content[name] for name in RECORDED} | {"space": space_from_json(content)}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no record of a prepared scan ({error!r}); remove it and prepare again") from None
