"""Settings of data: where a cohort lies or how it is drawn, on which grid it is brought, how it is split and loaded."""

from dataclasses import dataclass

from utils.settings import MAY_DIFFER, option
from utils.validators import SplitsAction, extension, fraction, non_negative_int, pathname, positive_float, positive_int

SCAN_DIM = (1, 189, 192, 192)  # (C, D, H, W), of ATLAS
TRANSFORMS = ("flip", "affine", "contrast", "noise", "bias_field", "resolution", "lesion_contrast")


def seed_option():
    return option(non_negative_int, "seed of all random generators", 42, shared=True)


def workers_option():
    what = "processes that check, prepare and load data; 0 for this one"
    return option(non_negative_int, what, 0, on_resume=MAY_DIFFER, shared=True)


def transforms_option():
    what = "random augmentations of the training data, of slices and of windows alike"
    return option(str, what, shared=True, nargs="+", choices=TRANSFORMS)


def extension_option():
    return option(extension, "file extension: .npy, .nii or .nii.gz", ".npy")


def brains_option():
    what = "folders of brain masks; by default Brains/ beside the folder of the scans or, where there is none, to find "
    return option(pathname, what + "the brains", on_resume=MAY_DIFFER, nargs="+", metavar="DIR")


def pattern_option(what: str, where: str, condition: str = ""):
    names = f"{condition}names of the {what}s, as of a shell ('*_T1w'), or of the paths below {where} if it has a slash"
    return option(str, f"{names}; by default what the names say", metavar="PATTERN")


def augmented_option(folder: str):
    what = f"{folder} Scans/, Masks/ and provenance.json of the augmented scans"
    return option(pathname, what, "data/ATLAS_2/Processed/Augmented/", on_resume=MAY_DIFFER)


def shape_option(otherwise: str, default: tuple[int, int, int, int] | None = None):
    what = f"shape that scans are centre-cropped or padded to{otherwise}"
    return option(positive_int, what, default, nargs=4, metavar=("C", "D", "H", "W"))


def spacing_option(otherwise: str):
    what = f"voxel size in mm that scans are resampled to{otherwise}"
    return option(positive_float, what, nargs=3, metavar=("D", "H", "W"))


def resize_option():
    what = "in-plane size that whole slices are resampled to, in place of cropping"
    return option(positive_int, what, nargs=2, metavar=("H", "W"))


@dataclass(frozen=True)
class CohortFolders:
    """Cohort."""

    scans_dir: str = option(pathname, "folder of 3D scans (e.g. *T1w*.npy)", on_resume=MAY_DIFFER, required=True)
    masks_dir: str = option(
        pathname, "folder of their masks (*T1lesion_mask*.npy)", on_resume=MAY_DIFFER, required=True
    )
    ext: str = extension_option()
    brains_dir: tuple[str, ...] | None = brains_option()


@dataclass(frozen=True)
class TrainingFolders:
    """Training and validation data."""

    train_scans: str = option(pathname, "folder of training scans", on_resume=MAY_DIFFER, required=True)
    train_masks: str = option(pathname, "folder of training masks", on_resume=MAY_DIFFER, required=True)
    val_scans: str = option(pathname, "folder of validation scans", on_resume=MAY_DIFFER, required=True)
    val_masks: str = option(pathname, "folder of validation masks", on_resume=MAY_DIFFER, required=True)


@dataclass(frozen=True)
class GridSettings:
    """Grid."""

    scan_dim: tuple[int, int, int, int] = shape_option("", SCAN_DIM)
    resize_to: tuple[int, int] | None = resize_option()


@dataclass(frozen=True)
class TrainingGrid(GridSettings):
    """Grid."""

    spacing: tuple[float, float, float] | None = spacing_option(
        "; by default that of --rpn_ckpt_path, or the median of the scans"
    )


@dataclass(frozen=True)
class Loading:
    """Loading."""

    batch_size: int = option(positive_int, "items per batch, on each device", 8)
    num_workers: int = workers_option()


@dataclass(frozen=True)
class FoldSettings:
    """Folds."""

    k: int = option(positive_int, "number of folds", 5)
    splits: tuple[int, int, int] = option(
        non_negative_int,
        "percentages of subjects; they sum to 100",
        (70, 10, 20),
        nargs=3,
        action=SplitsAction,
        metavar=("TRAIN", "VAL", "TEST"),
    )
    folds: str | None = option(pathname, "folds.json of an earlier run to use instead", on_resume=MAY_DIFFER)
    groups: str | None = option(
        str,
        "keep each centre on one side of a fold: centre, which names and folders say, or a column of --metadata; by "
        "default subjects are split at random",
        metavar="COLUMN",
    )
    folds_to_run: tuple[int, ...] | None = option(
        non_negative_int,
        "numbers of the folds to run now, from 0; by default all",
        on_resume=MAY_DIFFER,
        exclusive="part",
        nargs="+",
        metavar="FOLD",
    )
    aggregate: bool = option(
        None, "run nothing: sum up the folds that have been run", False, on_resume=MAY_DIFFER, exclusive="part"
    )
    use_augmented: bool = option(None, "add augmented scans to the training folds where there are any", False)
    augmented_dir: str = augmented_option("folder with")


# They fix the files of a synthetic cohort, and are kept beside them in ``phantom.json``.
@dataclass(frozen=True)
class PhantomSettings:
    """Synthetic cohort."""

    n_subjects: int = option(positive_int, "subjects, one scan each", 30)
    modality: str = option(str, "contrast of the scans", "t1w", choices=("t1w", "flair", "dwi"))
    spacing: tuple[float, float, float] = option(
        positive_float,
        "voxel size in mm: one number, or three along D H W (3 1 1 has thick axial slices)",
        (1.0, 1.0, 1.0),
        nargs="+",
    )
    oblique: bool = option(None, "tilt the slices against the scanner, as in ISLES 2022; not with .npy", False)
    centres: int | None = option(
        positive_int,
        "brains alone of this many centres in the layout of ATLAS v3.0, .nii.gz, each centre with voxels and axes of "
        "its own; by default one centre in that of v2.0",
    )
    stripped: bool = option(None, "brains alone, without skull, scalp, eyes and neck", False)
    seed: int = option(non_negative_int, "seed of the cohort", 0)
    ext: str = extension_option()
    healthy_fraction: float = option(fraction, "share of subjects without lesion", 0.1)
    lesion_contrast: float = option(fraction, "1 for a core as dark as CSF, 0 for none to be seen", 1.0)
    warp_mm: float = option(positive_float, "standard deviation of the smooth warp in mm", 3.0)
    variety: float = option(
        fraction, "how much heads and scans differ: 0 for clean ones, 1 for more than real ones", 0.5
    )
    lesion_masks: str | None = option(
        pathname,
        "folder of real lesion masks in MNI152, .nii or .nii.gz, whose shapes and places the lesions take; by default "
        "lesions are drawn",
        metavar="DIR",
    )
