"""Bring a data set onto one grid: ``python -m data.prepare --dataset atlas --root DIR --out_dir DIR``."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data.files.listing import counted
from data.prepare.cohort import BYTES_PER_VOXEL, SHRUNK, kept_brains, prepare_cohort, remove_absent
from data.prepare.fit import Settings, check_headers, fit_brains, shape_for, spacing_for
from data.prepare.layouts import LAYOUTS, choose_layout, find_cases
from data.prepare.overview import draw_overview
from utils import cli
from utils.errors import UserError
from utils.files import atomic_path, require_writable
from utils.provenance import open_run

OUT_DIR = "data/ATLAS_2/Processed/Base"  # of ATLAS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.make_parser("Prepare ATLAS v2.0, ISLES 2022 or any folder of scans: one grid, a table, pictures.")
    parser.add_argument(
        "--dataset",
        choices=list(LAYOUTS),
        required=True,
        help="layout of the files: of a data set as published, or bids for any other folder",
    )
    parser.add_argument("--root", required=True, help="folder of the data set as it was unpacked")
    cli.add_patterns(parser, "--root", "with --dataset bids: ")
    parser.add_argument(
        "--out_dir",
        default=None,
        help=f"folder for Scans/, Masks/, Brains/, cohort.csv, cohort.png and Geometry/; None for {OUT_DIR} with atlas",
    )
    cli.add_brains(parser)
    cli.add_scan_dim(parser, default=None, suffix="; None for the data set's own, or for what holds every brain (bids)")
    cli.add_spacing(parser, "; None for the data set's own, or for the median of the masks (bids)")
    cli.add_extension(parser)
    cli.add_num_workers(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    layout, root, out_dir = choose_layout(args), Path(args.root).absolute(), _choose_out_dir(args)
    cases = find_cases(root, layout, out_dir, args.brains_dir)
    scan_dim = args.scan_dim or layout.scan_dim
    channels = check_headers(cases, layout, scan_dim and scan_dim[0])
    require_writable(out_dir, "--out_dir")
    open_run(out_dir, {**vars(args), "root": str(root)}, begun=any(out_dir.glob("Geometry/*.json")))
    settings = Settings(scan_dim and tuple(scan_dim[1:]), spacing_for(cases, layout, args.spacing), args.ext)
    if removed := remove_absent(cases, out_dir):
        print(f"No longer in {root}: {counted(removed, 'scan')}; the prepared files were removed from {out_dir}")
    fits, unread = fit_brains(cases, settings, kept_brains(out_dir), args.num_workers)
    readable = [case for case in cases if case.name in fits]
    if not readable:
        raise UserError(f"{unread[0]} ({len(unread)} of {len(cases)} scans refused)")
    settings = replace(settings, shape=shape_for(readable, fits, settings.shape, channels))
    require_writable(out_dir, "--out_dir", len(readable) * math.prod(settings.shape) * BYTES_PER_VOXEL)
    rows, refused = prepare_cohort(readable, settings, root, out_dir, args.num_workers)
    if refused := unread + refused:
        raise UserError(f"{refused[0]} ({len(refused)} of {len(cases)} scans refused, the others are prepared)")
    table = pd.DataFrame(rows)
    draw_overview(table, out_dir, layout.in_mni)
    with atomic_path(out_dir / "cohort.csv") as temporary:
        table.to_csv(temporary, index=False)
    _report(table, out_dir)


def _choose_out_dir(args: argparse.Namespace) -> Path:
    if args.out_dir is None and args.dataset != "atlas":
        raise UserError(f"--out_dir is missing: --dataset {args.dataset} has no folder of its own; name one")
    return Path(args.out_dir or OUT_DIR)


def _report(table: pd.DataFrame, out_dir: Path) -> None:
    kept = table.lesion_cm3 / table.source_lesion_cm3
    if (kept < SHRUNK).any():
        print(
            f"Lesion lost to the grid or its spacing: {counted((kept < SHRUNK).sum(), 'scan')}, most of all "
            f"{table.scan[kept.idxmin()]}; see source_lesion_cm3 in cohort.csv"
        )
    print(_brains_text(table))
    print(f"Prepared in {out_dir}: {counted(len(table), 'scan')}; look at {out_dir / 'cohort.png'}")


def _brains_text(table: pd.DataFrame) -> str:
    """Where the brains come from, with the mend where there is none."""
    scans = {kind: table.scan[table.brain == kind] for kind in ("found", "given", "head")}
    told = [
        f"{kind} in {counted(len(names), 'scan')}" for kind, names in scans.items() if len(names) and kind != "head"
    ]
    if len(heads := scans["head"]):
        whose = f"{counted(len(heads), 'scan')} with a skull (e.g. {heads.iloc[0]})"
        told.append(f"not found in {whose}: the head stands for it; give masks with --brains_dir, or stripped scans")
    return f"Brain {', '.join(told)}"


if __name__ == "__main__":
    cli.run(main, parse_args)
