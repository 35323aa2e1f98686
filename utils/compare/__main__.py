"""Two models on the same scans: ``python -m utils.compare A.csv B.csv`` says in which scores they differ beyond chance.

A.csv and B.csv are per_scan_scores.csv or rpn_per_scan_scores.csv of two runs, or one file that holds two models.
Scans are matched by name. Of each score: both means, the difference B - A with its 95 % interval (percentile bootstrap
over the scans), and the p of Wilcoxon's signed-rank test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils import cli
from utils.files import atomic_path
from utils.scores.comparison import compare, finding, match_scans, read_model
from utils.settings import option
from utils.validators import non_negative_int


@dataclass(frozen=True)
class Settings:
    """Two models."""

    a: str = option(str, "scores per scan", positional=True, metavar="A.csv")
    b: str = option(str, "scores per scan of the other model", positional=True, metavar="B.csv")
    models: tuple[str, str] | None = option(
        str,
        "model of A.csv and of B.csv, where a file holds several; a cross-validation's --model_prefix stands for all "
        "its folds",
        nargs=2,
        metavar="NAME",
    )
    out_file: str | None = option(str, "CSV to write the table to; None for none")
    seed: int = option(non_negative_int, "seed of all random generators", 42)


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    return cli.parse(Settings(), __doc__, argv)


def main(settings: Settings) -> None:
    sides = zip("AB", (settings.a, settings.b), settings.models or (None, None), strict=True)
    a, b = match_scans(*(read_model(side, path, name) for side, path, name in sides))
    table = compare(a, b, settings.seed)
    formats = {"p": lambda p: "" if np.isnan(p) else f"{p:.2g}"}
    print(table.to_string(index=False, float_format="{:.3f}".format, formatters=formats, na_rep=""))
    print(finding(table))
    if settings.out_file:
        with atomic_path(settings.out_file) as temporary:
            table.to_csv(temporary, index=False)
        print(f"Saved as {settings.out_file}")


if __name__ == "__main__":
    cli.run(main, parse_args)
