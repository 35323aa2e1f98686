"""Bring a published data set onto one grid: ``python -m data.prepare --dataset atlas --root DIR --out_dir DIR``.

Scans and masks are turned to RAS, resampled where their spacing differs, and cropped or padded about the brain. Voxels
are copied, not interpolated, where the spacing is right already. `data.restore` takes predictions back.
"""

import argparse
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.checks import check_alignment, find_head, read_mask, read_scan, require_mask_in_head
from data.cohort import Case
from data.layouts import LAYOUTS, Layout, find_cases
from data.overview import describe_scan, draw_overview, lesion_cm3
from data.records import Record, read_record, record_path, write_record
from data.space import Space, centred_space, resample
from data.volumes import read_header, stem_of, write_volume
from utils import cli
from utils.errors import UserError
from utils.files import atomic_path, require_writable
from utils.parallel import map_in_order
from utils.provenance import open_run

BYTES_PER_VOXEL = 5  # float32 scan and uint8 mask
# Half a per cent at each end: noses, necks and stray voxels do not pull the brain off the centre.
HEAD_EXTENT = (0.005, 0.995)
SHRUNK = 0.95  # a lesion that keeps less of its volume was cut by the grid or lost to a coarse spacing


@dataclass(frozen=True)
class Settings:
    """What fixes the prepared files. Shapes and spacings run along (D, H, W)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    ext: str


@dataclass(frozen=True)
class PlacedCase:
    """A case on its prepared grid: scan (C, D, H, W) float32 in its own units, mask and head (D, H, W) bool."""

    scan: np.ndarray
    mask: np.ndarray
    head: np.ndarray
    space: Space
    source_lesion_cm3: float


def prepare_case(case: Case, settings: Settings, root: Path, out_dir: Path) -> dict:
    """Prepare one scan and its mask unless that was done, and return its row of ``cohort.csv``."""
    record = record_path(case.scan, out_dir)
    if not record.exists():
        placed = place_case(case, settings)
        scan_path = out_dir / "Scans" / f"{case.stem}{settings.ext}"
        mask_path = out_dir / "Masks" / f"{stem_of(case.mask)}{settings.ext}"
        write_volume(scan_path, placed.scan, placed.space.affine)
        write_volume(mask_path, placed.mask[None].astype(np.uint8), placed.space.affine)
        row = {
            "subject": case.subject,
            "session": case.session,
            "scan": scan_path.name,
            "mask": mask_path.name,
            **describe_scan(placed.mask, placed.head, placed.space.spacing_mm),
            "source_lesion_cm3": placed.source_lesion_cm3,
        }
        # Written last: its presence says that the volumes are whole.
        write_record(record, Record(str(case.scan.relative_to(root)), placed.space, row))
    return read_record(record).row


def place_case(case: Case, settings: Settings) -> PlacedCase:
    """Bring a case onto its prepared grid, whose axes are those of the mask."""
    scan, mask = read_scan(case)[0], read_mask(case)
    scan_space, mask_space = (Space(h.shape[1:], h.affine) for h in map(read_header, (case.scan, case.mask)))
    head = find_head(scan, case)
    centre_mm = scan_space.affine @ [*np.roll(_centre(head), -1), 1]
    centre = np.roll(np.linalg.solve(mask_space.affine, centre_mm)[:3], 1)
    space = centred_space(mask_space, tuple(centre), settings.shape, settings.spacing_mm)
    placed_head = resample(head[None], scan_space, space)[0]
    placed_mask = resample(mask[None], mask_space, space)[0]
    require_mask_in_head(placed_mask, placed_head, case)
    source_cm3 = lesion_cm3(np.count_nonzero(mask), mask_space.spacing_mm)
    return PlacedCase(resample(scan, scan_space, space), placed_mask, placed_head, space, source_cm3)


def _centre(head: np.ndarray) -> np.ndarray:
    """(D, H, W) in voxels, midway between the ends of the head."""
    centre = []
    for axis in range(3):
        mass = np.cumsum(np.count_nonzero(head, axis=tuple({0, 1, 2} - {axis})))
        centre.append(np.searchsorted(mass, np.multiply(HEAD_EXTENT, mass[-1])).mean())
    return np.array(centre)


# --- a whole cohort ------------------------------------------------------------------------------------


def prepare_cohort(
    cases: list[Case], settings: Settings, root: Path, out_dir: Path, num_workers: int
) -> tuple[list[dict], list[str]]:
    """Prepare all cases; rows of ``cohort.csv`` and, of the cases that cannot be read, the reasons.

    A broken file does not stop the others: they are done when it has been mended.
    """
    rows, refused = [], []
    work = partial(_try_case, settings=settings, root=root, out_dir=out_dir)
    results = map_in_order(work, cases, num_workers)
    for row, reason in tqdm(results, "Preparing scans", len(cases), unit="scan"):
        rows.append(row) if reason is None else refused.append(reason)
    return rows, refused


def _try_case(case: Case, **where) -> tuple[dict | None, str | None]:
    try:
        return prepare_case(case, **where), None
    except UserError as error:
        return None, str(error)


def check_headers(cases: list[Case], layout: Layout) -> None:
    for case in tqdm(cases, "Checking headers", unit="scan", leave=False):
        if layout.scan_has_own_grid:
            read_header(case.scan)
        else:
            check_alignment(case)


# --- command -------------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = cli.make_parser("Prepare ATLAS v2.0 or ISLES 2022 as published: one grid, a table, pictures.")
    parser.add_argument("--dataset", choices=list(LAYOUTS), required=True, help="layout of the published files")
    parser.add_argument("--root", required=True, help="folder of the data set as it was unpacked")
    parser.add_argument(
        "--out_dir",
        default="data/ATLAS_2/Processed/Base",
        help="folder for Scans/, Masks/, cohort.csv, cohort.png and Geometry/",
    )
    cli.add_scan_dim(parser, default=None, suffix="; None for the data set's own")
    parser.add_argument(
        "--spacing",
        type=cli.positive_float,
        nargs=3,
        default=None,
        metavar=("D", "H", "W"),
        help="voxel size in mm to resample to; None for the data set's own",
    )
    cli.add_extension(parser)
    cli.add_num_workers(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    layout, root, out_dir = LAYOUTS[args.dataset], Path(args.root).absolute(), Path(args.out_dir)
    cases = find_cases(root, layout)
    check_headers(cases, layout)
    shape = tuple(args.scan_dim or layout.scan_dim)[1:]
    require_writable(out_dir, "--out_dir", len(cases) * math.prod(shape) * BYTES_PER_VOXEL)
    open_run(out_dir, {**vars(args), "root": str(root)})
    settings = Settings(shape, tuple(args.spacing or layout.spacing_mm), args.ext)
    rows, refused = prepare_cohort(cases, settings, root, out_dir, args.num_workers)
    if refused:
        raise UserError(f"{refused[0]} ({len(refused)} of {len(cases)} scans refused, the others are prepared)")
    table = pd.DataFrame(rows)
    draw_overview(table, out_dir, layout.in_mni)
    with atomic_path(out_dir / "cohort.csv") as temporary:
        table.to_csv(temporary, index=False)
    _report(table, out_dir)


def _report(table: pd.DataFrame, out_dir: Path) -> None:
    kept = table.lesion_cm3 / table.source_lesion_cm3
    if (kept < SHRUNK).any():
        print(
            f"{(kept < SHRUNK).sum()} scans lose lesion to the grid or its spacing, most of all "
            f"{table.scan[kept.idxmin()]}; see source_lesion_cm3 in cohort.csv"
        )
    print(f"{len(table)} scans are in {out_dir}; look at {out_dir / 'cohort.png'}")


if __name__ == "__main__":
    cli.run(main, parse_args)
