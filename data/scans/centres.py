"""The centre that a scan was made at, and other groups of subjects, which folds keep on one side."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data.files.listing import DESCRIPTION, NOT_RAW, absolute, counted
from data.scans.checks import read_column
from data.scans.cohort import Case
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
    listed = read_column(case.scan.parent.parent / "cohort.csv", CENTRE).get(case.name, set())
    return next(iter(listed)) or None if len(listed) == 1 else None


def require_one_centre(cases: Iterable[Case]) -> None:
    """Refuse a subject of two centres: these are two people of one name."""
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.subject, case)
        if centre_of_name(case) != centre_of_name(other):
            raise UserError(f"{other.scan} and {case.scan} are one subject of two centres; rename one of the two")


def groups_of(cases: Iterable[Case], column: str, metadata: "pd.DataFrame | None", table: Path | str) -> dict[str, str]:
    """The group of each subject: what a column of ``--metadata`` says or, without a column ``centre``, its centre.

    Args:
        metadata: indexed by subject, the content of the file `table`; None without one.

    Raises:
        UserError: no such column, a subject of unknown group, or of two.
    """
    groups: dict[str, str] = {}
    if metadata is not None and column in metadata:
        known = metadata[column].dropna().astype(str)
        said, source = {case: set(known[known.index == case.subject]) for case in cases}, f"rows of {table}"
    elif column == CENTRE:
        named = {case: centre_of_name(case) for case in cases}
        said, source = {case: {name} if name else set() for case, name in named.items()}, "names and folders"
    elif metadata is None:
        raise UserError(f"--groups {column} is a column of the table of --metadata; give one, or --groups {CENTRE}")
    else:
        raise UserError(f"--groups {column}: {table} has no such column; it has {', '.join(metadata.columns)}")
    for case, values in said.items():
        values |= {groups[case.subject]} if case.subject in groups else set()
        if len(values) != 1:
            what = f"two groups of subject {case.subject}, {' and '.join(sorted(values)[:2])}"
            raise UserError(
                f"--groups {column}: {source} say {what if values else f'no group of subject {case.subject}'}; correct "
                f"it, or give a table with its {column} as --metadata"
            )
        (groups[case.subject],) = values
    return groups


def mixed_groups(folds: Iterable[Fold], groups: Mapping[str, str]) -> dict[str, int]:
    """The groups with subjects on two sides of a fold, each with the number of the first such fold."""
    mixed: dict[str, int] = {}
    for number, fold in enumerate(folds):
        train, val, test = ({groups[s] for s in side if s in groups} for side in (fold.train, fold.val, fold.test))
        for group in sorted(train & val | train & test | val & test):
            mixed.setdefault(group, number)
    return mixed


def require_whole_groups(folds: Iterable[Fold], groups: Mapping[str, str], path: Path | str) -> None:
    """Refuse folds of a file with a group on two sides."""
    for group, number in mixed_groups(folds, groups).items():
        raise UserError(
            f"{path}: group {group} stands on two sides of fold {number}; leave --groups out, or give other folds"
        )


def print_mixed_centres(cases: Iterable[Case], folds: Iterable[Fold]) -> None:
    """One line where names say the centres and folds have some of them on two sides."""
    centres = {case.subject: centre for case in cases if (centre := centre_of_name(case))}
    mixed = mixed_groups(folds, centres) if len(set(centres.values())) > 1 else {}
    if mixed:
        print(
            f"Folds mix {counted(len(mixed), CENTRE)}: scores read too high for a new centre, about 0.02 of Dice on "
            f"ATLAS v3; --groups {CENTRE} keeps each on one side"
        )
