"""A cohort: scans paired with their masks, checked, and split by subject into folds."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.volumes import EXTENSIONS, extension_of, read_volume, stem_of, volume_shape
from utils.errors import UserError
from utils.files import read_json, write_json

GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Case:
    """One scan and, where it has one, its mask.

    subject: the value of the BIDS entity ``sub-``; a file without entities is its own subject.
    """

    subject: str
    session: str | None
    scan: Path
    mask: Path | None

    @property
    def name(self) -> str:
        """The scan's file name: its key in regions JSON and in every table."""
        return self.scan.name

    @property
    def stem(self) -> str:
        return stem_of(self.scan)


# --- pairing -------------------------------------------------------------------------------------------


def bids_entity(path: Path | str, entity: str) -> str | None:
    """The value of an entity of a BIDS file name: ``bids_entity('sub-01_ses-2_T1w.npy', 'ses')`` is '2'."""
    found = re.search(rf"(?:^|_){entity}-([^_]+)", stem_of(path))
    return found.group(1) if found else None


def is_mask(path: Path) -> bool:
    return bool(re.search(r"mask|_msk", path.name))


def _identity(path: Path) -> tuple[str, str | None]:
    return bids_entity(path, "sub") or re.sub(r"(_T1w|_mask|_msk)+$", "", stem_of(path)), bids_entity(path, "ses")


def list_volumes(paths: list[Path | str], ext: str | None, argument: str) -> list[Path]:
    """Volumes among files and, recursively, folders; sorted, without hidden files."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{argument} {path} does not exist")
        inside = [path] if path.is_file() else (p for p in path.rglob("*") if not p.name.startswith("."))
        found += [p for p in inside if extension_of(p) and (ext is None or extension_of(p) == ext)]
    if not found:
        wanted = ext or ", ".join(EXTENSIONS)
        raise UserError(f"{argument} {' '.join(map(str, paths))} holds no {wanted} volume; check the path and --ext")
    return sorted(set(found))


def pair_cases(
    scans: list[Path | str],
    masks: list[Path | str] | None,
    ext: str | None = None,
    names=("--scans", "--masks"),
) -> list[Case]:
    """Pair scans with masks by their BIDS entities ``sub-`` and ``ses-``, never by position.

    Args:
        scans, masks: files or folders; `masks` None for scans that have none.
        ext: only volumes of this extension; None for any.
        names: the command-line arguments to name in messages.

    Raises:
        UserError: an empty folder, two scans or masks of one session, a scan without its mask.
    """
    scan_files = [p for p in list_volumes(scans, ext, names[0]) if not is_mask(p)]
    if not scan_files:
        raise UserError(f"{names[0]} {' '.join(map(str, scans))} holds masks only; give the folder of the scans")
    by_scan = _by_identity(scan_files, names[0])
    if masks is None:
        return [Case(*key, scan, None) for key, scan in by_scan.items()]
    by_mask = _by_identity([p for p in list_volumes(masks, ext, names[1]) if is_mask(p)], names[1])
    for key, scan in by_scan.items():
        if key not in by_mask:
            raise UserError(f"{scan} has no mask in {names[1]}; add the mask or take the scan out")
    return [Case(*key, scan, by_mask[key]) for key, scan in by_scan.items()]


def _by_identity(paths: list[Path], argument: str) -> dict[tuple, Path]:
    found: dict[tuple, Path] = {}
    for path in paths:
        key = _identity(path)
        if key in found:
            raise UserError(f"{argument}: {found[key]} and {path} are the same subject and session; keep one of them")
        found[key] = path
    return found


# --- checks and lesion load ----------------------------------------------------------------------------


def read_spacing(case: Case) -> tuple[float, float, float] | None:
    """(D, H, W) spacing in mm of a ``.npy`` scan from the ``cohort.csv`` beside its folder; None if untold."""
    table = case.scan.parent.parent / "cohort.csv"
    if not table.is_file():
        return None
    rows = pd.read_csv(table, dtype=str)
    if not {"scan", "spacing_mm"} <= set(rows.columns):
        return None
    row = rows[rows.scan == case.name]
    if row.empty:
        return None
    h, w, d = (float(s) for s in row.spacing_mm.iloc[0].split())
    return d, h, w


def read_scan(case: Case) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """A case's scan, (C, D, H, W) float32 in raw units and finite, and its spacing in mm or None."""
    volume = read_volume(case.scan)
    if not np.isfinite(volume.array).all():
        raise UserError(f"{case.scan} holds NaN or infinite voxels; mend or remove the scan")
    if volume.array.min() == volume.array.max():
        raise UserError(f"{case.scan} is constant; mend or remove the scan")
    return volume.array, volume.spacing_mm or read_spacing(case)


def read_mask(case: Case) -> np.ndarray:
    """A case's lesion mask, (D, H, W) bool."""
    mask = read_volume(case.mask).array[0]
    if not np.isin(np.unique(mask), (0, 1)).all():
        raise UserError(f"{case.mask} is not binary; a lesion mask holds 0 and 1 alone")
    return mask.astype(bool)


def check_cohort(cases: list[Case], full: bool = True) -> None:
    """Refuse broken files before any long work: shapes from the headers and, if `full`, every voxel."""
    for case in tqdm(cases, desc="Checking the cohort", unit="scan", leave=False):
        scan_shape = volume_shape(case.scan)
        if case.mask is not None and volume_shape(case.mask) != scan_shape:
            raise UserError(
                f"{case.mask} has shape {volume_shape(case.mask)} (D, H, W) but its scan {scan_shape}; "
                "resample one onto the other"
            )
        if full:
            read_scan(case)
            if case.mask is not None:
                read_mask(case)


def lesion_loads(cases: list[Case]) -> dict[str, float]:
    """Mean lesion voxels of each subject's scans, as a share of the volume."""
    loads: dict[str, list[float]] = {}
    for case in tqdm(cases, desc="Measuring lesion loads", unit="mask", leave=False):
        loads.setdefault(case.subject, []).append(float(read_mask(case).mean()))
    return {subject: float(np.mean(values)) for subject, values in loads.items()}


# --- folds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Subjects of one fold; the three lists are disjoint."""

    train: list[str]
    val: list[str]
    test: list[str]


def make_folds(loads: dict[str, float], k: int, splits: tuple[int, int, int], seed: int) -> list[Fold]:
    """Split subjects into k folds, stratified by lesion load.

    Subjects are sorted by load and dealt onto a circle in golden-ratio steps, so that any arc of the circle
    holds light and heavy subjects in proportion (the three-distance theorem). Fold i tests the arc at i/k of the
    circle and validates on the arc after it; with a test share of 100/k the test arcs tile the circle, so every
    subject is tested exactly once.

    Args:
        loads: lesion load of each subject.
        splits: percentages of train, validation and test; they sum to 100.

    Raises:
        UserError: fewer subjects than the folds need.
    """
    n = len(loads)
    circle = _stratified_circle(loads, seed)
    n_val, n_test = max(round(n * splits[1] / 100), 1), max(round(n * splits[2] / 100), 1)
    if n < k or n_val + n_test >= n:
        raise UserError(f"--k {k} with --splits {splits} needs more than the {n} subjects of this cohort")
    starts = [i * n // k for i in range(k + 1)]
    folds = []
    for start, following in pairwise(starts):
        size = following - start if splits[2] == round(100 / k) else n_test
        turned = circle[start:] + circle[:start]
        test, val, train = turned[:size], turned[size : size + n_val], turned[size + n_val :]
        folds.append(Fold(sorted(train), sorted(val), sorted(test)))
    return folds


def _stratified_circle(loads: dict[str, float], seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    subjects = sorted(loads)
    order = np.lexsort((rng.random(len(subjects)), [loads[s] for s in subjects]))
    position = (np.arange(len(subjects)) * GOLDEN_RATIO + rng.random()) % 1
    return [subjects[order[rank]] for rank in np.argsort(position)]


def write_folds(path: Path | str, folds: list[Fold], **settings) -> None:
    write_json(path, {**settings, "folds": [vars(fold) for fold in folds]})


def read_folds(path: Path | str, subjects: set[str]) -> list[Fold]:
    """Read ``folds.json`` and check it against the cohort's subjects."""
    content = read_json(path)
    try:
        folds = [Fold(f["train"], f["val"], f["test"]) for f in content["folds"]]
    except (KeyError, TypeError):
        raise UserError(f"{path} has no list 'folds' of train, val and test subjects") from None
    for number, fold in enumerate(folds):
        listed = fold.train + fold.val + fold.test
        if len(listed) != len(set(listed)):
            raise UserError(f"{path}: a subject of fold {number} stands on two sides; each belongs on one")
        if strangers := set(listed) - subjects:
            raise UserError(f"{path}: subject {min(strangers)} of fold {number} is not in the cohort")
    return folds


def cases_of(cases: list[Case], subjects: list[str]) -> list[Case]:
    """All sessions of the given subjects."""
    wanted = set(subjects)
    return [case for case in cases if case.subject in wanted]


# --- augmented scans -----------------------------------------------------------------------------------


def augmented_cases(directory: Path | str) -> dict[Case, set[str]]:
    """Augmented scans and, for each, the subjects it is made of (recipient and donors of its lesions).

    ``provenance.json`` in `directory` tells, and a scan it does not name is not used:
    ``{scan file name: {"mask": mask file name, "recipient": subject, "donors": [subject, ...]}}``.
    """
    directory = Path(directory)
    provenance = read_json(directory / "provenance.json")
    cases = {}
    for name, origin in provenance.items():
        scan, mask = directory / "Scans" / name, directory / "Masks" / origin["mask"]
        for path in (scan, mask):
            if not path.is_file():
                raise UserError(f"{path} is named in {directory / 'provenance.json'} but missing; augment anew")
        cases[Case(origin["recipient"], None, scan, mask)] = {origin["recipient"], *origin["donors"]}
    return cases


def usable_augmented(augmented: dict[Case, set[str]], fold: Fold) -> list[Case]:
    """Those augmented scans whose recipient and donors all train in this fold."""
    return [case for case, origins in augmented.items() if origins <= set(fold.train)]
