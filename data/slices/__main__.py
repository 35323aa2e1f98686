"""Cut 3D scans and masks into the 2D folders that the RPN scripts read: ``python -m data.slices``."""

import argparse
from functools import partial
from pathlib import Path

from data.batches.cutting import cut_cohort
from data.batches.slices import SOURCES_FILE, require_own_folder
from data.files.listing import counted
from data.scans.admission import admit
from data.scans.brain import with_brains
from data.scans.checks import check_headers
from data.scans.cohort import pair_cases
from data.scans.fingerprints import PREPARATION, fingerprint_cases
from data.scans.grid import choose_spacing, grid_of
from data.scans.prepared import prepare_scan
from utils.cli import add_brains, add_cohort, add_grid, add_num_workers, add_spacing, make_parser, run
from utils.files import require_writable, write_json
from utils.provenance import describe_run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("Cut 3D scans and masks into the 2D folders that the RPN scripts read.")
    add_cohort(parser)
    add_brains(parser)
    add_grid(parser)
    add_spacing(parser)
    add_num_workers(parser)
    parser.add_argument("--out_dir", required=True, help="folder for Scans/, Masks/ and slices.csv")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    cases = pair_cases([args.scans_dir], [args.masks_dir], args.ext, ("--scans_dir", "--masks_dir"))
    cases = with_brains(cases, args.brains_dir)
    check_headers(cases, args.scan_dim, args.resize_to)
    args.spacing = choose_spacing(cases, args.spacing, args.resize_to)
    require_writable(args.out_dir, "--out_dir")
    out_dir = Path(args.out_dir)
    require_own_folder(out_dir)
    brains, grid = out_dir / "cache", grid_of(args)
    admit(cases, grid, brains, args.num_workers)
    (out_dir / "slices.csv").unlink(missing_ok=True)  # first: an earlier cut must not pass for one of these scans
    fingerprint_cases(cases, out_dir / SOURCES_FILE, args.num_workers)
    write_json(out_dir / "run.json", {**describe_run(vars(args)), "inputs": {"code": PREPARATION}})
    table = cut_cohort(cases, grid, partial(prepare_scan, grid=grid, brains=brains), out_dir, args.num_workers)
    print(f"Cut into {args.out_dir}: {counted(len(table), 'slice')} of {counted(len(cases), 'scan')}")


if __name__ == "__main__":
    run(main, parse_args)
