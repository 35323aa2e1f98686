"""Arguments on data: the cohort, its folds, its grid, and how it is loaded."""

from utils.cli.types import SplitsAction, extension, non_negative_int, positive_float, positive_int
from utils.defaults import SCAN_DIM

LAUNCHERS = ("sequential", "ray")
TRANSFORM_NAMES = ("flip", "affine", "contrast", "noise", "bias_field", "resolution", "lesion_contrast")


def add_seed(parser) -> None:
    parser.add_argument("--seed", type=non_negative_int, default=42, help="seed of all random generators")


def add_cohort(parser) -> None:
    group = parser.add_argument_group("cohort")
    group.add_argument("--scans_dir", required=True, help="folder of 3D scans (e.g. *T1w*.npy)")
    group.add_argument("--masks_dir", required=True, help="folder of their masks (e.g. *T1lesion_mask*.npy)")
    add_extension(group)


def add_extension(group) -> None:
    group.add_argument("--ext", type=extension, default=".npy", help="file extension: .npy, .nii or .nii.gz")


def add_brains(parser) -> None:
    parser.add_argument(
        "--brains_dir",
        nargs="+",
        default=None,
        metavar="DIR",
        help="folders of brain masks made elsewhere, one for each scan; None for Brains/ beside the folder of the "
        "scans or, where there is none, to find the brains",
    )


def add_patterns(parser, where: str, condition: str = "") -> None:
    for what in ("scan", "mask"):
        parser.add_argument(
            f"--{what}_pattern",
            default=None,
            metavar="PATTERN",
            help=f"{condition}names of the {what}s, as of a shell ('*_T1w'), or of the paths below {where} if it has a "
            "slash; None for what the names tell",
        )


def add_spacing(parser, what: str = "; None for the median of the scans") -> None:
    parser.add_argument(
        "--spacing",
        type=positive_float,
        nargs=3,
        default=None,
        metavar=("D", "H", "W"),
        help=f"voxel size in mm that scans are resampled to{what}",
    )


def add_train_val(parser, what: str) -> None:
    group = parser.add_argument_group("training and validation data")
    for part in ("train", "val"):
        group.add_argument(f"--{part}_scans", required=True, help=f"folder of {part} {what}")
        group.add_argument(f"--{part}_masks", required=True, help=f"folder of {part} masks")


def add_folds(parser) -> None:
    group = parser.add_argument_group("folds")
    group.add_argument("--k", type=positive_int, default=5, help="number of folds")
    group.add_argument(
        "--splits",
        type=non_negative_int,
        nargs=3,
        default=[70, 10, 20],
        action=SplitsAction,
        metavar=("TRAIN", "VAL", "TEST"),
        help="percentages of subjects; they sum to 100",
    )
    group.add_argument("--folds", default=None, help="folds.json of an earlier run to use instead")
    part = group.add_mutually_exclusive_group()
    part.add_argument(
        "--folds_to_run",
        type=non_negative_int,
        nargs="+",
        default=None,
        metavar="FOLD",
        help="numbers of the folds to run now, from 0; None for all",
    )
    part.add_argument("--aggregate", action="store_true", help="run nothing: sum up the folds that have been run")
    group.add_argument(
        "--use_augmented",
        action="store_true",
        help="add augmented scans to the training folds where there are any",
    )
    group.add_argument(
        "--augmented_dir",
        default="data/ATLAS_2/Processed/Augmented/",
        help="folder with Scans/, Masks/ and provenance.json of the augmented scans",
    )


def add_launcher(parser) -> None:
    group = parser.add_argument_group("where folds run")
    group.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="sequential",
        help="one fold after the other in this process, or each as a task of a Ray cluster (requirements-ray.txt)",
    )
    group.add_argument(
        "--ray_address",
        default=None,
        metavar="HOST:PORT",
        help="the Ray cluster, auto for that of this machine; None to start one here and end it",
    )
    group.add_argument(
        "--gpus_per_fold",
        type=non_negative_int,
        default=None,
        help="GPUs of each fold under Ray; None for 1 where the cluster has any",
    )


def add_grid(parser) -> None:
    group = parser.add_argument_group("grid")
    add_scan_dim(group, default=list(SCAN_DIM))
    add_resize_to(group)


def wanted_scan_dim(args) -> list[int] | None:
    """``--scan_dim``, or None where it was left at its default: a network knows the grid that it learned on."""
    return None if args.scan_dim == list(SCAN_DIM) else args.scan_dim


def add_scan_dim(group, default: list[int] | None, suffix: str = "") -> None:
    group.add_argument(
        "--scan_dim",
        type=positive_int,
        nargs=4,
        default=default,
        metavar=("C", "D", "H", "W"),
        help=f"shape that scans are centre-cropped or padded to{suffix}",
    )


def add_resize_to(group) -> None:
    group.add_argument(
        "--resize_to",
        type=positive_int,
        nargs=2,
        default=None,
        metavar=("H", "W"),
        help="in-plane size that whole slices are resampled to, in place of cropping",
    )


def add_loader(parser, batch_size: int) -> None:
    group = parser.add_argument_group("loading")
    group.add_argument("--batch_size", type=positive_int, default=batch_size, help="items per batch")
    add_num_workers(group)


def add_rpn_batch_size(group) -> None:
    group.add_argument("--rpn_batch_size", type=positive_int, default=32, help="slices per batch")


def add_num_workers(group) -> None:
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=0,
        help="processes that check, prepare and load data; 0 for this one",
    )


def add_transforms(parser) -> None:
    parser.add_argument(
        "--transforms",
        nargs="+",
        choices=TRANSFORM_NAMES,
        default=None,
        help="random augmentations of the training data, of slices and of regions alike",
    )
