"""Folds: subjects split into training, validation and test sets, stratified by lesion load."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.scans.cohort import Case
from utils.errors import UserError
from utils.files import read_json, write_json

GOLDEN_RATIO = (5**0.5 - 1) / 2
LOAD_BINS = 4  # in whose numbers folds of whole groups are balanced


@dataclass(frozen=True)
class Fold:
    """Subjects of one fold; the three lists are disjoint."""

    train: list[str]
    val: list[str]
    test: list[str]


def make_folds(loads: dict[str, float], k: int, splits: tuple[int, int, int], seed: int) -> list[Fold]:
    """Split subjects into k folds, stratified by their lesion loads; refuses too few subjects.

    Subjects are sorted by load and dealt onto a circle in golden-ratio steps, so that any arc of the circle
    holds light and heavy subjects in proportion (the three-distance theorem). Fold i tests the arc at i/k of the
    circle and validates on the arc after it; with a test share of 100/k the test arcs tile the circle, so every
    subject is tested exactly once.

    Args:
        splits: percentages of train, validation and test; they sum to 100.
    """
    n, rng = len(loads), np.random.default_rng(seed)
    n_val, n_test = held_out(n, k, splits)
    subjects = sorted(loads)
    order = np.lexsort([rng.random(n), np.array([loads[s] for s in subjects])])
    position = (np.arange(n) * GOLDEN_RATIO + rng.random()) % 1
    circle = [subjects[order[rank]] for rank in np.argsort(position)]
    folds = []
    for start, following in pairwise(i * n // k for i in range(k + 1)):
        size = following - start if splits[2] == round(100 / k) else n_test
        turned = circle[start:] + circle[:start]
        test, val, train = turned[:size], turned[size : size + n_val], turned[size + n_val :]
        folds.append(Fold(sorted(train), sorted(val), sorted(test)))
    return folds


def held_out(n: int, k: int, splits: tuple[int, int, int]) -> tuple[int, int]:
    """How many of n subjects validate and test in each of k folds; refuses too few subjects."""
    n_val, n_test = max(round(n * splits[1] / 100), 1), max(round(n * splits[2] / 100), 1)
    if n < k or n_val + n_test >= n:
        raise UserError(f"--k {k} with --splits {splits} needs more than the {n} subjects of this cohort")
    return n_val, n_test


def make_group_folds(
    loads: dict[str, float], groups: Mapping[str, str], k: int, splits: tuple[int, int, int], seed: int
) -> list[Fold]:
    """Split subjects into k folds, no group of which stands on two sides; every subject is tested exactly once.

    No test set has more than n / k subjects and the largest group. Validation is as near to its share as groups allow.

    Args:
        groups: of each subject.
    """
    n, rng, subjects = len(loads), np.random.default_rng(seed), sorted(loads)
    order = np.lexsort([rng.random(n), np.array([loads[s] for s in subjects])])
    bins = {subjects[i]: rank * LOAD_BINS // n for rank, i in enumerate(order)}
    wanted = _counts(bins, subjects) * splits[1] / 100
    folds = []
    for test in _deal_groups(bins, groups, k, rng):
        rest = {s: bins[s] for s in subjects if s not in test}
        if (n_groups := len({groups[s] for s in rest})) < 2:
            raise UserError(f"--k {k} with --groups leaves one group to train and validate on; give a larger --k")
        n_parts = min(max(round(100 / splits[1] * len(rest) / n), 2), n_groups)
        parts = _deal_groups(rest, groups, n_parts, rng)
        val = min(parts, key=lambda part: float(((_counts(bins, part) - wanted) ** 2).sum()))
        folds.append(Fold([s for s in rest if s not in val], sorted(val), sorted(test)))
    return folds


def _deal_groups(
    bins: Mapping[str, int], groups: Mapping[str, str], n: int, rng: np.random.Generator
) -> list[set[str]]:
    """Deal whole groups to n parts, the largest first, each to the part that has least of its load bins.

    A part takes no more once it has its share, so that none exceeds it by more than the largest group. On centres such
    as ATLAS's, parts come out more even than with scikit-learn's StratifiedGroupKFold: the largest of 5 parts of 33
    centres is 3 % above the mean in place of 9 %.
    """
    members = defaultdict(list)
    for subject in sorted(bins):
        members[groups[subject]].append(subject)
    parts: list[set[str]] = [set() for _ in range(n)]
    counts = np.zeros((n, LOAD_BINS))
    for group in sorted(rng.permutation(sorted(members)), key=lambda name: -len(members[name])):
        own, sizes = _counts(bins, members[group]), counts.sum(1)
        overlap = np.where(sizes < len(bins) / n, counts @ own, np.inf)
        part = np.lexsort([sizes, overlap])[0]
        counts[part] += own
        parts[part].update(members[group])
    return parts


def _counts(bins: Mapping[str, int], subjects: Iterable[str]) -> np.ndarray:
    """How many subjects are in each load bin, (`LOAD_BINS`,)."""
    return np.bincount([bins[s] for s in subjects], minlength=LOAD_BINS)


def require_groups(groups: Mapping[str, str], k: int, splits: tuple[int, int, int]) -> None:
    """Refuse too few groups for k folds, and a share of test subjects that would not test each once."""
    if splits[2] != (share := round(100 / k)):
        raise UserError(f"--groups tests every subject once: give --splits with {share} for the test of --k {k}")
    if (n := len(set(groups.values()))) < (needed := max(k, 4 if k == 2 else 3)):
        raise UserError(f"--k {k} with --groups needs {needed} groups, and this cohort has {n}; give a smaller --k")


def write_folds(path: Path | str, folds: list[Fold], **settings) -> None:
    write_json(path, {**settings, "folds": [vars(fold) for fold in folds]})


def read_folds(path: Path | str, subjects: set[str]) -> list[Fold]:
    """Read ``folds.json`` and check it against the cohort's subjects."""
    folds = listed_folds(path)
    for number, fold in enumerate(folds):
        listed = fold.train + fold.val + fold.test
        if len(listed) != len(set(listed)):
            raise UserError(f"{path}: a subject of fold {number} stands on two sides; each belongs on one")
        if strangers := set(listed) - subjects:
            raise UserError(f"{path}: subject {min(strangers)} of fold {number} is not in the cohort; bring it back")
    return folds


def listed_folds(path: Path | str) -> list[Fold]:
    """The folds of a ``folds.json``, whatever the cohort."""
    content = read_json(path)
    try:
        return [Fold(f["train"], f["val"], f["test"]) for f in content["folds"]]
    except (KeyError, TypeError):
        raise UserError(f"{path} has no list 'folds' of train, val and test subjects") from None


def read_begun_folds(path: Path, subjects: set[str]) -> list[Fold]:
    """The folds of a run that was begun; refuses a cohort that subjects have joined or left since."""
    folds = read_folds(path, subjects)
    if joined := subjects - {subject for fold in folds for subject in fold.train + fold.val + fold.test}:
        raise UserError(
            f"{path}: subject {min(joined)} has joined the cohort since; begin anew with another name, or go on "
            "without it with this file as --folds"
        )
    return folds


def cases_of(cases: Iterable[Case], subjects: Iterable[str]) -> list[Case]:
    """All sessions of the given subjects."""
    wanted = set(subjects)
    return [case for case in cases if case.subject in wanted]


def lesion_loads(shares: Mapping[Case, float]) -> dict[str, float]:
    """The lesion load of each subject, the mean over its scans of the share of voxels that are lesion."""
    loads = defaultdict(list)
    for case, share in shares.items():
        loads[case.subject].append(share)
    return {subject: float(np.mean(values)) for subject, values in loads.items()}


def usable_augmented(augmented: Mapping[Case, set[str]], fold: Fold) -> list[Case]:
    """Those augmented scans whose recipient and donors all train in this fold."""
    return [case for case, origins in augmented.items() if origins <= set(fold.train)]
