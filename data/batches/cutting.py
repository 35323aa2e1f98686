"""Axial slices cut of prepared scans, in the 2D folders that the RPN reads, with ``slices.csv`` beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from data.files.names import stem_of
from data.scans.cohort import BRAINS, Case
from data.scans.grid import Grid
from data.scans.prepared import PreparedScan, prepared_key
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_csv, write_json
from utils.progress import map_in_order

EIGHT_CONNECTED = np.ones((3, 3), bool)
# Of ``slices.csv`` and, with full paths, of a table of slices in memory.
COLUMNS = ["scan", "mask", "volume", "subject", "slice", "depth", "spacing_mm"]
COLUMNS += ["brain_voxels", "lesion_voxels", "boxes"]
MEASURES = ["slice", "brain_voxels", "lesion_voxels", "boxes"]  # that `measure_slices` takes
# What a folder of slices holds; a record in ``cache/`` has the rows of a case, all of whose slices are there.
PATTERNS = {"Scans": "*_slice-*.npy", "Masks": "*_slice-*.npy", BRAINS: "*.*", "cache": "*.json"}


def write_slices(item: tuple[Case, str], prepare: Callable[[Case], PreparedScan], out_dir: Path) -> list[list]:
    """Write every slice with brain of one case and return their rows of ``slices.csv``, which its record holds too."""
    case, record = item
    prepared = prepare(case)
    rows = []
    spacing = " ".join(map(str, prepared.spacing_mm or []))
    brain = brain_path(out_dir / "Scans" / case.name, case.name)
    _save(brain, prepared.brain)
    write_json(brain.with_suffix(".json"), prepared.space.as_json)  # slices have no affine
    for z, *measures in measure_slices(prepared):
        scan_file = f"{case.stem}_slice-{z:03d}.npy"
        mask_file = f"{stem_of(case.lesion_mask)}_slice-{z:03d}.npy"
        _save(out_dir / "Scans" / scan_file, prepared.scan[:, z])
        _save(out_dir / "Masks" / mask_file, prepared.lesions[None, z].astype(np.uint8))
        rows.append([scan_file, mask_file, case.name, case.subject, z, len(prepared.brain), spacing, *measures])
    write_json(out_dir / "cache" / record, rows)  # last: its presence says that the slices are there
    return rows


def measure_slices(prepared: PreparedScan) -> list[list]:
    """`MEASURES` of every slice with brain."""
    rows = []
    for z, (brain, lesions) in enumerate(zip(prepared.brain, prepared.lesions, strict=True)):
        if area := int(np.count_nonzero(brain)):
            lesion = int(np.count_nonzero(lesions))
            rows.append([z, area, lesion, boxes_text(lesion_boxes(lesions)) if lesion else ""])
    return rows


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def brain_path(scan: Path | str, volume: str) -> Path:
    """The brain mask of the volume that a scan slice is of."""
    return Path(scan).parent.parent / BRAINS / f"{stem_of(volume)}.npy"


def cut_cohort(
    cases: list[Case], grid: Grid, prepare: Callable[[Case], PreparedScan], out_dir: Path, num_workers: int = 0
) -> pd.DataFrame:
    """Cut all cases into `out_dir`; the table of their slices.

    Slices of a case that has not changed since an earlier call stay. Nothing else of an earlier call does: a subject
    that has left the cohort would come back through its slices. `prepare` makes the scan of a case on `grid`.
    """
    records = {case: f"{prepared_key(case, grid)}.json" for case in cases}
    (out_dir / "slices.csv").unlink(missing_ok=True)
    rows = _remove_outdated(records, out_dir)
    missing = [(case, records[case]) for case in cases if case not in rows]
    work = partial(write_slices, prepare=prepare, out_dir=out_dir)
    cut = map_in_order(work, missing, num_workers, "Cutting slices")
    rows.update({case: of_case for (case, _), of_case in zip(missing, cut, strict=True)})
    table = pd.DataFrame([row for case in cases for row in rows[case]], columns=COLUMNS)
    # Written last: its presence says that all slices are there.
    write_csv(out_dir / "slices.csv", table)
    for column, folder in (("scan", "Scans"), ("mask", "Masks")):
        table[column] = [str(out_dir / folder / name) for name in table[column]]
    return table.sort_values(["volume", "slice"], ignore_index=True)


def _remove_outdated(records: dict[Case, str], out_dir: Path) -> dict[Case, list[list]]:
    """The rows of the cases whose slices are all there; the files of all others are removed."""
    existing = {f"{folder}/{path.name}" for folder, kind in PATTERNS.items() for path in (out_dir / folder).glob(kind)}
    valid: set[str] = set()
    rows = {}
    for case, record in records.items():
        try:
            of_case = read_json(out_dir / "cache" / record)
        except UserError:  # none yet, or a broken one: the slices are cut anew
            continue
        files = {f"cache/{record}", f"{BRAINS}/{case.stem}.npy", f"{BRAINS}/{case.stem}.json"}
        files.update(name for scan, mask, *_ in of_case for name in (f"Scans/{scan}", f"Masks/{mask}"))
        if files <= existing:
            rows[case] = of_case
            valid |= files
    for name in existing - valid:
        (out_dir / name).unlink()
    return rows


def lesion_boxes(mask: np.ndarray) -> np.ndarray:
    """Boxes around the 8-connected lesions of a slice, a mask (H, W) bool: (N, 4) float32.

    (xmin, ymin, xmax, ymax) in voxels, half-open, x along W and y along H.
    """
    labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def boxes_text(boxes: np.ndarray) -> str:
    """Boxes (N, 4) as ``slices.csv`` holds them: "xmin ymin xmax ymax", with semicolons between."""
    return "; ".join(" ".join(f"{edge:.0f}" for edge in box) for box in boxes)


def boxes_of(table: pd.DataFrame) -> np.ndarray:
    """All boxes of a table of slices, (N, 4) float32."""
    boxes = [box.split() for text in table.boxes if text for box in text.split(";")]
    return np.array(boxes, np.float32).reshape(-1, 4)
