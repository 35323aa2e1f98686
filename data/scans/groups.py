"""What groups the scans of a cohort: the centre that their names tell, and a table of the subjects."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from data.files.listing import counted
from data.scans.centres import centre_of_name
from data.scans.cohort import Case
from utils.errors import UserError
from utils.metadata import ARGUMENT, read_metadata

# Names of columns.
SESSION = re.compile(r"ses(sion)?([ _]?id)?", re.IGNORECASE)
CENTRE = re.compile(r".*(cent(re|er)|site|hospital|institut).*", re.IGNORECASE)
MOST_VALUES = 12  # of a column that groups scans by its values, unless these are centres
SHARES = (1 / 3, 2 / 3)  # quantiles at which numbers of more values are cut


def group_scans(cases: Sequence[Case], metadata: str | None) -> pd.DataFrame:
    """Groups of scans: a row for each, by its name, and a column for each grouping; NaN where a scan is in no group.

    ``centre``, that of the names unless the table has it, then the columns of the table: their values or, of numbers
    with many values, thirds of the scans. What has many other values is left out, with a printed line.
    """
    names = [case.name for case in cases]
    rows = match_metadata(cases, metadata) if metadata else pd.DataFrame(index=names)
    if "centre" not in rows:
        rows.insert(0, "centre", pd.Series([centre_of_name(case) for case in cases], names, dtype="str"))
    return pd.DataFrame({name: _as_groups(rows[name]) for name in rows}, names).dropna(axis=1, how="all")


def match_metadata(cases: Sequence[Case], path: str) -> pd.DataFrame:
    """The row of each scan, by its name, in a table that `read_metadata` reads; NaN of those that it lacks.

    A row belongs to a subject or, where the table and the scan tell one, to a session of it. Refuses a table without
    any of the subjects, and one with several rows of a scan.
    """
    table, rows = read_metadata(path), dict[str, int]()
    subjects, table = table.index, table.reset_index(drop=True)
    sessions = [name for name in table if SESSION.fullmatch(str(name))]
    session = table[sessions[0]].str.removeprefix("ses-") if sessions else None
    for case in cases:
        own = pd.Series(subjects == case.subject)
        if session is not None and case.session:
            own &= session.isna() | (session == case.session)
        if own.sum() > 1:
            raise UserError(f"{ARGUMENT} {path} has several rows of {case.name}; keep one, or tell sessions apart")
        rows[case.name] = int(own.argmax()) if own.any() else -1
    unknown = [case.subject for case in cases if rows[case.name] < 0]
    if len(unknown) == len(cases):
        raise UserError(f"{ARGUMENT} {path} has none of the subjects, such as {unknown[0]}; give the table of theirs")
    if unknown:
        print(f"{ARGUMENT} {path} lacks {counted(len(unknown), 'scan')}, e.g. of {unknown[0]}: in no group of it")
    return table.drop(columns=sessions).reindex(list(rows.values())).set_axis(list(rows))


def _as_groups(column: pd.Series) -> pd.Series:
    """A categorical column, its groups in their order; all NaN, with a printed line, where there are too many."""
    numbers, n_values = pd.to_numeric(column, errors="coerce"), column.nunique()
    numeric = numbers.count() == column.count()
    if n_values <= MOST_VALUES or CENTRE.fullmatch(str(column.name)):
        order = sorted(column.dropna().unique(), key=float if numeric else str)
        return column.astype(pd.CategoricalDtype(order, ordered=True))
    if not numeric:
        print(f"{ARGUMENT}: {column.name} has {n_values} values, too many for groups; it is left out")
        return pd.Series(np.nan, column.index)
    cuts = [cut for cut in numbers.quantile(SHARES, interpolation="lower").unique() if cut < numbers.max()]
    edges = [numbers.min(), *cuts, numbers.max()]
    return pd.cut(numbers, [-np.inf, *cuts, np.inf], labels=[f"{a:.10g} to {b:.10g}" for a, b in pairwise(edges)])
