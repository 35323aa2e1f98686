"""Train the region proposal network (stage 1) on 2D slices; ``python -m data.slices`` makes them."""

from utils import cli
from utils.files import require_writable


def parse_args(argv: list[str] | None = None):
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    cli.add_train_val(parser, "slices (2D)")
    cli.add_loader(parser, batch_size=32)
    cli.add_transforms(parser)
    cli.add_rpn_model(parser)
    cli.add_roi_size(parser)
    cli.add_training(parser, "RPN")
    cli.add_logging(parser)
    return parser.parse_args(argv)


def main(args) -> None:
    train, val = find_slices(args)  # first: a wrong path is refused before the heavy libraries load

    from data.batches.slices import admit_slices
    from models.precision import use_precision
    from models.training.fit import train_rpn
    from models.training.processes import follow, require_devices
    from models.training.runs import run_folder

    require_devices(args, batch_size=args.batch_size)
    use_precision(args.precision)
    if follow(args):
        return
    store = run_folder(args, args.model_prefix) / "fingerprints.json"
    inputs = admit_slices({"train": train, "val": val}, store, args.num_workers)
    print(f"Best checkpoint: {train_rpn(args, train, val, args.model_prefix, inputs)}")


def find_slices(args) -> tuple:
    from data.batches.slices import read_slice_table, require_one_size
    from data.scans.cohort import say_shared

    train = read_slice_table(args.train_scans, args.train_masks, ("--train_scans", "--train_masks"))
    val = read_slice_table(args.val_scans, args.val_masks, ("--val_scans", "--val_masks"))
    require_writable(args.default_root_dir, "--default_root_dir")
    require_one_size(train, val)
    say_shared(train.subject, val.subject)
    return train, val


if __name__ == "__main__":
    cli.run(main, parse_args)
