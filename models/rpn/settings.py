"""Settings of stage 1, the region proposal network, and its anchors."""

from dataclasses import dataclass
from functools import partial

from utils.settings import MAY_DIFFER, option
from utils.validators import fraction, non_negative_float, pathname, positive_float, positive_int, ratio_below_one

REFERENCE_SIZE = 192  # shorter side, in pixels, of an ATLAS slice on the default grid: what the sizes refer to
# Fitted by the method's author to each data set's lesions.
ANCHOR_SIZES = {"ATLAS": (5, 32, 54, 93), "ISLES-DWI": (7, 10, 20), "ISLES-FLAIR": (5, 12, 23, 84)}
ASPECT_RATIOS = (0.3, 0.5, 1.0, 2.0)
# torchvision rounds anchors to pixels: a flatter one than this would have no height and make the loss infinite.
SMALLEST_ANCHOR = 2.0
STRIDES = (4, 8, 16, 32)  # of the levels of the feature pyramid
# An anchor of less than two strides would leave gaps in which a lesion of its size meets no anchor.
SMALLEST_ON_LEVEL = tuple(2.0 * stride for stride in STRIDES)
AUTO = "auto"  # anchor sizes fitted to the training lesions
RULES = ("linked", "grouped")  # from boxes to regions (`utils.regions.rules`)

score_threshold_option = partial(
    option, fraction, "least score, 0 to 1, of a box that proposes a region; by default that of the checkpoint"
)


@dataclass(frozen=True)
class RPNSettings:
    """Region proposal network."""

    lr: float = option(positive_float, "learning rate", 1e-4)
    weight_decay: float = option(non_negative_float, "AdamW weight decay", 1e-4)
    eps: float = option(positive_float, "AdamW epsilon", 1e-8)
    betas: tuple[float, float] = option(ratio_below_one, "AdamW moment decays", (0.9, 0.999), nargs=2)
    dataset_anchors: str = option(
        str,
        "data set whose anchor sizes are used, or auto to fit them to the training lesions",
        "ATLAS",
        shared=True,
        choices=(*ANCHOR_SIZES, AUTO),
    )
    backbone_weights: str | None = option(pathname, "file with a state dict of torchvision's resnet18")
    image_size: int = option(positive_int, "pixels of a slice's shorter side inside the network, with its anchors", 192)
    consistency: str = option(
        str,
        "how boxes of slices become 3D regions: linked over neighbours, or by groups of similar slices",
        "linked",
        shared=True,
        choices=RULES,
    )
    score_threshold: float | None = option(
        fraction,
        "least score, 0 to 1, of a box that proposes a region; by default calibrated on validation scans",
        shared=True,
    )


@dataclass(frozen=True)
class RegionSettings:
    """Regions; without --regions and --rpn_ckpt_path whole volumes are segmented."""

    regions: str | None = option(pathname, "JSON of regions proposed before", on_resume=MAY_DIFFER, exclusive="source")
    rpn_ckpt_path: str | tuple[str, ...] | None = option(
        pathname, "checkpoint of stage 1 that proposes them", on_resume=MAY_DIFFER, exclusive="source"
    )
    score_threshold: float | None = score_threshold_option()
