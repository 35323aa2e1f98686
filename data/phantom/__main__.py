"""A synthetic stroke cohort that needs no download: ``python -m data.phantom --out_dir data/demo``.

Scans are warped MNI152 templates with drawn lesions; they are no patients, and no number measured on them says how
well a method does on patients.
"""

import argparse
import math
from pathlib import Path

from utils.cli import extension, fraction, make_parser, non_negative_int, positive_float, positive_int, run
from utils.errors import UserError

COARSEST_SPACING_MM = 20  # beyond it a lesion of a single voxel exceeds ATLAS's median by far, or finds no tissue
FINEST_MM3 = 0.1  # of a voxel: a scan of 90 million voxels, near the largest file that scripts read


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("Write a synthetic stroke cohort in the layout and names of ATLAS v2.0.")
    parser.add_argument("--out_dir", required=True, help="folder for Scans/, Masks/, TrueBrains/, cohort.csv")
    parser.add_argument("--n_subjects", type=positive_int, default=30, help="subjects, one scan each")
    parser.add_argument("--modality", choices=("t1w", "flair", "dwi"), default="t1w", help="contrast of the scans")
    parser.add_argument(
        "--spacing",
        type=positive_float,
        nargs="+",
        default=[1.0],
        help="voxel size in mm: one number, or three along D H W (3 1 1 has thick axial slices)",
    )
    parser.add_argument(
        "--mask_spacing",
        type=positive_float,
        nargs="+",
        default=None,
        help="voxel size of the masks in mm, as --spacing, where they have a grid of their own; .nii and .nii.gz only",
    )
    parser.add_argument(
        "--oblique", action="store_true", help="tilt the slices against the scanner, as in ISLES 2022; not with .npy"
    )
    parser.add_argument("--stripped", action="store_true", help="brains alone, without skull, scalp, eyes and neck")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the cohort")
    parser.add_argument("--ext", type=extension, default=".npy", help="file extension: .npy, .nii or .nii.gz")
    parser.add_argument("--healthy_fraction", type=fraction, default=0.1, help="share of subjects without lesion")
    parser.add_argument(
        "--lesion_contrast", type=fraction, default=1.0, help="1 for a core as dark as CSF, 0 for none to be seen"
    )
    parser.add_argument(
        "--warp_mm", type=positive_float, default=3.0, help="standard deviation of the smooth warp in mm"
    )
    parser.add_argument("--num_workers", type=positive_int, default=1, help="processes")
    return parser.parse_args(argv)


def three_sizes(sizes: list[float], argument: str) -> tuple[float, float, float]:
    """(D, H, W) of one number or three."""
    if len(sizes) not in (1, 3):
        raise UserError(f"{argument} has {len(sizes)} numbers; give one, or three along D H W")
    if max(sizes) > COARSEST_SPACING_MM:
        raise UserError(f"{argument} {max(sizes):g} is too coarse for a head; give at most {COARSEST_SPACING_MM} mm")
    sizes = tuple(sizes * 3 if len(sizes) == 1 else sizes)
    if math.prod(sizes) < FINEST_MM3:
        raise UserError(f"{argument} makes voxels of {math.prod(sizes):.2g} mm3; give at least {FINEST_MM3} mm3")
    return sizes


def main(args: argparse.Namespace) -> None:
    args.spacing = three_sizes(args.spacing, "--spacing")
    if args.mask_spacing is not None:
        args.mask_spacing = three_sizes(args.mask_spacing, "--mask_spacing")
    if args.ext == ".npy" and (args.oblique or args.mask_spacing not in (None, args.spacing)):
        argument = "--oblique" if args.oblique else "--mask_spacing"
        raise UserError(f"{argument} needs a file that says where it lies, which .npy does not; give --ext .nii.gz")

    from data.phantom.cohort import Settings, write_cohort  # loads libraries: not before the arguments are right

    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    write_cohort(settings, Path(args.out_dir), args.num_workers)
    print(f"{args.n_subjects} synthetic scans (no patients) are in {args.out_dir}")


if __name__ == "__main__":
    run(main, parse_args)
