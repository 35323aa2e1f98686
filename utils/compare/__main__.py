"""Models on the same scans: ``python -m utils.compare A.csv B.csv [C.csv ...]`` says which differ, and ranks them.

The tables are per_scan_scores.csv or rpn_per_scan_scores.csv of two or more runs, or one file that holds several
models, named by --models. Scans are matched by name. Of each score and each model against the first: both means, their
difference with its 95 % interval (percentile bootstrap over the scans), and the p of Wilcoxon's signed-rank test.
Then the ranking as in challenges: models are ranked in each scan by each score, the ranks averaged over the scores and
then over the scans; the bootstrap over scans says how sure the order is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pandas as pd

from utils import cli
from utils.errors import UserError
from utils.files import write_csv
from utils.scores.intervals import RESAMPLES, estimate
from utils.scores.proposals import COUNTS
from utils.scores.ranks import ISLES26, rank_models
from utils.settings import option
from utils.validators import non_negative_int, pathname

FOLD = re.compile(r"_fold-\d+$")  # what cross-validation puts behind the name of a model
VOLUMES, TRUE = "volumes.csv", "true_cm3"
SAME_CM3, SAME_SHARE = 0.1, 0.2  # by which the lesions of a scan may differ on two grids
FEWEST = 6  # scans: five that all change alike are one case of sixteen by chance
COLUMNS = ["score", "mean_a", "mean_b", "difference", "low", "high", "p", "scans"]


@dataclass(frozen=True)
class Settings:
    """Models to compare."""

    tables: tuple[str, ...] = option(
        pathname, "scores per scan of each model, or one file of several", positional=True, nargs="+", metavar="A.csv"
    )
    models: tuple[str, ...] | None = option(
        str,
        "model of each table, or several of one table; a cross-validation's --model_prefix stands for all its folds",
        nargs="+",
        metavar="NAME",
    )
    out_file: str | None = option(
        pathname, "CSV to write the differences to, with the ranks beside it; by default they are only printed"
    )
    seed: int = option(non_negative_int, "seed of all random generators", 42)


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    chosen = sides(settings)
    read = dict(read_model(*side) for side in chosen)
    require_same_lesions({label: path for label, (_, path, _) in zip(read, chosen, strict=True)})
    models = match_scans(read)
    known = list(next(iter(models.values())))
    ranked = [score for score in ISLES26 if score in known] or known
    differences = print_differences(models, settings.seed)
    ranking = print_ranking({label: scores[ranked] for label, scores in models.items()}, settings.seed)
    if settings.out_file:
        path = Path(settings.out_file)
        for file, table in ((path, differences), (path.with_name(f"{path.stem}_ranks.csv"), ranking)):
            write_csv(file, table)
            print(f"Saved as {file}")


def sides(settings: Settings) -> list[tuple[str, str, str | None]]:
    """Letter, table and name of each model."""
    names = settings.models or (None,) * len(settings.tables)
    tables = settings.tables * (len(names) if len(settings.tables) == 1 else 1)
    if not 2 <= len(tables) == len(names) <= len(ascii_uppercase):
        raise UserError(
            f"{len(tables)} tables for {len(names)} models; give a table for each of 2 to {len(ascii_uppercase)} "
            "models, or one that holds them and their --models"
        )
    return list(zip(ascii_uppercase, tables, names, strict=False))


def read_model(side: str, path: str, name: str | None) -> tuple[str, pd.DataFrame]:
    """What a model is called here ("A: name"), and its scores by the name of the scan; prints a line on them.

    The name may be a cross-validation's, for all its folds; None stands for the only one in the file.
    """
    table = _read_table(path)
    for column in ("model_name", "scan"):
        if column not in table:
            raise UserError(f"{path} has no column {column}; give a per_scan_scores.csv or rpn_per_scan_scores.csv")
    if table.empty:
        raise UserError(f"{path} holds no scan; give a table with scores")
    runs = _runs_of(table)
    if name is None:
        if runs.nunique() > 1:
            raise UserError(f"{path} holds several models ({', '.join(runs.unique())}); choose with --models")
        name = runs.iloc[0]
    rows = _rows_of(table, name)
    if rows.empty:
        raise UserError(f"{path} holds no model {name}, but {', '.join(runs.unique())}; name one of them")
    if twice := rows.scan[rows.scan.duplicated()].tolist():
        models = ", ".join(rows.model_name[rows.scan == twice[0]])
        raise UserError(f"{path} holds {twice[0]} more than once ({models}); choose one model with --models")
    print(f"{side}: {name}, {len(rows)} scan{'' if len(rows) == 1 else 's'} of {path}")
    return f"{side}: {name}", rows.set_index("scan").select_dtypes("number").drop(columns=COUNTS, errors="ignore")


def _read_table(path: Path | str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, converters={"model_name": str, "scan": str})  # "NA" is a name here
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{path} is no readable table ({reason}); give a per_scan_scores.csv") from None


def _runs_of(table: pd.DataFrame) -> pd.Series:
    """The model of each row; of a cross-validation without its fold."""
    return table.model_name.str.replace(FOLD, "", regex=True)


def _rows_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a model, or of all folds of a cross-validation."""
    return table[(table.model_name == name) | (_runs_of(table) == name)]


def require_same_lesions(tables: Mapping[str, str]) -> None:
    """Refuse scans of one name whose true lesions differ, by the volumes that a test writes beside its scores.

    `tables` are paths by what `read_model` calls their models.
    """
    known: dict[str, tuple[float, str]] = {}
    for label, path in tables.items():
        file = Path(path).with_name(VOLUMES)
        table = _read_table(file) if file.is_file() else pd.DataFrame()
        if not {"model_name", "scan", TRUE} <= set(table):  # those of other programs tell nothing
            continue
        rows = _rows_of(table, label.partition(": ")[2])
        for scan, cm3 in zip(rows.scan, pd.to_numeric(rows[TRUE], errors="coerce"), strict=True):
            before, where = known.setdefault(scan, (cm3, path))
            if abs(cm3 - before) > SAME_CM3 + SAME_SHARE * before:  # not where one is unknown, NaN
                raise UserError(
                    f"{scan} has {before:.3g} cm3 of lesion in {where}, but {cm3:.3g} in {path}: these are two scans; "
                    "give tables of the same ones"
                )


def match_scans(models: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows and columns that all tables have, in one order; prints what others have."""
    tables = list(models.values())
    scans = reduce(lambda common, index: common.intersection(index), (table.index for table in tables))
    every = list(dict.fromkeys(str(score) for table in tables for score in table))
    scores = [score for score in every if all(score in table for table in tables)]
    for what, common in (("scan", scans), ("score", scores)):
        if not len(common):
            files = " and ".join(f"{label[0]}.csv" for label in models)
            raise UserError(f"{files} have no {what} in common; give tables of the same scans")
    if alone := [f"{n} of {label[0]}" for label, table in models.items() if (n := len(table) - len(scans))]:
        print(f"Scans that are not in all tables are left out: {', '.join(alone)}")
    if len(scores) < len(every):
        print(f"Not all tables have {', '.join(score for score in every if score not in scores)}: left out, too")
    return {label: table.loc[scans, scores] for label, table in models.items()}


def print_differences(models: dict[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Print each model against the first, A; the rows of all, with the other model's name as ``model_b`` behind."""
    (_, a), *others = models.items()
    formats = {"p": lambda p: "" if np.isnan(p) else f"{p:.2g}"}
    tables = []
    for label, b in others:
        table = compare(a, b, seed)
        if len(others) > 1:
            print(f"\nA and {label}")
        shown = table.rename(columns={"mean_b": f"mean_{label[0].lower()}"})
        print(shown.to_string(index=False, float_format="{:.3f}".format, formatters=formats, na_rep=""))
        print(finding(table, label[0]))
        tables.append(table.assign(model_b=label))
    return pd.concat(tables, ignore_index=True)


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


def finding(table: pd.DataFrame, side: str) -> str:
    """What differs beyond chance between A and another side, in a sentence or two."""
    if table.low.isna().all():
        return "Whether the models differ takes two scans or more to tell."
    beyond = table[((table.low > 0) | (table.high < 0)) & (table.scans >= FEWEST)]
    if table.scans.max() < FEWEST:
        return f"Whether the models differ beyond chance takes {FEWEST} scans or more to tell."
    if beyond.empty:
        return "No score differs beyond chance: each interval of a difference holds 0."
    listed = ", ".join(f"{row.score} ({row.difference:+.3f})" for row in beyond.itertuples())
    return (
        f"Beyond chance {side} differs from A in {listed}: there the interval of the difference does not hold 0. "
        f"By chance alone one in twenty scores would; here are {len(table)}."
    )


def print_ranking(models: dict[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Print the ranking by all scores of the tables; returns that of `rank_models`."""
    table, share = rank_models(models, seed)
    print(f"\nRanked by {', '.join(map(str, next(iter(models.values()))))}:")
    print(table.to_string(index=False, float_format="{:.3f}".format, formatters={"place": "{:g}".format}, na_rep=""))
    order = " before ".join(label[0] for label in table.model)
    if np.isnan(share):
        print("How sure this order is takes two scans or more to tell.")
    else:
        print(f"{order} in {100 * share:.1f} % of {RESAMPLES} resamples of the scans.")
    return table


if __name__ == "__main__":
    cli.run(main, parse_args)
