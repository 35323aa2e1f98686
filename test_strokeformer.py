"""Segment 3D scans with a trained StrokeFormer and, where there are masks, score the result."""

from functools import partial
from pathlib import Path

from utils import cli
from utils.errors import UserError
from utils.files import STAGE_2_TABLES, require_tables, require_writable


def parse_args(argv: list[str] | None = None):
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    parser.add_argument("--scans", nargs="+", required=True, help="scans or folders of scans (.npy, .nii, .nii.gz)")
    parser.add_argument("--masks", nargs="+", default=None, help="their masks or folders of masks; None for no scores")
    cli.add_patterns(parser, "--scans or --masks")
    cli.add_checkpoints(parser)
    parser.add_argument("--model_name", default=None, help="name in tables and folders; None for the checkpoint's run")
    cli.add_brains(parser)
    cli.add_regions_source(parser, several=True)
    cli.add_grid(parser)
    cli.add_loader(parser, batch_size=8)
    cli.add_precision(parser)
    cli.add_sliding_window(parser)
    cli.add_num_classes(parser)
    cli.add_decision(parser, "that of the checkpoint, or the mean of several")
    cli.add_gradcam(parser)
    cli.add_maps(parser)
    cli.add_n_predictions(parser)
    cli.add_scores(parser, "./scores", "scores.csv")
    cli.add_per_size_scores(parser)
    cli.add_bids_derivatives(parser)
    return parser.parse_args(argv)


def main(args) -> None:
    if args.target_layers == cli.LIST:
        return print_layers(args)
    from models.evaluation.derivatives import plan_derivative, prediction_settings

    cases = find_cases(args)  # first: a wrong path is refused before the heavy libraries load
    derivative = plan_derivative(args.bids_derivatives, cases) if args.bids_derivatives else None

    from data.batches.datamodules import ScanDataset, scan_loader
    from data.scans.admission import admit
    from data.scans.grid import say_untold_network
    from data.scans.prepared import prepare_scan
    from models.checkpoints import grid_at_test, load_strokeformer, require_channels, require_classes, run_name
    from models.evaluation.gradcam import find_layers
    from models.evaluation.segmentation import evaluate_strokeformer
    from models.precision import use_precision
    from models.proposals import region_source
    from report.pages import report_strokeformer
    from utils.scores.tables import print_scores

    use_precision(args.precision)
    find_checkpoints(args)
    model = load_strokeformer(args.ckpt_path, args.lesion_threshold, args.smallest_lesion_cm3)
    require_classes(args.num_classes, model.hparams.num_classes, args.ckpt_path[0])
    require_channels(args.scan_dim[0], model, args.ckpt_path[0])
    find_layers(model, args.target_layers)  # so that a wrong one is refused now
    grid = grid_at_test(model, cli.wanted_scan_dim(args), args.resize_to, args.ckpt_path[0])
    regions_of = region_source(args, [case.name for case in cases], model.hparams.roi_size, grid.spacing_mm)
    name = args.model_name or run_name(args.ckpt_path)
    brains = Path(args.scores_dir) / name / "brains"
    say_untold_network(cases, grid)
    admit(cases, grid, brains, args.num_workers)
    scans = scan_loader(ScanDataset(cases, partial(prepare_scan, grid=grid, brains=brains)), args.num_workers)
    keep = derivative and derivative.begin(
        prediction_settings(args, name, model.decision.threshold, model.decision.smallest_cm3)
    )
    scores = evaluate_strokeformer(model, cases, scans, regions_of, args, name, keep)
    print_scores(scores, Path(args.scores_dir) / name)
    print(f"The report is {report_strokeformer(args, name, cases)}")


def find_checkpoints(args) -> None:
    """Put checkpoints in the place of folders of cross-validations, so that all that follows names the files."""
    from models.cross_validation.results import checkpoints_in

    args.ckpt_path = checkpoints_in(args.ckpt_path)
    args.rpn_ckpt_path = args.rpn_ckpt_path and checkpoints_in(args.rpn_ckpt_path, "rpn_")
    if args.target_layers and len(args.ckpt_path) > 1:
        raise UserError("--target_layers explains one network; give one --ckpt_path, or leave it out for an ensemble")


def print_layers(args) -> None:
    from models.checkpoints import load_strokeformer
    from models.evaluation.gradcam import window_layers

    find_checkpoints(args)
    print(window_layers(load_strokeformer(args.ckpt_path)).table("--target_layers"))


def find_cases(args) -> list:
    from data.files.listing import Patterns
    from data.scans.brain import with_brains
    from data.scans.checks import check_headers
    from data.scans.cohort import pair_cases

    patterns = Patterns(args.scan_pattern, args.mask_pattern)
    cases = with_brains(pair_cases(args.scans, args.masks, patterns=patterns), args.brains_dir)
    check_headers(cases, args.scan_dim, args.resize_to)
    require_writable(args.scores_dir, "--scores_dir")
    require_tables(args.scores_dir, args.scores_file, args.per_size_scores_file, *STAGE_2_TABLES)
    return cases


if __name__ == "__main__":
    cli.run(main, parse_args)
