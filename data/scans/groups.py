"""What groups the scans of a cohort: the centre that their names tell, and tables of participants."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from data.files.listing import counted
from data.scans.centres import centre_of_name
from data.scans.cohort import Case
from utils.errors import UserError

ARGUMENT = "--metadata"
# Names of columns.
SUBJECT = re.compile(r"(bids[ _]?)?(sub|subject|participant|patient)?[ _]?(id)?", re.IGNORECASE)
SESSION = re.compile(r"ses(sion)?[ _]?(id)?", re.IGNORECASE)
CENTRE = re.compile(r".*(cent(re|er)|site|hospital|institut).*", re.IGNORECASE)
MOST_VALUES = 12  # of a column that groups scans by its values, unless these are centres
SHARES = (1 / 3, 2 / 3)  # quantiles at which numbers of more values are cut


def group_scans(cases: Sequence[Case], metadata: Sequence[str] | None) -> pd.DataFrame:
    """Groups of scans: a row for each, by its name, and a column for each grouping; NaN where a scan is in no group.

    ``centre``, that of the names unless a table has it, then columns of the `metadata` tables: their values or, of
    numbers with many values, thirds of the scans. What has many other values is left out, with a printed line.
    """
    names = [case.name for case in cases]
    rows = read_metadata(cases, metadata) if metadata else pd.DataFrame(index=names)
    if "centre" not in rows:
        rows.insert(0, "centre", pd.Series([centre_of_name(case) for case in cases], names, dtype="str"))
    groups = {name: _as_groups(rows[name]) for name in rows}
    for name in [name for name, values in groups.items() if values is None]:
        print(f"{ARGUMENT}: {name} has {rows[name].nunique()} values, too many for groups; it is left out")
    return pd.DataFrame(
        {name: values for name, values in groups.items() if values is not None and values.notna().any()}
    )


def read_metadata(cases: Sequence[Case], paths: Sequence[str]) -> pd.DataFrame:
    """The rows of scans in tables such as BIDS's ``participants.tsv``, as text, by the scan's name; NaN where unknown.

    A row belongs to a subject or, where the table and the scan tell one, to a session of it.

    Raises:
        UserError: a file is no table, names no subject, none of these, or a subject more than once.
    """
    files = " ".join(paths)
    table = pd.concat(map(_read_table, paths), ignore_index=True).drop_duplicates(ignore_index=True)
    columns = {name: table[name].str.strip().str.removeprefix("sub-") for name in table if SUBJECT.fullmatch(str(name))}
    known = {case.subject for case in cases}
    subjects = max(columns.values(), key=lambda column: column.isin(known).sum(), default=pd.Series(dtype=str))
    sessions = [name for name in table if SESSION.fullmatch(str(name))]
    session = table[sessions[0]].str.strip().str.removeprefix("ses-") if sessions else None
    values, rows = table.drop(columns=[*columns, *sessions]), {}
    for case in cases:
        own = subjects == case.subject
        if session is not None and case.session:
            own &= session.isna() | (session == case.session)
        if own.sum() > 1:
            raise UserError(f"{ARGUMENT} {files} has several rows of {case.name}; keep one, or tell sessions apart")
        if own.any():
            rows[case.name] = values[own].iloc[0]
    if not rows:
        raise UserError(
            f"{ARGUMENT} {files} has none of the subjects, such as {min(known)}; give a table that lists them in a "
            "column participant_id"
        )
    if unknown := [case.subject for case in cases if case.name not in rows]:
        print(f"{ARGUMENT} {files} lacks {counted(len(unknown), 'scan')}, e.g. of {unknown[0]}: in no group of it")
    return pd.DataFrame.from_dict(rows, orient="index").reindex([case.name for case in cases])


def _read_table(path: str) -> pd.DataFrame:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            separator = max("\t,;", key=file.readline().count)
        return pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{ARGUMENT} {path} is no readable table ({reason}); give a .tsv or .csv") from None


def _as_groups(column: pd.Series) -> pd.Series | None:
    """A categorical column, its groups in their order; None where there are too many."""
    known = column.str.strip()
    numbers = pd.to_numeric(known, errors="coerce")
    numeric = numbers.count() == known.count()
    if known.nunique() <= MOST_VALUES or CENTRE.fullmatch(str(column.name)):
        order = sorted(known.dropna().unique(), key=float if numeric else str)
        return known.astype(pd.CategoricalDtype(order, ordered=True))
    if not numeric:
        return None
    cuts = [cut for cut in numbers.quantile(SHARES, interpolation="lower").unique() if cut < numbers.max()]
    edges = [numbers.min(), *cuts, numbers.max()]
    return pd.cut(numbers, [-np.inf, *cuts, np.inf], labels=[f"{a:.10g} to {b:.10g}" for a, b in pairwise(edges)])
