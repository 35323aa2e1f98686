"""Arguments on inference and on what an evaluation leaves."""

from utils.cli.types import fraction, non_negative_int, overlap_ratio, positive_int


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
    group.add_argument(
        "--flip_average",
        action="store_true",
        help="average what the network says of each window and of its mirror image, in twice the time",
    )


def add_regions_source(parser) -> None:
    group = parser.add_argument_group(
        "regions (without either, whole volumes are segmented)"
    ).add_mutually_exclusive_group()
    group.add_argument("--regions", default=None, help="JSON of regions proposed before")
    group.add_argument("--rpn_ckpt_path", default=None, help="checkpoint of an RPN that proposes them now")
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


def add_per_size_scores(parser) -> None:
    parser.add_argument("--per_size_scores_file", default="per_size_scores.csv", help="CSV of scores by lesion size")


def add_gradcam(parser) -> None:
    parser.add_argument(
        "--target_layers", nargs="+", default=None, help="layers of the 3D network to draw Grad-CAM for"
    )


def add_n_predictions(parser) -> None:
    parser.add_argument("--n_predictions", type=non_negative_int, default=30, help="predictions to draw")
