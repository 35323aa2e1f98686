"""A cohort: scans paired with their masks, checked, and split by subject into folds."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.space import Space
from data.volumes import EXTENSIONS, extension_of, head_mask, read_header, read_volume, stem_of
from utils.errors import UserError
from utils.files import read_json, write_json

GOLDEN_RATIO = (5**0.5 - 1) / 2
# A mask of another space or orientation may still touch the head; one that belongs to it hardly leaves it.
LEAST_SHARE_IN_HEAD = 0.5


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


def identity(path: Path) -> tuple[str, str | None, str | None]:
    """Subject, session and, for scans that ``python -m augmentation`` made of one of them, the number of the copy."""
    subject = bids_entity(path, "sub") or re.sub(r"(_T1w|_mask|_msk)+$", "", stem_of(path))
    return subject, bids_entity(path, "ses"), bids_entity(path, "augmented")


def list_volumes(paths: list[Path | str], ext: str | None, argument: str) -> list[Path]:
    """Volumes among files and, recursively, folders; sorted, without hidden files."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{argument} {path} does not exist")
        inside = [path] if path.is_file() else [p for p in path.rglob("*") if not p.name.startswith(".")]
        found += [p for p in inside if extension_of(p) and (ext is None or extension_of(p) == ext) and p.is_file()]
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
        UserError: an empty folder, two scans or masks of one session, a scan without its mask or, where `scans` are
            folders, a mask without its scan.
    """
    scan_files = [p for p in list_volumes(scans, ext, names[0]) if not is_mask(p)]
    if not scan_files:
        raise UserError(f"{names[0]} {' '.join(map(str, scans))} holds masks only; give the folder of the scans")
    mask_files = None if masks is None else [p for p in list_volumes(masks, ext, names[1]) if is_mask(p)]
    return pair_files(scan_files, mask_files, names, whole=all(Path(path).is_dir() for path in scans))


def pair_files(scans: list[Path], masks: list[Path] | None, names=("--scans", "--masks"), whole=True) -> list[Case]:
    """`pair_cases` of files that are known to be scans and masks; not `whole` if there may be masks of other scans."""
    by_scan = by_identity(scans, names[0])
    if masks is None:
        return [Case(*key[:2], scan, None) for key, scan in by_scan.items()]
    by_mask = by_identity(masks, names[1])
    for key, scan in by_scan.items():
        if key not in by_mask:
            raise UserError(f"{scan} has no mask in {names[1]}; add the mask or take the scan out")
    for key, mask in by_mask.items():
        if whole and key not in by_scan:
            raise UserError(f"{mask} has no scan in {names[0]}; add the scan or take the mask out")
    return [Case(*key[:2], scan, by_mask[key]) for key, scan in by_scan.items()]


def by_identity(paths: list[Path], argument: str, key_of: Callable[[Path], tuple] = identity) -> dict[tuple, Path]:
    """The paths by what they are of, which only one of them may be."""
    found: dict[tuple, Path] = {}
    for path in paths:
        key = key_of(path)
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
    try:
        rows = pd.read_csv(table, dtype=str)
        if not {"scan", "spacing_mm"} <= set(rows.columns) or case.name not in set(rows.scan):
            return None
        h, w, d = (float(size) for size in rows.set_index("scan").spacing_mm[case.name].split())
    except (ValueError, AttributeError, OSError):
        raise UserError(f"{table} gives no three numbers H W D as spacing_mm of {case.name}; mend it") from None
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


def check_headers(cases: list[Case], scan_dim: tuple[int, ...], resize_to: tuple[int, int] | None) -> None:
    """Refuse files whose headers say that they are broken or do not fit together; no voxel is read.

    Args:
        scan_dim: (C, D, H, W) of ``--scan_dim``.
        resize_to: of ``--resize_to``; without it all scans must have one shape.
    """
    first = read_header(cases[0].scan).shape
    for case in tqdm(cases, "Checking headers", unit="scan", leave=False):
        channels, *shape = read_header(case.scan).shape
        if channels != scan_dim[0]:
            raise UserError(f"{case.scan} has {channels} channels; --scan_dim says {scan_dim[0]}")
        if resize_to is None and tuple(shape) != first[1:]:
            raise UserError(
                f"{case.scan} has shape {tuple(shape)} (D, H, W) but {cases[0].scan} {first[1:]}; "
                "bring them to one grid with python -m data.prepare, or give --resize_to"
            )
        if case.mask is not None:
            check_alignment(case)


def check_alignment(case: Case) -> None:
    """Refuse a mask that does not lie on the voxels of its scan."""
    scan, mask = read_header(case.scan), read_header(case.mask)
    if mask.shape[0] != 1:
        raise UserError(f"{case.mask} has {mask.shape[0]} channels; a lesion mask has one")
    if mask.shape[1:] != scan.shape[1:]:
        raise UserError(
            f"{case.mask} has shape {mask.shape[1:]} (D, H, W) but its scan {scan.shape[1:]}; "
            "resample one onto the other"
        )
    if scan.affine is None or mask.affine is None:
        return
    if not Space(scan.shape[1:], scan.affine).is_close(Space(mask.shape[1:], mask.affine)):
        raise UserError(f"{case.mask} lies elsewhere than its scan (the affines differ); resample one onto the other")


def check_voxels(cases: list[Case]) -> None:
    """Refuse scans and masks with impossible voxels, and masks outside the head, before any long work."""
    for case in tqdm(cases, "Checking voxels", unit="scan", leave=False):
        scan, _ = read_scan(case)
        head = find_head(scan, case)
        if case.mask is not None:
            require_mask_in_head(read_mask(case), head, case)


def find_head(scan: np.ndarray, case: Case) -> np.ndarray:
    """`head_mask` of a case's scan (C, D, H, W); refuses a scan without a head."""
    head = head_mask(scan[0])
    if not head.any():
        raise UserError(f"{case.scan} shows no head; mend or remove the scan")
    return head


def require_mask_in_head(mask: np.ndarray, head: np.ndarray, case: Case) -> None:
    """Refuse a (D, H, W) lesion mask of which less than `LEAST_SHARE_IN_HEAD` lies in the (D, H, W) head."""
    if (mask & head).sum() < LEAST_SHARE_IN_HEAD * mask.sum():
        raise UserError(f"{case.mask} lies outside the head of {case.scan}; bring both into the same orientation")


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
    try:
        for name, origin in provenance.items():
            case = Case(origin["recipient"], None, directory / "Scans" / name, directory / "Masks" / origin["mask"])
            cases[case] = {origin["recipient"], *origin["donors"]}
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{directory / 'provenance.json'} lacks mask, recipient or donors; augment anew") from None
    for path in (path for case in cases for path in (case.scan, case.mask)):
        if not path.is_file():
            raise UserError(f"{path} is named in {directory / 'provenance.json'} but missing; augment anew")
    return cases


def refuse_augmented(cases: list[Case], argument: str) -> None:
    """Refuse a cohort to be split by subject that holds augmented scans: their lesions are other subjects'."""
    for case in cases:
        if bids_entity(case.scan, "augmented"):
            raise UserError(
                f"{argument}: {case.scan} is augmented and would carry lesions from fold to fold; keep the originals "
                "only and give the augmented folder with --use_augmented --augmented_dir"
            )


def usable_augmented(augmented: dict[Case, set[str]], fold: Fold) -> list[Case]:
    """Those augmented scans whose recipient and donors all train in this fold."""
    return [case for case, origins in augmented.items() if origins <= set(fold.train)]
