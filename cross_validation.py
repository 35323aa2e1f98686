"""K-fold cross-validation of the whole two-stage method on 3D scans.

For each fold: train the RPN on the fold's slices, propose and save the regions of its scans, train StrokeFormer on
them, test both stages. Ends with the mean and standard deviation of every score over the folds. A run that was
interrupted goes on where it stopped. ``--launcher ray`` runs the folds as tasks of a Ray cluster. ``--folds_to_run``
runs some of them, so that the jobs of a cluster can share them, and ``--aggregate`` sums up what they scored.
"""

from functools import partial
from pathlib import Path

from models.defaults import LOSS_CONFIG
from utils import cli
from utils.errors import UserError
from utils.files import STAGE_1_TABLES, STAGE_2_TABLES, require_tables, require_writable


def parse_args(argv: list[str] | None = None):
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    cli.add_cohort(parser)
    cli.add_brains(parser)
    cli.add_folds(parser)
    cli.add_launcher(parser)
    cli.add_grid(parser)
    cli.add_spacing(parser)
    cli.add_transforms(parser)
    cli.add_loader(parser, batch_size=8)
    cli.add_rpn_batch_size(parser)
    cli.add_sliding_window(parser)
    cli.add_segmenter(parser, LOSS_CONFIG)
    cli.add_decision(parser, "what suits the validation scans best")
    cli.add_training(parser, "StrokeFormer")
    cli.add_rpn_model(parser, prefix="rpn_")
    cli.add_training(parser, "RPN", prefix="rpn_")
    cli.add_logging(parser)
    cli.add_gradcam(parser)
    cli.add_eigencam(parser, prefix="rpn_")
    cli.add_maps(parser)
    cli.add_n_predictions(parser)
    cli.add_scores(parser, "./scores", "scores.csv")
    cli.add_per_size_scores(parser)
    cli.add_scores(parser, "./rpn_scores", "scores.csv", prefix="rpn_")
    return parser.parse_args(argv)


def main(args) -> None:
    if cli.LIST in (args.target_layers, args.rpn_target_layers):
        return print_layers(args)
    folder = Path(args.default_root_dir) / args.model_prefix
    cases, augmented = find_cases(args, folder)  # first: a wrong path is refused before the heavy libraries load

    from models.cross_validation.folds import CrossValidation
    from models.precision import use_precision
    from models.training.processes import follow, require_devices

    check_launcher(args)
    require_devices(args, batch_size=args.batch_size, rpn_batch_size=args.rpn_batch_size)
    use_precision(args.precision)
    if follow(args):
        return
    check_models(args)
    args.group = args.group or args.model_prefix  # the runs of all folds and both stages belong together
    args.rpn_group = args.rpn_group or args.model_prefix
    validation = CrossValidation(args, cli.without_prefix(args, "rpn_"), cases, augmented)
    validation.check_settings()
    if not args.aggregate:
        run_folds(validation)
    if args.folds_to_run and (missing := validation.missing()):
        print(f"Folds yet to run: {', '.join(map(str, missing))}; --aggregate sums up when they have been")
    else:
        sum_up(validation)


def check_launcher(args) -> None:
    """Refuse what Ray cannot do, and what is meant for Ray alone."""
    if args.launcher == "ray":
        if args.num_nodes > 1:
            raise UserError(
                "--num_nodes: Ray gives each fold the devices of one node; leave it out with --launcher ray"
            )
        return
    for name in ("ray_address", "gpus_per_fold"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for Ray; add --launcher ray, or leave it out")


def run_folds(validation) -> None:
    """Run the folds of ``--folds_to_run``, or all, where ``--launcher`` says."""
    from models.cross_validation.launchers import choose_launcher

    args = validation.args
    launch = choose_launcher(args)  # first: a cluster that is not there is refused before scans are read
    folds, slices = validation.get_ready()
    needed = [args.scans_dir, args.masks_dir, validation.folder / "folds.json"]
    work = partial(validation.run_fold, folds=folds, slices=slices)
    launch(work, args.folds_to_run or range(len(folds)), [Path(path) for path in needed])


def sum_up(validation) -> None:
    """Save and print every score over the folds, and write the report."""
    from models.training.tracking import log_report
    from report.pages import report_cross_validation
    from utils.scores.tables import print_summary, summarise_folds

    args, results = validation.args, validation.results()
    validation.order_tables()
    summary = summarise_folds(results, args.seed)
    print_summary(summary, Path(args.scores_dir) / f"{args.model_prefix}_summary.csv")
    page = report_cross_validation(validation, results, summary)
    means = {f"{row.stage} {row.score}": row.mean for row in summary.itertuples()}
    log_report(validation.folder, args, page, means)
    print(f"The report is {page}")


def find_cases(args, folder: Path) -> tuple[list, dict]:
    """The cohort and its augmented scans, once all headers and all folders to write to have been checked."""
    from data.scans.brain import with_brains
    from data.scans.checks import check_headers
    from data.scans.cohort import augmented_cases, pair_cases, refuse_augmented
    from data.scans.grid import choose_spacing, grid_of
    from data.scans.prepared import bytes_to_prepare

    cases = pair_cases([args.scans_dir], [args.masks_dir], args.ext, ("--scans_dir", "--masks_dir"))
    refuse_augmented(cases, "--scans_dir")
    cases = with_brains(cases, args.brains_dir)
    augmented = augmented_cases(args.augmented_dir) if args.use_augmented else {}
    everything = cases + list(augmented)
    check_headers(everything, args.scan_dim, args.resize_to)
    args.spacing = choose_spacing(cases, args.spacing, args.resize_to)
    # Each scan is kept twice: whole for stage 2 and as slices for stage 1.
    require_writable(folder, "--default_root_dir", 2 * bytes_to_prepare(everything, grid_of(args), folder / "cache"))
    for argument in ("rpn_default_root_dir", "scores_dir", "rpn_scores_dir"):
        require_writable(getattr(args, argument), f"--{argument}")
    require_tables(args.scores_dir, args.scores_file, args.per_size_scores_file, *STAGE_2_TABLES)
    require_tables(args.rpn_scores_dir, args.rpn_scores_file, *STAGE_1_TABLES)
    return cases, augmented


def check_models(args) -> None:
    """Build both models once, so that an argument that does not fit is refused now and not hours from now."""
    from models.evaluation import eigencam, gradcam

    rpn, model = build_models(args)
    eigencam.find_layers(rpn, args.rpn_target_layers, "--rpn_target_layers")
    gradcam.find_layers(model, args.target_layers)


def build_models(args) -> tuple:
    """Both untrained models, stage 1 with anchors that a fold chooses later."""
    from models.rpn.anchors import SMALLEST_ON_LEVEL
    from models.training.fit import build_rpn, build_strokeformer

    rpn = build_rpn(cli.without_prefix(args, "rpn_"), args.in_channels, SMALLEST_ON_LEVEL)
    return rpn, build_strokeformer(args)


def print_layers(args) -> None:
    from models.evaluation.eigencam import slice_layers
    from models.evaluation.gradcam import window_layers

    rpn, model = build_models(args)
    if args.target_layers == cli.LIST:
        print(window_layers(model).table("--target_layers"))
    if args.rpn_target_layers == cli.LIST:
        print(slice_layers(rpn).table("--rpn_target_layers"))


if __name__ == "__main__":
    cli.run(main, parse_args)
