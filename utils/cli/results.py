"""Arguments on inference and on what an evaluation leaves."""

import argparse

from utils.cli.types import fraction, non_negative_int, overlap_ratio, positive_int
from utils.defaults import SUBVOLUME_DEPTH


def add_sliding_window(parser) -> None:
    group = parser.add_argument_group("sliding window")
    group.add_argument(
        "--subvolume_depth",
        type=positive_int,
        default=SUBVOLUME_DEPTH,
        help="slices of a scan that are segmented at a time",
    )
    group.add_argument(
        "--overlap",
        type=overlap_ratio,
        default=None,
        help="overlap of neighbouring windows, which reach as far beyond a region; None means 0.25",
    )
    group.add_argument(
        "--flip_average",
        action="store_true",
        help="average what the network says of each window and of its mirror image, in twice the time",
    )


# Of the networks of a stage that are used together.
CHECKPOINTS = {"nargs": "+", "metavar": "PATH"}
MEMBERS = "a checkpoint, or several or the folder of a cross-validation for the mean of what they say"


def add_checkpoints(parser) -> None:
    parser.add_argument("--ckpt_path", **CHECKPOINTS, required=True, help=f"StrokeFormer: {MEMBERS}")


def add_regions_source(parser, several: bool = False) -> None:
    """Where regions come from; `several` RPNs may propose them together."""
    group = parser.add_argument_group(
        "regions (without either, whole volumes are segmented)"
    ).add_mutually_exclusive_group()
    group.add_argument("--regions", default=None, help="JSON of regions proposed before")
    members, more = (MEMBERS, CHECKPOINTS) if several else ("a checkpoint", {})
    group.add_argument("--rpn_ckpt_path", default=None, help=f"RPN that proposes them now: {members}", **more)
    add_score_threshold(parser)


def add_score_threshold(group) -> None:
    group.add_argument(
        "--score_threshold",
        type=fraction,
        default=None,
        help="evidence from which on boxes propose a region; None for the checkpoint's calibrated one",
    )


def add_scores(parser, directory: str, filename: str, prefix: str = "") -> None:
    group = parser.add_argument_group(f"scores ({directory})")
    group.add_argument(f"--{prefix}scores_dir", default=directory, help="folder of scores and predictions")
    group.add_argument(f"--{prefix}scores_file", default=filename, help="CSV of mean scores, a row per model")


def add_bids_derivatives(parser) -> None:
    parser.add_argument(
        "--bids_derivatives",
        default=None,
        metavar="DIR",
        help="folder for the lesions and their probability as a BIDS derivative data set; None for none",
    )


def add_per_size_scores(parser) -> None:
    parser.add_argument("--per_size_scores_file", default="per_size_scores.csv", help="CSV of scores by lesion size")


LIST = ["list"]  # as names of layers: which there are


class LayersAction(argparse.Action):
    """Names of layers; ``list`` asks which there are, and then only what tells the network has to be given."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values == LIST:
            parser.require_only("ckpt_path")
        setattr(namespace, self.dest, values)


def add_target_layers(parser, what: str, prefix: str = "") -> None:
    """Layers to explain; `what` is said of them in the help."""
    parser.add_argument(
        f"--{prefix}target_layers", action=LayersAction, nargs="+", help=f"{what}; list prints them and ends"
    )


def add_gradcam(parser) -> None:
    add_target_layers(parser, "layers of the 3D network to draw Grad-CAM for")


def add_eigencam(parser, prefix: str = "") -> None:
    add_target_layers(parser, "layers of the 2D network's backbone to draw EigenCAM for", prefix)


def add_maps(parser) -> None:
    parser.add_argument(
        "--probabilities", action="store_true", help="write the lesion probability of each scan on its own grid"
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write the entropy, in bits, of its mean over the scan and its mirror image (that of --flip_average) or, "
        "with several checkpoints, over these",
    )


def add_n_predictions(parser) -> None:
    parser.add_argument("--n_predictions", type=non_negative_int, default=30, help="predictions to draw")
