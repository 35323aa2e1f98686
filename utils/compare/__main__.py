"""Two models on the same scans: ``python -m utils.compare A.csv B.csv`` says in which scores they differ beyond chance.

A.csv and B.csv are per_scan_scores.csv or rpn_per_scan_scores.csv of two runs, or one file that holds two models.
Scans are matched by name. Of each score: both means, the difference B - A with its 95 % interval (percentile bootstrap
over the scans), and the p of Wilcoxon's signed-rank test.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils import cli
from utils.errors import UserError
from utils.files import write_csv
from utils.scores.intervals import estimate
from utils.scores.proposals import COUNTS
from utils.settings import option
from utils.validators import non_negative_int, pathname

FOLD = re.compile(r"_fold-\d+$")  # what cross-validation puts behind the name of a model
COLUMNS = ["score", "mean_a", "mean_b", "difference", "low", "high", "p", "scans"]


@dataclass(frozen=True)
class Settings:
    """Two models."""

    a: str = option(pathname, "scores per scan", positional=True, metavar="A.csv")
    b: str = option(pathname, "scores per scan of the other model", positional=True, metavar="B.csv")
    models: tuple[str, str] | None = option(
        str,
        "model of A.csv and of B.csv, where a file holds several; a cross-validation's --model_prefix stands for all "
        "its folds",
        nargs=2,
        metavar="NAME",
    )
    out_file: str | None = option(pathname, "CSV to write the table to; by default it is only printed")
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
        write_csv(settings.out_file, table)
        print(f"Saved as {settings.out_file}")


def read_model(side: str, path: str, name: str | None) -> pd.DataFrame:
    """The scores of a model, by the name of the scan; prints a line on what is on this side, "A" or "B".

    The name may be a cross-validation's, for all its folds; None stands for the only one in the file.
    """
    try:
        table = pd.read_csv(path, converters={"model_name": str, "scan": str})  # "NA" is a name here
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{path} is no readable table ({reason}); give a per_scan_scores.csv") from None
    for column in ("model_name", "scan"):
        if column not in table:
            raise UserError(f"{path} has no column {column}; give a per_scan_scores.csv or rpn_per_scan_scores.csv")
    if table.empty:
        raise UserError(f"{path} holds no scan; give a table with scores")
    runs = table.model_name.str.replace(FOLD, "", regex=True)
    if name is None:
        if runs.nunique() > 1:
            raise UserError(f"{path} holds several models ({', '.join(runs.unique())}); choose with --models")
        name = runs.iloc[0]
    rows = table[(table.model_name == name) | (runs == name)]
    if rows.empty:
        raise UserError(f"{path} holds no model {name}, but {', '.join(runs.unique())}; name one of them")
    if twice := rows.scan[rows.scan.duplicated()].tolist():
        models = ", ".join(rows.model_name[rows.scan == twice[0]])
        raise UserError(f"{path} holds {twice[0]} more than once ({models}); choose one model with --models")
    print(f"{side}: {name}, {len(rows)} scan{'' if len(rows) == 1 else 's'} of {path}")
    return rows.set_index("scan").select_dtypes("number").drop(columns=COUNTS, errors="ignore")


def match_scans(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows and columns that are in both tables, in one order; prints what is not."""
    scans, scores = a.index.intersection(b.index), [score for score in a if score in b]
    for what, common in (("scan", scans), ("score", scores)):
        if not len(common):
            raise UserError(f"A.csv and B.csv have no {what} in common; give tables of the same scans")
    if len(a) + len(b) > 2 * len(scans):
        print(f"{len(a) - len(scans)} scans are only in A and {len(b) - len(scans)} only in B: they are left out")
    if alone := [*a.columns.difference(b.columns), *b.columns.difference(a.columns)]:
        print(f"Only one of the tables has {', '.join(alone)}: left out, too")
    return a.loc[scans, scores], b.loc[scans, scores]


def compare(a: pd.DataFrame, b: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row of `COLUMNS` for each score, of the scans that have it on both sides; `a` and `b` are of `match_scans`."""
    from scipy.stats import wilcoxon

    rows = []
    for score in a:
        both = a[score].notna() & b[score].notna()
        change = (b[score] - a[score])[both]
        result = estimate(change, np.ones(len(change)), seed)
        means = a[score][both].mean(), b[score][both].mean()
        p = float(wilcoxon(change).pvalue) if change.any() else np.nan  # where something changes
        rows.append((score, *means, result.mean, result.low, result.high, p, result.scans))
    return pd.DataFrame(rows, columns=COLUMNS)


def finding(table: pd.DataFrame) -> str:
    """What differs beyond chance, in a sentence or two."""
    if table.low.isna().all():
        return "Whether the models differ takes two scans or more to tell."
    beyond = table[(table.low > 0) | (table.high < 0)]
    if beyond.empty:
        return "No score differs beyond chance: each interval of a difference holds 0."
    listed = ", ".join(f"{row.score} ({row.difference:+.3f})" for row in beyond.itertuples())
    return (
        f"Beyond chance B differs from A in {listed}: there the interval of the difference does not hold 0. "
        f"By chance alone one in twenty scores would; here are {len(table)}."
    )


if __name__ == "__main__":
    cli.run(main, parse_args)
