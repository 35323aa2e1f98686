"""Train the region proposal network (stage 1) on 2D slices; ``python -m data.slices`` makes them."""

from utils import cli


def parse_args():
    parser = cli.make_parser(__doc__)
    cli.add_seed(parser)
    cli.add_train_val(parser, "slices (2D)")
    cli.add_loader(parser, batch_size=32)
    cli.add_transforms(parser)
    cli.add_rpn_model(parser)
    cli.add_roi_size(parser)
    cli.add_training(parser, "RPN")
    cli.add_logging(parser)
    return parser.parse_args()


def main(args) -> None:
    from data.slices import channels_of, check_slices, read_slice_table
    from models.training import train_rpn

    train = read_slice_table(args.train_scans, args.train_masks, ("--train_scans", "--train_masks"))
    val = read_slice_table(args.val_scans, args.val_masks, ("--val_scans", "--val_masks"))
    for table in (train, val):
        check_slices(table, channels_of(train))
    print(f"Best checkpoint: {train_rpn(args, train, val, args.model_prefix)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
