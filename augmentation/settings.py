"""Settings of the augmentation: which slices are alike, and how lesions are moved between them."""

from dataclasses import dataclass

from data.settings import seed_option
from utils.settings import option
from utils.validators import fraction, non_negative_float, non_negative_int, positive_fraction, positive_int


@dataclass(frozen=True)
class Criteria:
    """Pairs of a healthy and a sick slice."""

    min_iou: float = option(fraction, "least overlap of the brain masks", 0.8)
    min_ssim: float = option(fraction, "least structural similarity of the slices, each scaled to [0, 1]", 0.5)
    max_depth_difference: int = option(non_negative_int, "slices that the two may be apart", 30)


@dataclass(frozen=True)
class TransferSettings:
    """Lesions and their transfer."""

    seed: int = seed_option()
    mode: str = option(
        str,
        "lesions of single slices, each at the place it had in its own head, or whole 3D lesions anywhere in the brain "
        "off ventricles and lesions",
        "volume",
        choices=("slice", "volume"),
    )
    lesions: int = option(positive_int, "new lesions of a scan (volume)", 2)
    min_scale: float = option(
        positive_fraction, "least diameter of a moved lesion, as a share of its own; 1 to leave its size", 1.0
    )
    rim: float = option(
        non_negative_float,
        "voxels over which tissue becomes lesion, one too thin for it made fainter; 0 for a hard edge",
        3.0,
    )
    criteria: Criteria = Criteria()
