"""Bring a published data set onto one grid: ``python -m data.prepare --dataset atlas --root DIR --out_dir DIR``."""

import argparse
import math
from pathlib import Path

import pandas as pd

from data.listing import counted
from data.prepare.cohort import BYTES_PER_VOXEL, SHRUNK, Settings, check_headers, prepare_cohort, remove_absent
from data.prepare.layouts import LAYOUTS, find_cases
from data.prepare.overview import draw_overview
from utils import cli
from utils.errors import UserError
from utils.files import atomic_path, require_writable
from utils.provenance import open_run


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
    cli.add_spacing(parser, "; None for the data set's own")
    cli.add_extension(parser)
    cli.add_num_workers(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    layout, root, out_dir = LAYOUTS[args.dataset], Path(args.root).absolute(), Path(args.out_dir)
    cases = find_cases(root, layout, out_dir)
    check_headers(cases, layout)
    shape = tuple(args.scan_dim or layout.scan_dim)[1:]
    require_writable(out_dir, "--out_dir", len(cases) * math.prod(shape) * BYTES_PER_VOXEL)
    open_run(out_dir, {**vars(args), "root": str(root)})
    settings = Settings(shape, tuple(args.spacing or layout.spacing_mm), args.ext)
    if removed := remove_absent(cases, out_dir):
        print(f"No longer in {root}: {counted(removed, 'scan')}; the prepared files were removed from {out_dir}")
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
            f"Lesion lost to the grid or its spacing: {counted((kept < SHRUNK).sum(), 'scan')}, most of all "
            f"{table.scan[kept.idxmin()]}; see source_lesion_cm3 in cohort.csv"
        )
    print(f"Prepared in {out_dir}: {counted(len(table), 'scan')}; look at {out_dir / 'cohort.png'}")


if __name__ == "__main__":
    cli.run(main, parse_args)
