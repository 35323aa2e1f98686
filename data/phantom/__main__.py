"""A synthetic stroke cohort that needs no download: ``python -m data.phantom --out_dir data/demo``.

Scans are warped MNI152 templates with drawn lesions; they are no patients, and no number measured on them says how
well a method does on patients.
"""

import argparse
from pathlib import Path

from utils.cli import extension, fraction, make_parser, non_negative_int, positive_float, positive_int, run
from utils.errors import UserError

COARSEST_SPACING_MM = 20  # beyond it a lesion of a single voxel exceeds ATLAS's median by far, or finds no tissue


def parse_args() -> argparse.Namespace:
    parser = make_parser("Write a synthetic stroke cohort in the layout and names of ATLAS v2.0.")
    parser.add_argument("--out_dir", required=True, help="folder for Scans/, Masks/ and cohort.csv")
    parser.add_argument("--n_subjects", type=positive_int, default=30, help="subjects, one scan each")
    parser.add_argument("--spacing", type=positive_float, default=1.0, help="isotropic voxel size in mm")
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
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.spacing > COARSEST_SPACING_MM:
        raise UserError(f"--spacing {args.spacing:g} is too coarse for a head; give at most {COARSEST_SPACING_MM} mm")

    from data.phantom.cohort import Settings, write_cohort  # loads libraries: not before the arguments are right

    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    write_cohort(settings, Path(args.out_dir), args.num_workers)
    print(f"{args.n_subjects} synthetic scans (no patients) are in {args.out_dir}")


if __name__ == "__main__":
    run(main, parse_args)
