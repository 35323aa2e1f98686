"""Settings of the synthetic cohort, which fix its files and are kept beside them in ``phantom.json``."""

from dataclasses import dataclass

from data.settings import extension_option
from utils.settings import option
from utils.validators import fraction, non_negative_int, positive_float, positive_int


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
    mask_spacing: tuple[float, float, float] | None = option(
        positive_float,
        "voxel size of the masks in mm, as --spacing, where they have a grid of their own; .nii and .nii.gz only",
        nargs="+",
    )
    oblique: bool = option(None, "tilt the slices against the scanner, as in ISLES 2022; not with .npy", False)
    stripped: bool = option(None, "brains alone, without skull, scalp, eyes and neck", False)
    seed: int = option(non_negative_int, "seed of the cohort", 0)
    ext: str = extension_option()
    healthy_fraction: float = option(fraction, "share of subjects without lesion", 0.1)
    lesion_contrast: float = option(fraction, "1 for a core as dark as CSF, 0 for none to be seen", 1.0)
    warp_mm: float = option(positive_float, "standard deviation of the smooth warp in mm", 3.0)
