"""Make new training scans: ``python -m augmentation --scans_dir DIR --masks_dir DIR --out_dir data/Augmented``.

Lesions of sick slices are moved onto healthy ones that are like them, by Poisson image editing. The folder gets
``Scans/``, ``Masks/``, ``provenance.json`` (who gave what, so that no fold trains on its test subjects) and
``contact_sheet.png``. A stopped run goes on where it was.
"""

import argparse
from pathlib import Path

import numpy as np

from augmentation.cohort import index_cohort
from augmentation.contact_sheet import draw_contact_sheet
from augmentation.output import write_all
from augmentation.pairs import Criteria
from augmentation.transfer import PLACES, Settings
from data.files.volumes import read_header
from data.scans.admission import admit
from data.scans.brain import with_brains
from data.scans.checks import check_headers, require_one_grid
from data.scans.cohort import pair_cases, refuse_augmented
from data.scans.fingerprints import fingerprint_cases
from data.scans.grid import Grid
from data.scans.prepared import brains_in
from utils import cli
from utils.errors import UserError
from utils.files import require_writable
from utils.provenance import open_run

BYTES_PER_VOXEL = 5  # float32 scan and uint8 mask


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.make_parser("Make new training scans by moving lesions between subjects with Poisson image editing.")
    cli.add_seed(parser)
    cli.add_cohort(parser)
    cli.add_brains(parser)
    parser.add_argument(
        "--out_dir",
        default="data/ATLAS_2/Processed/Augmented/",
        help="folder for Scans/, Masks/ and provenance.json of the augmented scans",
    )
    parser.add_argument(
        "--mode",
        choices=("slice", "volume"),
        default="volume",
        help="lesions of single slices, or whole 3D lesions on which neighbouring slices agree",
    )
    parser.add_argument("--copies", type=cli.positive_int, default=1, help="augmented scans of each scan")
    cli.add_num_workers(parser)
    add_pairs(parser)
    add_transfer(parser)
    return parser.parse_args(argv)


def add_pairs(parser: argparse.ArgumentParser) -> None:
    group, default = parser.add_argument_group("pairs of a healthy and a sick slice"), Criteria()
    group.add_argument("--min_iou", type=cli.fraction, default=default.min_iou, help="least overlap of the brains")
    group.add_argument("--min_ssim", type=cli.fraction, default=default.min_ssim, help="least structural similarity")
    group.add_argument(
        "--max_depth_difference",
        type=cli.non_negative_int,
        default=default.max_depth_difference,
        help="slices that the two may be apart",
    )
    group.add_argument(
        "--candidates",
        type=cli.positive_int,
        default=default.candidates,
        help="sick slices looked at for a healthy one",
    )
    group.add_argument(
        "--partners", type=cli.positive_int, default=default.partners, help="pairs after which the search ends"
    )


def add_transfer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lesions and their transfer")
    group.add_argument("--donors", type=cli.positive_int, default=8, help="scans that lend to one augmented scan")
    group.add_argument("--lesions", type=cli.positive_int, default=2, help="new lesions of a scan (volume)")
    group.add_argument(
        "--slices", type=cli.fraction, default=0.5, help="share of the healthy slices that get one (slice)"
    )
    group.add_argument(
        "--place",
        choices=("donor", "anywhere"),
        default=None,
        help="where a lesion goes: the place it had in its own head (default for slice), or any in the brain off "
        "ventricles and lesions (default for volume)",
    )
    group.add_argument("--max_angle", type=cli.non_negative_float, default=15.0, help="largest turn in degrees")
    group.add_argument(
        "--min_scale",
        type=cli.positive_fraction,
        default=1.0,
        help="least diameter of a moved lesion, as a share of its own; 1 to leave its size",
    )
    group.add_argument("--max_erosion", type=cli.non_negative_int, default=2, help="largest erosion in voxels")
    group.add_argument("--mixed", action="store_true", help="keep the recipient's gradients where they are larger")
    group.add_argument(
        "--rim",
        type=cli.non_negative_float,
        default=3.0,
        help="voxels over which tissue becomes lesion, one too thin for it made fainter; 0 for a hard edge",
    )


def main(args: argparse.Namespace) -> None:
    cases = pair_cases([args.scans_dir], [args.masks_dir], args.ext, ("--scans_dir", "--masks_dir"))
    refuse_augmented(cases, "--scans_dir")
    cases = with_brains(cases, args.brains_dir)
    out_dir = Path(args.out_dir)
    args.place = args.place or PLACES[args.mode]
    if len({case.subject for case in cases}) < 2:
        raise UserError(f"--scans_dir {args.scans_dir} holds one subject; lesions are moved between two or more")
    grid = Grid(read_header(cases[0].scan).shape)
    check_headers(cases, grid.scan_dim, None)
    require_one_grid(cases)
    n_bytes = len(cases) * (grid.bytes_per_scan + args.copies * BYTES_PER_VOXEL * int(np.prod(grid.shape)))
    require_writable(out_dir, "--out_dir", n_bytes)
    cache_dir = out_dir / "cache"
    admit(cases, grid, brains_in(cache_dir), args.num_workers, cache_dir)
    open_run(out_dir, vars(args))
    digests = fingerprint_cases(cases, out_dir / "sources.json", args.num_workers)
    cohort = index_cohort(cases, grid, cache_dir, args.num_workers)
    write_all(cohort, digests, settings_of(args), args.copies, out_dir, args.num_workers)
    draw_contact_sheet(cohort, out_dir)


def settings_of(args: argparse.Namespace) -> Settings:
    given = vars(args)
    criteria = Criteria(**{name: given[name] for name in Criteria.__dataclass_fields__})
    return Settings(criteria=criteria, **{n: given[n] for n in Settings.__dataclass_fields__ if n != "criteria"})


if __name__ == "__main__":
    cli.run(main, parse_args)
