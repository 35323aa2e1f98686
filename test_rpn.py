"""Evaluate a trained region proposal network (stage 1) on 2D slices; ``python -m data.slices`` makes them."""

from pathlib import Path

from utils import cli
from utils.files import STAGE_1_TABLES, require_tables, require_writable


def parse_args(argv: list[str] | None = None):
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    parser.add_argument("--scans", required=True, help="folder of 2D scan slices")
    parser.add_argument("--masks", required=True, help="folder of 2D masks")
    parser.add_argument("--ckpt_path", required=True, help="RPN checkpoint")
    parser.add_argument("--model_name", default=None, help="name in tables and folders; None for the checkpoint's run")
    cli.add_loader(parser, batch_size=32)
    cli.add_precision(parser)
    cli.add_resize_to(parser)
    cli.add_num_classes(parser)
    cli.add_roi_size(parser)
    cli.add_score_threshold(parser)
    cli.add_eigencam(parser)
    cli.add_n_predictions(parser)
    cli.add_scores(parser, "./rpn_scores", "rpn_scores.csv")
    return parser.parse_args(argv)


def main(args) -> None:
    if args.target_layers == cli.LIST:
        return print_layers(args)
    table = find_slices(args)  # first: a wrong path is refused before the heavy libraries load

    from data.batches.datamodules import StackedScans, scan_loader
    from data.batches.slices import channels_of, grid_of_slices
    from models.checkpoints import load_rpn, require_channels, require_classes, require_spacing, run_name
    from models.evaluation.proposals import evaluate_rpn
    from models.precision import use_precision
    from report.pages import report_rpn
    from utils.scores.tables import print_scores

    use_precision(args.precision)
    model = load_rpn(args.ckpt_path, args.score_threshold)
    require_classes(args.num_classes, 2, args.ckpt_path)
    require_channels(channels_of(table), model, args.ckpt_path)
    if not args.resize_to:
        mend = "cut the slices with --spacing"
        require_spacing(grid_of_slices(table).spacing_mm, model, args.ckpt_path, mend)
    scans = StackedScans(table, args.resize_to)
    name = args.model_name or run_name(args.ckpt_path)
    scores = evaluate_rpn(model, scan_loader(scans, args.num_workers), len(scans), args, name)
    print_scores(scores, Path(args.scores_dir) / name)
    print(f"The report is {report_rpn(args, name, len(scans))}")


def print_layers(args) -> None:
    from models.checkpoints import load_rpn
    from models.evaluation.eigencam import slice_layers

    print(slice_layers(load_rpn(args.ckpt_path)).table("--target_layers"))


def find_slices(args):
    from data.batches.slices import check_slices, read_slice_table

    table = read_slice_table(args.scans, args.masks)
    require_writable(args.scores_dir, "--scores_dir")
    require_tables(args.scores_dir, args.scores_file, *STAGE_1_TABLES)
    check_slices(table, args.resize_to, args.num_workers)
    return table


if __name__ == "__main__":
    cli.run(main, parse_args)
