"""Train the segmentation model (stage 2) on 3D scans, inside the regions of a JSON or of a trained RPN."""

from functools import partial
from pathlib import Path

from utils import cli


def parse_args():
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    cli.add_train_val(parser, "scans (3D)")
    cli.add_extension(parser)
    cli.add_regions_source(parser)
    cli.add_grid(parser)
    cli.add_loader(parser, batch_size=8)
    cli.add_transforms(parser)
    cli.add_sliding_window(parser)
    cli.add_segmenter(parser)
    cli.add_training(parser, "StrokeFormer")
    cli.add_logging(parser)
    return parser.parse_args()


def main(args) -> None:
    from data.cohort import check_cohort, pair_cases
    from data.datamodules import ScanDataset, scan_loader
    from data.grid import cached_scan, grid_of
    from models.proposals import collect_regions, region_source
    from models.training import train_strokeformer

    train = pair_cases([args.train_scans], [args.train_masks], args.ext, ("--train_scans", "--train_masks"))
    val = pair_cases([args.val_scans], [args.val_masks], args.ext, ("--val_scans", "--val_masks"))
    check_cohort(train + val, args.scan_dim, args.resize_to)
    cases, cache_dir = train + val, Path(args.default_root_dir) / "cache"
    regions_of = region_source(args, [case.name for case in cases], tuple(args.roi_size))
    scans = scan_loader(
        ScanDataset(cases, partial(cached_scan, grid=grid_of(args), cache_dir=cache_dir)), args.num_workers
    )
    regions = None if regions_of is None else collect_regions(regions_of, scans)
    print(f"Best checkpoint: {train_strokeformer(args, train, val, regions, cache_dir, args.model_prefix)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
