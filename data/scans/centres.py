"""The centre that a scan was made at, and other groups of subjects, which folds keep on one side."""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data.files.listing import DESCRIPTION, NOT_RAW, absolute, counted
from data.scans.checks import read_column
from data.scans.cohort import Case
from data.scans.fingerprints import stamp_of
from data.scans.folds import Fold
from utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CENTRE = "centre"  # of ``--groups``, and the column of a prepared cohort's table
ATLAS_SUBJECT = re.compile(r"(r\d+)s\d+", re.IGNORECASE)  # r001s002, subject 2 of centre R001
NO_CENTRE = ("rawdata", *NOT_RAW)  # folders between a BIDS data set's root and its subjects


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


def groups_of(cases: Iterable[Case], column: str, metadata: "pd.DataFrame | None" = None) -> dict[str, str]:
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
