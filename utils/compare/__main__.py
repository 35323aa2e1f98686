"""Two models on the same scans: ``python -m utils.compare A.csv B.csv`` says in which scores they differ beyond chance.

A.csv and B.csv are per_scan_scores.csv or rpn_per_scan_scores.csv of two runs, or one file that holds two models.
Scans are matched by name. Of each score: both means, the difference B - A with its 95 % interval (percentile bootstrap
over the scans), and the p of Wilcoxon's signed-rank test.
"""

from argparse import Namespace

import numpy as np

from utils import cli
from utils.files import atomic_path
from utils.scores.comparison import compare, finding, match_scans, read_model


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("a", metavar="A.csv", help="scores per scan")
    parser.add_argument("b", metavar="B.csv", help="scores per scan of the other model")
    parser.add_argument(
        "--models",
        nargs=2,
        default=None,
        metavar="NAME",
        help="model of A.csv and of B.csv, where a file holds several; a cross-validation's --model_prefix stands for "
        "all its folds",
    )
    parser.add_argument("--out_file", default=None, help="CSV to write the table to; None for none")
    cli.add_seed(parser)
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    sides = zip("AB", (args.a, args.b), args.models or (None, None), strict=True)
    a, b = match_scans(*(read_model(side, path, name) for side, path, name in sides))
    table = compare(a, b, args.seed)
    formats = {"p": lambda p: "" if np.isnan(p) else f"{p:.2g}"}
    print(table.to_string(index=False, float_format="{:.3f}".format, formatters=formats, na_rep=""))
    print(finding(table))
    if args.out_file:
        with atomic_path(args.out_file) as temporary:
            table.to_csv(temporary, index=False)
        print(f"Saved as {args.out_file}")


if __name__ == "__main__":
    cli.run(main, parse_args)
