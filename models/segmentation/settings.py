"""Settings of stage 2, the 3D network: its architecture, its losses, its windows, and what is lesion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.files.names import CONTRASTS
from utils.settings import option
from utils.validators import (
    fraction,
    json_object,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    ratio_below_one,
)

# Of MONAI's losses. Dice over the whole batch: a window without lesion has no Dice of its own to learn from.
LOSS_CONFIG = {"include_background": False, "softmax": True, "to_onehot_y": True, "batch": True}
SUBVOLUME_DEPTH = 189  # slices of a scan that are segmented at a time: all of ATLAS
ROI_SIZE = (64, 64, 64)


@dataclass(frozen=True)
class Network:
    """A 3D network: logits (B, num_classes, D, H, W) of windows (B, C, D, H, W)."""

    path: str  # of its class
    stride: int  # of its deepest level; a window's sides must be multiples of it
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the class, behind channels and classes
    of_one_window: bool = False  # whether the class takes the size of its windows


# In the size that was published, but for TransUNet, which is ours. MONAI's UNETR has it by default.
NETWORKS = {
    "trans_unet": Network("models.segmentation.trans_unet.TransUNet", 8, of_one_window=True),
    "unetr": Network("monai.networks.nets.UNETR", 16, of_one_window=True),
    "swin_unetr": Network("monai.networks.nets.SwinUNETR", 32, {"feature_size": 48}),
}


contrast_option = partial(
    option,
    str,
    "contrast of the scans, where their names say nothing or something else; by default what the names say",
    choices=tuple(CONTRASTS),
)
num_classes_option = partial(option, positive_int, "classes, background included", 2)
voxels_option = partial(option, positive_int, nargs=3, metavar=("D", "H", "W"))
roi_size_option = partial(voxels_option, "smallest size of a proposed region, in voxels", ROI_SIZE, shared=True)


@dataclass(frozen=True)
class SegmenterSettings:
    """Segmentation network."""

    arch: str = option(str, "3D transformer of stage 2", "trans_unet", choices=tuple(NETWORKS))
    num_classes: int = num_classes_option()
    in_channels: int = option(positive_int, "input channels", 1)
    roi_size: tuple[int, int, int] = roi_size_option()
    window_size: tuple[int, int, int] | None = voxels_option("size of windows, in voxels; by default --roi_size")
    opt_lr: float = option(positive_float, "learning rate at the end of the decay", 3e-5)
    warmup_lr: float = option(positive_float, "learning rate at the first step", 4e-6)
    max_lr: float = option(positive_float, "learning rate after the warm-up, the largest", 4e-4)
    warmup_steps: int = option(non_negative_int, "steps of linear warm-up", 10)
    weight_decay: float = option(non_negative_float, "AdamW weight decay", 1e-3)
    eps: float = option(positive_float, "AdamW epsilon", 1e-8)
    betas: tuple[float, float] = option(ratio_below_one, "AdamW moment decays", (0.9, 0.999), nargs=2)
    seg_loss: str = option(
        str, "a MONAI loss, or CCDiceCELoss or ICILoss, in which all lesions count the same", "DiceCELoss"
    )
    seg_loss_cfg: dict[str, Any] = option(json_object, "arguments of the segmentation loss as JSON", LOSS_CONFIG)
    cls_loss: str | None = option(str, "torch loss on 'this region holds a lesion', e.g. BCEWithLogitsLoss")
    cls_loss_weight: float = option(non_negative_float, "weight of --cls_loss", 0.5)
    seg_loss_weight: float = option(non_negative_float, "weight of --seg_loss beside --cls_loss", 0.5)


@dataclass(frozen=True)
class SlidingWindow:
    """Sliding window."""

    subvolume_depth: int = option(positive_int, "slices of a scan that are segmented at a time", SUBVOLUME_DEPTH)
    overlap: float | None = option(
        ratio_below_one, "overlap of neighbouring windows, which reach as far beyond a region; None means 0.25"
    )
    flip_average: bool = option(
        None, "average the predictions of each window and of its mirror image, in twice the time", False
    )


@dataclass(frozen=True)
class DecisionSettings:
    """What is lesion."""

    lesion_threshold: float | None = option(
        fraction,
        "probability above which a voxel is lesion, in any component; by default the checkpoint's choice",
    )
    smallest_lesion_cm3: float | None = option(
        non_negative_float,
        "volume below which a predicted lesion is removed; by default that of the checkpoint, 0",
    )
