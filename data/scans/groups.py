"""What groups scans and subjects: the centre that their names tell, and a table of the subjects."""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from data.files.listing import DESCRIPTION, NOT_RAW, absolute, counted
from data.scans.checks import read_column
from data.scans.cohort import Case
from data.scans.fingerprints import stamp_of
from data.scans.folds import Fold
from utils.errors import UserError

CENTRE = "centre"  # of ``--groups``, and the column of a prepared cohort's table
ATLAS_SUBJECT = re.compile(r"(r\d+)s\d+", re.IGNORECASE)  # r001s002, subject 2 of centre R001
NO_CENTRE = ("rawdata", *NOT_RAW)  # folders between a BIDS data set's root and its subjects
ARGUMENT = "--metadata"
# Names of columns.
SUBJECT = re.compile(r"(.*[ _])?(sub|subject|participant|patient|bids)([ _]?id)?|id", re.IGNORECASE)  # of a column
SESSION = re.compile(r"ses(sion)?([ _]?id)?", re.IGNORECASE)
CENTRE_COLUMN = re.compile(r".*(cent(re|er)|site|hospital|institut).*", re.IGNORECASE)
MOST_VALUES = 12  # of a column that groups scans by its values, unless these are centres
SHARES = (1 / 3, 2 / 3)  # quantiles at which numbers of more values are cut


def centre_of_name(case: Case) -> str | None:
    """The centre by ATLAS's names, the folder that holds the subject's, or the ``cohort.csv`` of `data.prepare`.

    None where none of them says it: R001 for r001s002, SOOP for SOOP/sub-soop0001/ses-1/anat/....
    """
    if match := ATLAS_SUBJECT.fullmatch(case.subject):
        return match[1].upper()
    subject = next((f for f in absolute(case.scan).parents if f.name == f"sub-{case.subject}"), None)
    if subject is not None:
        is_root = subject.parent.name in NO_CENTRE or (subject.parent / DESCRIPTION).is_file()
        return None if is_root else subject.parent.name or None
    table = case.scan.parent.parent / "cohort.csv"
    centres = read_column(table, CENTRE, stamp_of(table)) if table.is_file() else None
    listed = (centres or {}).get(case.name, set())
    return next(iter(listed)) or None if len(listed) == 1 else None


def require_one_centre(cases: Iterable[Case]) -> None:
    """Refuse a subject of two centres: these are two people of one name."""
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.subject, case)
        if centre_of_name(case) != centre_of_name(other):
            raise UserError(f"{other.scan} and {case.scan} are one subject of two centres; rename one of the two")


def groups_of(cases: Iterable[Case], column: str, metadata: pd.DataFrame | None = None) -> dict[str, str]:
    """The group of each subject: what a column of `metadata` says or, where it has no column ``centre``, its centre.

    Args:
        metadata: the table of ``--metadata``, indexed by subject.

    Raises:
        UserError: no such column, a subject of unknown group, or of two.
    """
    said: dict[Hashable, set[str]] = defaultdict(set)
    if metadata is not None and column in metadata:
        for subject, group in metadata[column].dropna().items():
            said[subject].add(str(group))
    elif column == CENTRE:
        for case in cases:
            said[case.subject].update(filter(None, [centre_of_name(case)]))
    else:
        columns = "not given" if metadata is None else f"of the columns {', '.join(map(str, metadata))}"
        raise UserError(f"--groups {column} is no column of --metadata, which is {columns}; give one that is")
    for subject in sorted({case.subject for case in cases}):
        if len(said[subject]) != 1:
            what = f"two groups ({' and '.join(sorted(said[subject])[:2])})" if said[subject] else "no group"
            raise UserError(f"--groups {column}: subject {subject} has {what}; give each one in a table as --metadata")
    return {case.subject: next(iter(said[case.subject])) for case in cases}


def mixed_groups(folds: Iterable[Fold], groups: Mapping[str, str]) -> set[str]:
    """The groups with subjects on two sides of a fold."""
    mixed = set()
    for fold in folds:
        train, val, test = ({groups[s] for s in side if s in groups} for side in (fold.train, fold.val, fold.test))
        mixed |= train & val | train & test | val & test
    return mixed


def require_whole_groups(folds: Iterable[Fold], groups: Mapping[str, str], path: Path | str) -> None:
    """Refuse folds of a file with a group on two sides."""
    if mixed := mixed_groups(folds, groups):
        raise UserError(f"{path}: group {min(mixed)} stands on two sides of a fold; leave --groups out or give others")


def print_mixed_centres(cases: Iterable[Case], folds: Iterable[Fold]) -> None:
    """One line where names say the centres and folds have some of them on two sides."""
    centres = {case.subject: centre for case in cases if (centre := centre_of_name(case))}
    if len(set(centres.values())) > 1 and (mixed := mixed_groups(folds, centres)):
        print(
            f"Folds mix {counted(len(mixed), CENTRE)}: scores read too high for a new centre, about 0.02 of Dice on "
            f"ATLAS v3; --groups {CENTRE} keeps each on one side"
        )


def read_metadata(path: Path | str) -> pd.DataFrame:
    """A table such as BIDS's ``participants.tsv``, by subject, without ``sub-``; text, and NaN where unknown."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            separator = max("\t,;", key=file.readline().count)
        table = pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig", index_col=False)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{ARGUMENT} {path} is no readable table ({reason}); give a .tsv or .csv") from None
    named = [name for name in table if SUBJECT.fullmatch(str(name))]
    if not named:
        raise UserError(f"{ARGUMENT} {path} has no column of subjects; name it participant_id")
    table = table.apply(lambda column: column.str.strip()).drop_duplicates()
    return table.set_index(table.pop(named[0]).str.removeprefix("sub-"))


def group_scans(cases: Sequence[Case], metadata: str | None) -> pd.DataFrame:
    """Groups of scans: a row for each, by its name, and a column for each grouping; NaN where a scan is in no group.

    ``centre``, that of the names unless the table has it, then the columns of the table: their values or, of numbers
    with many values, thirds of the scans. What has many other values is left out, with a printed line.
    """
    names = [case.name for case in cases]
    rows = match_metadata(cases, metadata) if metadata else pd.DataFrame(index=names)
    if CENTRE not in rows:
        rows.insert(0, CENTRE, pd.Series([centre_of_name(case) for case in cases], names, dtype="str"))
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
    if n_values <= MOST_VALUES or CENTRE_COLUMN.fullmatch(str(column.name)):
        order = sorted(column.dropna().unique(), key=float if numeric else str)
        return column.astype(pd.CategoricalDtype(order, ordered=True))
    if not numeric:
        print(f"{ARGUMENT}: {column.name} has {n_values} values, too many for groups; it is left out")
        return pd.Series(np.nan, column.index)
    cuts = [cut for cut in numbers.quantile(SHARES, interpolation="lower").unique() if cut < numbers.max()]
    edges = [numbers.min(), *cuts, numbers.max()]
    return pd.cut(numbers, [-np.inf, *cuts, np.inf], labels=[f"{a:.10g} to {b:.10g}" for a, b in pairwise(edges)])
