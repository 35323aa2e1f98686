"""Shared command-line arguments: one function per group, so that the scripts do not repeat them.

Argument types are validators: a wrong value is refused by argparse before any work. Nothing heavy is imported
here, so that ``--help`` answers at once.
"""

import argparse
import errno
import json
import os
import sys
from pathlib import Path

from utils.errors import UserError

TRANSFORM_NAMES = ("flip", "affine", "contrast", "noise", "bias_field", "lesion_contrast")
ARCHITECTURES = ("trans_unet", "unetr", "swin_unetr")
CONTEXT = ("neighbours", "mirror")
SLICE_SAMPLING = ("balanced", "natural")
MATCHING = ("small", "torchvision")
CONSISTENCY_RULES = ("linked", "grouped")
ANCHOR_SETS = ("ATLAS", "ISLES-DWI", "ISLES-FLAIR", "auto")
# What the operating system says of a place that takes no files.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# Dice over the whole batch: a window without lesion has no Dice of its own to learn from.
DEFAULT_LOSS_CONFIG = {"include_background": False, "softmax": True, "to_onehot_y": True, "batch": True}


def run(main, parse_args) -> None:
    """Run ``main(parse_args())``; a `UserError` ends with its one line on stderr and exit code 2."""
    args = parse_args()
    try:
        return main(args)
    except UserError as error:
        why = str(error)
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # from a library that writes files of its own, such as a checkpoint
        if error.errno not in UNWRITABLE:
            raise
        why = f"{error.filename or 'a result'} cannot be written ({error.strerror}); free or choose another place"
    # Said last: the progress bars of the frames that were left have ended their lines by now.
    print(f"{Path(sys.argv[0]).name}: error: {why}", file=sys.stderr)
    sys.exit(2)


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows every default and refuses abbreviated arguments."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


# --- argument types ------------------------------------------------------------------------------------


def _number(kind, accept, what: str):
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


positive_int = _number(int, lambda v: v > 0, "a whole number above 0")
non_negative_int = _number(int, lambda v: v >= 0, "a whole number of at least 0")
positive_float = _number(float, lambda v: 0 < v < float("inf"), "a finite number above 0")
non_negative_float = _number(float, lambda v: 0 <= v < float("inf"), "a finite number of at least 0")
fraction = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
positive_fraction = _number(float, lambda v: 0 < v <= 1, "a number above 0, up to 1")
overlap_ratio = _number(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"softmax": true}}')
    return value


def extension(text: str) -> str:
    if text not in (".npy", ".nii", ".nii.gz"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of .npy, .nii, .nii.gz")
    return text


class SplitsAction(argparse.Action):
    """``--splits TRAIN VAL TEST``: whole percentages that sum to 100, with something to train and test on."""

    def __call__(self, parser, namespace, values, option_string=None):
        if sum(values) != 100:
            parser.error(f"argument {option_string}: {values} sum to {sum(values)}; they must sum to 100")
        if min(values) < 1:
            parser.error(f"argument {option_string}: each of {values} must be at least 1")
        setattr(namespace, self.dest, values)


# --- argument groups -----------------------------------------------------------------------------------


def add_seed(parser) -> None:
    parser.add_argument("--seed", type=non_negative_int, default=42, help="seed of all random generators")


def add_cohort(parser) -> None:
    group = parser.add_argument_group("cohort")
    group.add_argument("--scans_dir", required=True, help="folder of 3D scans (e.g. *T1w*.npy)")
    group.add_argument("--masks_dir", required=True, help="folder of their masks (e.g. *T1lesion_mask*.npy)")
    add_extension(group)


def add_extension(group) -> None:
    group.add_argument("--ext", type=extension, default=".npy", help="file extension: .npy, .nii or .nii.gz")


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


def add_grid(parser) -> None:
    group = parser.add_argument_group("grid")
    add_scan_dim(group, default=[1, 189, 192, 192])
    add_resize_to(group)


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
    group.add_argument("--num_workers", type=non_negative_int, default=0, help="processes of a data loader")


def add_transforms(parser) -> None:
    parser.add_argument(
        "--transforms",
        nargs="+",
        choices=TRANSFORM_NAMES,
        default=None,
        help="random augmentations of the training data, of slices and of regions alike",
    )


def add_sliding_window(parser) -> None:
    group = parser.add_argument_group("sliding window")
    group.add_argument(
        "--subvolume_depth",
        type=positive_int,
        default=189,
        help="slices of a scan that are segmented at a time",
    )
    group.add_argument(
        "--overlap", type=overlap_ratio, default=None, help="overlap of neighbouring windows; None means 0.25"
    )


def add_num_classes(group) -> None:
    group.add_argument("--num_classes", type=positive_int, default=2, help="classes, background included")


def add_roi_size(group) -> None:
    group.add_argument(
        "--roi_size",
        type=positive_int,
        nargs=3,
        default=[64, 64, 64],
        metavar=("D", "H", "W"),
        help="smallest size of a proposed region and size of the network's window, in voxels",
    )


def add_segmenter(parser) -> None:
    group = parser.add_argument_group("segmentation model")
    group.add_argument("--arch", choices=ARCHITECTURES, default="trans_unet", help="3D transformer of stage 2")
    add_num_classes(group)
    group.add_argument("--in_channels", type=positive_int, default=1, help="input channels")
    add_roi_size(group)
    group.add_argument("--opt_lr", type=positive_float, default=3e-5, help="learning rate at the end")
    group.add_argument("--warmup_lr", type=positive_float, default=4e-6, help="learning rate at the first step")
    group.add_argument("--max_lr", type=positive_float, default=4e-4, help="learning rate after the warm-up")
    group.add_argument("--warmup_steps", type=non_negative_int, default=10, help="steps of linear warm-up")
    add_adamw(group, weight_decay=1e-3)
    group.add_argument("--seg_loss", default="DiceCELoss", help="name of a MONAI segmentation loss")
    group.add_argument(
        "--seg_loss_cfg",
        type=json_object,
        default=DEFAULT_LOSS_CONFIG,
        help="arguments of the segmentation loss as JSON",
    )
    group.add_argument(
        "--cls_loss", default=None, help="torch loss on 'this region holds a lesion', e.g. BCEWithLogitsLoss"
    )
    group.add_argument("--cls_loss_weight", type=non_negative_float, default=0.5, help="weight of --cls_loss")
    group.add_argument(
        "--seg_loss_weight",
        type=non_negative_float,
        default=0.5,
        help="weight of --seg_loss beside --cls_loss",
    )


def add_adamw(group, weight_decay: float, prefix: str = "") -> None:
    group.add_argument(
        f"--{prefix}weight_decay", type=non_negative_float, default=weight_decay, help="AdamW weight decay"
    )
    group.add_argument(f"--{prefix}eps", type=positive_float, default=1e-8, help="AdamW epsilon")
    group.add_argument(
        f"--{prefix}betas", type=overlap_ratio, nargs=2, default=[0.9, 0.999], help="AdamW moment decays"
    )


def add_rpn_model(parser, prefix: str = "") -> None:
    group = parser.add_argument_group("region proposal model")
    group.add_argument(f"--{prefix}lr", type=positive_float, default=1e-4, help="learning rate")
    add_adamw(group, weight_decay=1e-4, prefix=prefix)
    group.add_argument(
        "--dataset_anchors",
        choices=ANCHOR_SETS,
        default="ATLAS",
        help="data set whose anchor sizes are used, or auto to fit them to the training lesions",
    )
    group.add_argument(
        f"--{prefix}backbone_weights",
        default=None,
        help="file with a state dict of torchvision's resnet18, e.g. resnet18-f37072fd.pth",
    )
    group.add_argument(
        f"--{prefix}image_size",
        type=positive_int,
        default=192,
        help="pixels of a slice's shorter side inside the network; anchors scale with it",
    )
    group.add_argument(
        f"--{prefix}ema_decay",
        type=overlap_ratio,
        default=0.99,
        help="decay per step of the weights' moving average that is validated and kept; 0 for none",
    )
    group.add_argument(
        "--context",
        nargs="*",
        choices=CONTEXT,
        default=[],
        help="further channels of a slice: its neighbours in the volume, its mirror image",
    )
    group.add_argument(
        "--hard_negatives",
        type=fraction,
        default=0.0,
        help="share of an epoch's healthy slices that are those with the surest false detections",
    )
    group.add_argument(
        "--slice_sampling",
        choices=SLICE_SAMPLING,
        default="balanced",
        help="slices of an epoch: all with lesion and as many without, or as many of all",
    )
    group.add_argument(
        "--matching",
        choices=MATCHING,
        default="small",
        help="boxes that are learned as lesions: loose enough for small ones, or by torchvision's thresholds",
    )
    group.add_argument("--focal", action="store_true", help="focal loss on the anchors' objectness")
    group.add_argument(
        "--label_smoothing", type=fraction, default=0.0, help="smoothing of the classes of proposed boxes"
    )
    group.add_argument(
        "--consistency",
        choices=CONSISTENCY_RULES,
        default="linked",
        help="how boxes of slices become 3D regions: linked over neighbours, or by groups of similar slices",
    )
    group.add_argument(
        "--evidence_growth",
        type=non_negative_float,
        default=5.0,
        help="power of the proposed voxels with which the odds asked for of further linked boxes grow; 0 for none",
    )
    add_calibration(group)


def add_score_threshold(group) -> None:
    group.add_argument(
        "--score_threshold",
        type=fraction,
        default=None,
        help="evidence from which on boxes propose a region; None for the checkpoint's calibrated one",
    )


def add_calibration(group) -> None:
    group.add_argument(
        "--score_threshold",
        type=fraction,
        default=None,
        help="evidence from which on boxes propose a region; None to calibrate it on the validation scans",
    )
    group.add_argument(
        "--target_coverage",
        type=fraction,
        default=0.98,
        help="share of lesion voxels and of lesions that calibration aims to cover",
    )


def add_training(parser, root: str, prefix: str = "", max_epochs: int = 250, patience: int = 50) -> None:
    """Run length and place of one model's training; the W&B account and devices are in `add_logging`."""
    name = root if not prefix else f"{root} (stage 1)"
    group = parser.add_argument_group(f"{name} training")
    group.add_argument(f"--{prefix}model_prefix", required=True, help=f"name of the {root} runs and checkpoints")
    group.add_argument(f"--{prefix}default_root_dir", default=root, help="folder of checkpoints and logs")
    group.add_argument(f"--{prefix}project", default=root, help="W&B project")
    group.add_argument(f"--{prefix}group", default=None, help="W&B group")
    group.add_argument(f"--{prefix}max_epochs", type=positive_int, default=max_epochs, help="training epochs")
    group.add_argument(
        f"--{prefix}patience",
        type=positive_int,
        default=patience,
        help="epochs without progress before stopping",
    )


def add_logging(parser) -> None:
    group = parser.add_argument_group("logging and devices")
    group.add_argument("--entity", default="neurone-lab", help="W&B entity")
    group.add_argument("--offline", action="store_true", help="keep W&B records on this machine")
    group.add_argument(
        "--devices", type=non_negative_int, nargs="+", default=[0], help="GPU indices; without a GPU, the CPU"
    )
    group.add_argument(
        "--min_delta",
        type=non_negative_float,
        default=0.001,
        help="smallest gain of the watched validation value that counts",
    )
    group.add_argument(
        "--lr_logging_interval",
        choices=("epoch", "step"),
        default="epoch",
        help="how often the rate is logged",
    )
    group.add_argument("--num_samples", type=non_negative_int, default=5, help="predictions drawn while training")
    group.add_argument(
        "--log_every_n_val_epochs",
        type=positive_int,
        default=5,
        help="validation epochs between stage metrics and drawn predictions",
    )


def add_scores(parser, directory: str, filename: str, prefix: str = "") -> None:
    group = parser.add_argument_group(f"scores ({directory})")
    group.add_argument(f"--{prefix}scores_dir", default=directory, help="folder of scores and predictions")
    group.add_argument(f"--{prefix}scores_file", default=filename, help="CSV of mean scores, a row per model")


def add_per_size_scores(parser) -> None:
    parser.add_argument("--per_size_scores_file", default="per_size_scores.csv", help="CSV of scores by lesion size")


def add_gradcam(parser) -> None:
    parser.add_argument(
        "--target_layers", nargs="+", default=None, help="layers of the 3D network to draw Grad-CAM for"
    )


def add_n_predictions(parser) -> None:
    parser.add_argument("--n_predictions", type=non_negative_int, default=30, help="predictions to draw")


def add_regions_source(parser) -> None:
    group = parser.add_argument_group(
        "regions (without either, whole volumes are segmented)"
    ).add_mutually_exclusive_group()
    group.add_argument("--regions", default=None, help="JSON of regions proposed before")
    group.add_argument("--rpn_ckpt_path", default=None, help="checkpoint of an RPN that proposes them now")
    add_score_threshold(parser)


def without_prefix(args: argparse.Namespace, prefix: str) -> argparse.Namespace:
    """The arguments as another script knows them: each ``prefix``-ed value takes the bare name's place."""
    values = dict(vars(args))
    values.update({name.removeprefix(prefix): v for name, v in vars(args).items() if name.startswith(prefix)})
    return argparse.Namespace(**values)
