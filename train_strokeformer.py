"""Train the segmentation model (stage 2) on 3D scans, inside the regions of a JSON or of a trained RPN."""

from functools import partial
from pathlib import Path

from models.defaults import LOSS_CONFIG
from utils import cli
from utils.files import require_writable


def parse_args(argv: list[str] | None = None):
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    cli.add_train_val(parser, "scans (3D)")
    cli.add_extension(parser)
    cli.add_regions_source(parser)
    cli.add_brains(parser)
    cli.add_grid(parser)
    cli.add_spacing(parser, "; None for that of --rpn_ckpt_path or the median of the scans")
    cli.add_loader(parser, batch_size=8)
    cli.add_transforms(parser)
    cli.add_sliding_window(parser)
    cli.add_segmenter(parser, LOSS_CONFIG)
    cli.add_decision(parser, "what suits the validation scans best")
    cli.add_training(parser, "StrokeFormer")
    cli.add_logging(parser)
    return parser.parse_args(argv)


def main(args) -> None:
    cache_dir = Path(args.default_root_dir) / "cache"
    train, val = find_cases(args, cache_dir)  # first: a wrong path is refused before the heavy libraries load

    from data.batches.datamodules import ScanDataset, scan_loader
    from data.scans.admission import admit
    from data.scans.grid import choose_spacing, grid_of
    from data.scans.prepared import brains_in, bytes_to_prepare, cached_scan
    from models.precision import use_precision
    from models.proposals import collect_regions, region_source, spacing_of_proposer
    from models.training.fit import build_strokeformer, train_strokeformer
    from models.training.processes import follow, require_devices

    require_devices(args, batch_size=args.batch_size)
    use_precision(args.precision)
    if follow(args):
        return
    cases = train + val
    build_strokeformer(args)  # an argument that does not fit is refused now
    args.spacing = choose_spacing(cases, args.spacing or spacing_of_proposer(args), args.resize_to)
    require_writable(cache_dir, "--default_root_dir", bytes_to_prepare(cases, grid_of(args), cache_dir))
    regions_of = region_source(args, [case.name for case in cases], tuple(args.roi_size), args.spacing)
    facts = admit(cases, grid_of(args), brains_in(cache_dir), args.num_workers, cache_dir)
    prepare = partial(cached_scan, grid=grid_of(args), cache_dir=cache_dir)
    inputs = find_inputs(args, train, val, facts)
    scans = scan_loader(ScanDataset(cases, prepare), args.num_workers)
    regions = None if regions_of is None else collect_regions(regions_of, scans)
    best = train_strokeformer(args, train, val, regions, cache_dir, args.model_prefix, inputs)
    print(f"Best checkpoint: {best}")


def find_inputs(args, train: list, val: list, facts: dict) -> dict[str, str]:
    """Digests of scans, masks and what proposes the regions; refuses a training begun with others before the work."""
    from data.scans.fingerprints import fingerprint
    from models.training.runs import inputs_of, is_trained, run_folder
    from utils.provenance import require_inputs

    folder = run_folder(args, args.model_prefix)
    digests, source = {case.name: facts[case].digest for case in facts}, args.regions or args.rpn_ckpt_path
    proposer = fingerprint({"proposer": [Path(source)]}, folder / "fingerprints.json")["proposer"] if source else None
    inputs = inputs_of(train, val, digests, proposer)
    if is_trained(folder):
        require_inputs(folder, inputs)
    return inputs


def find_cases(args, cache_dir: Path) -> tuple[list, list]:
    from data.scans.brain import with_brains
    from data.scans.checks import check_headers
    from data.scans.cohort import pair_cases, refuse_twins, say_shared

    train = pair_cases([args.train_scans], [args.train_masks], args.ext, ("--train_scans", "--train_masks"))
    val = pair_cases([args.val_scans], [args.val_masks], args.ext, ("--val_scans", "--val_masks"))
    train, val = (with_brains(cases, args.brains_dir) for cases in (train, val))
    refuse_twins(train, val)
    say_shared((case.subject for case in train), (case.subject for case in val))
    check_headers(train + val, args.scan_dim, args.resize_to)
    return train, val


if __name__ == "__main__":
    cli.run(main, parse_args)
