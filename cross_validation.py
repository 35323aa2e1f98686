"""K-fold cross-validation of the whole two-stage method on 3D scans.

For each fold: train the RPN on the fold's slices, propose and save the regions of its scans, train StrokeFormer on
them, test both stages. Ends with the mean and standard deviation of every score over the folds. A run that was
interrupted goes on where it stopped.
"""

from functools import partial
from pathlib import Path

from utils import cli
from utils.files import read_scores, require_writable


def parse_args():
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    cli.add_cohort(parser)
    cli.add_folds(parser)
    cli.add_grid(parser)
    cli.add_transforms(parser)
    cli.add_loader(parser, batch_size=8)
    cli.add_rpn_batch_size(parser)
    cli.add_sliding_window(parser)
    cli.add_segmenter(parser)
    cli.add_training(parser, "StrokeFormer")
    cli.add_rpn_model(parser, prefix="rpn_")
    cli.add_training(parser, "RPN", prefix="rpn_")
    cli.add_logging(parser)
    cli.add_gradcam(parser)
    cli.add_n_predictions(parser)
    cli.add_scores(parser, "./scores", "scores.csv")
    cli.add_per_size_scores(parser)
    cli.add_scores(parser, "./rpn_scores", "scores.csv", prefix="rpn_")
    return parser.parse_args()


def main(args) -> None:
    folder = Path(args.default_root_dir) / args.model_prefix
    cases, augmented = find_cases(args, folder)  # first: a wrong path is refused before the heavy libraries load

    from data.checks import check_voxels
    from data.folds import write_folds
    from data.grid import cached_scan, grid_of
    from data.slices import cut_cohort
    from utils.provenance import open_run
    from utils.tables import print_summary, summarise_folds

    check_models(args)
    check_voxels(cases + list(augmented))
    folds = choose_folds(args, cases)
    open_run(folder, vars(args))
    write_folds(folder / "folds.json", folds, seed=args.seed, k=args.k, splits=args.splits)

    prepare = partial(cached_scan, grid=grid_of(args), cache_dir=folder / "cache")
    slices = cut_cohort(cases + list(augmented), prepare, folder / "slices")
    rows = []
    for number, fold in enumerate(folds):
        print(
            f"Fold {number + 1} of {len(folds)}: {len(fold.train)} training, {len(fold.val)} validation and "
            f"{len(fold.test)} test subjects"
        )
        rows += run_fold(args, number, fold, cases, augmented, slices, prepare, folder)
    summary = summarise_folds(rows)
    print_summary(summary, Path(args.scores_dir) / f"{args.model_prefix}_summary.csv")


def find_cases(args, folder: Path) -> tuple[list, dict]:
    """The cohort and its augmented scans, once all headers and all folders to write to have been checked."""
    from data.checks import check_headers
    from data.cohort import augmented_cases, pair_cases, refuse_augmented
    from data.grid import grid_of

    cases = pair_cases([args.scans_dir], [args.masks_dir], args.ext, ("--scans_dir", "--masks_dir"))
    refuse_augmented(cases, "--scans_dir")
    augmented = augmented_cases(args.augmented_dir) if args.use_augmented else {}
    everything = cases + list(augmented)
    check_headers(everything, args.scan_dim, args.resize_to)
    # Each scan is kept twice: whole for stage 2 and as slices for stage 1.
    require_writable(folder, "--default_root_dir", 2 * len(everything) * grid_of(args).bytes_per_scan)
    for argument in ("rpn_default_root_dir", "scores_dir", "rpn_scores_dir"):
        require_writable(getattr(args, argument), f"--{argument}")
    for path in (Path(args.scores_dir) / args.scores_file, Path(args.rpn_scores_dir) / args.rpn_scores_file):
        read_scores(path)
    return cases, augmented


def check_models(args) -> None:
    """Build both models once, so that an argument that does not fit is refused now and not hours from now."""
    from models.anchors import SMALLEST_ON_LEVEL
    from models.gradcam import find_layers
    from models.training import build_rpn, build_strokeformer

    build_rpn(cli.without_prefix(args, "rpn_"), args.in_channels, SMALLEST_ON_LEVEL)  # the fold's own come later
    find_layers(build_strokeformer(args), args.target_layers or [])


def choose_folds(args, cases: list) -> list:
    from data.folds import lesion_loads, make_folds, read_folds

    if args.folds:
        return read_folds(args.folds, {case.subject for case in cases})
    return make_folds(lesion_loads(cases), args.k, args.splits, args.seed)


def run_fold(args, number: int, fold, cases: list, augmented: dict, slices, prepare, folder: Path) -> list[dict]:
    """The five steps of one fold; returns a row (fold, stage, score, value) for every score."""
    from data.datamodules import ScanDataset, scan_loader
    from data.folds import cases_of, usable_augmented
    from models.checkpoints import load_model, load_rpn
    from models.evaluation import evaluate_strokeformer
    from models.proposals import collect_regions, rpn_source
    from models.rpn_evaluation import evaluate_rpn
    from models.strokeformer import StrokeFormer
    from models.training import train_rpn, train_strokeformer
    from utils.regions import write_regions

    rpn_args = cli.without_prefix(args, "rpn_")
    rpn_name, name = f"{args.rpn_model_prefix}_fold-{number}", f"{args.model_prefix}_fold-{number}"
    roi_size = tuple(args.roi_size)
    train, val, test = (cases_of(cases, subjects) for subjects in (fold.train, fold.val, fold.test))
    train += usable_augmented(augmented, fold)
    if augmented:
        print(
            f"{len(train) - len(cases_of(cases, fold.train))} of {len(augmented)} augmented scans are made of "
            "training subjects alone and used"
        )

    # 1. Train the RPN on the fold's slices.
    train_slices, val_slices = (slices[slices.volume.isin([c.name for c in part])] for part in (train, val))
    rpn = load_rpn(train_rpn(rpn_args, train_slices, val_slices, rpn_name))

    # 2. Propose regions and save them.
    def scans_of(part):
        return scan_loader(ScanDataset(part, prepare), args.num_workers)

    regions = collect_regions(rpn_source(rpn, roi_size), scans_of(train + val + test))
    write_regions(folder / f"regions_fold-{number}.json", regions)

    # 3. Train StrokeFormer on the regions.
    model = load_model(StrokeFormer, train_strokeformer(args, train, val, regions, folder / "cache", name))

    # 4. Test both stages.
    rpn_scores = evaluate_rpn(rpn, scans_of(test), len(test), rpn_args, rpn_name)
    scores = evaluate_strokeformer(model, test, scans_of(test), lambda scan: regions[scan.name], args, name)
    return [
        {"fold": number, "stage": stage, "score": score, "value": value}
        for stage, found in (("rpn", rpn_scores), ("strokeformer", scores))
        for score, value in found.items()
    ]


if __name__ == "__main__":
    cli.run(main, parse_args)
