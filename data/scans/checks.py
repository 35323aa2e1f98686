"""Checks of a cohort's headers and voxels before any work, and reading of scans and masks that refuses bad ones."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.files.listing import counted
from data.files.names import MASK, extension_of
from data.files.nifti import SAME_SIZE, affine_of, is_voxel_size
from data.files.space import Space, Spacing
from data.files.volumes import read_header, read_volume
from data.scans.cohort import Case
from data.scans.fingerprints import stamp_of
from data.scans.head import PERCENTILES, head_mask
from utils.errors import UserError
from utils.progress import progress

# A mask of another space or orientation may still touch the head; one that belongs to it hardly leaves it.
LEAST_SHARE_IN_HEAD = 0.5
NEARLY = 1e-3  # that far from 0 or 1 a mask's value is meant as it: 255 times a slope of 0.00392156 is 0.9999978
LARGEST_LABEL = 254  # of a mask that numbers its lesions; grey values go up to 255
LISTED = 4  # values of a mask that is not binary, in the message; a soft mask has thousands
SPACING = "spacing_mm"  # the column of a cohort's table
SEPARATORS = ",;\t"  # of tables: pandas writes the first, Excel, depending on the country, the second


def space_of(case: Case) -> Space | None:
    """Where a case's scan lies, from its header or, of a ``.npy``, from the table; None if that is unknown."""
    header = read_header(case.scan)
    if header.affine is not None or (spacing_mm := read_spacing(case)) is None:
        return header.space
    return Space(header.shape[1:], affine_of(spacing_mm))


def spacing_table(case: Case) -> Path | None:
    """The ``cohort.csv`` with the voxel size of a ``.npy`` scan, beside the folder of the scans; None if none."""
    table = case.scan.parent.parent / "cohort.csv"
    return table if extension_of(case.scan) == ".npy" and table.is_file() else None


def read_spacing(case: Case) -> Spacing | None:
    """(D, H, W) spacing in mm of a ``.npy`` scan from the ``cohort.csv`` beside its folder; None if unknown."""
    table = spacing_table(case)
    sizes = None if table is None else read_column(table, SPACING, stamp_of(table))
    if sizes is None or case.name not in sizes:
        return None
    try:
        (text,) = sizes[case.name]
        h, w, d = (float(size) for size in text.split())
    except ValueError:  # of two rows, or of a row without three numbers
        h = w = d = np.nan
    if not is_voxel_size((d, h, w)):
        raise UserError(f"{table} gives no three numbers H W D in mm as spacing_mm of {case.name}; fix it")
    return d, h, w


@lru_cache(maxsize=8)  # each scan of a cohort asks, some several times
def read_column(table: Path, column: str, stamp: tuple) -> Mapping[str, set[str]] | None:
    """What a column of a cohort's table says of each of its ``scan``; None if it lacks one of the columns."""
    values = defaultdict(set)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            separator = max(SEPARATORS, key=file.readline().count)
            file.seek(0)
            rows = csv.DictReader(file, delimiter=separator)
            if not {"scan", column} <= set(rows.fieldnames or ()):
                return None
            for row in rows:
                values[row["scan"]].add(row[column] or "")
    except (ValueError, OSError, csv.Error) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{table} is no readable table ({reason}); fix or remove it") from None
    return values


def _print_missing_spacing(cases: list[Case]) -> None:
    """One line if a ``cohort.csv`` beside ``.npy`` scans lacks the voxel size of some."""
    tables = {case: table for case in cases if (table := spacing_table(case))}
    if unknown := [case for case in tables if read_spacing(case) is None]:
        print(
            f"{tables[unknown[0]]} has no {SPACING} of {len(unknown)} of {len(tables)} scans, e.g. {unknown[0].name}: "
            "these voxel sizes are unknown; distances in mm and volumes in cm3 stay empty"
        )


def read_scan(case: Case) -> np.ndarray:
    """A case's scan, (C, D, H, W) float32 in raw units and finite."""
    scan = read_volume(case.scan).array
    if not np.isfinite(scan).all():
        raise UserError(f"{case.scan} holds NaN or infinite voxels; fix or remove the scan")
    if scan.min() == scan.max():
        raise UserError(f"{case.scan} is constant; fix or remove the scan")
    return scan


def read_lesions(path: Path | str) -> tuple[np.ndarray, int]:
    """The lesions of a mask, (D, H, W) bool, and its largest label: above 1 where it numbers its lesions from 1 on."""
    values = _read_one_channel(path)
    mask, whole = values > 0.5, np.round(values)
    if not _is_near(values, mask) and _is_near(values, whole):
        labels = np.unique(whole)
        if np.array_equal(labels, np.arange(len(labels))) and labels[-1] <= LARGEST_LABEL:
            return mask, int(labels[-1])
    return require_binary(values, path), 1


def print_numbered(labels: Mapping[str, int]) -> None:
    """One line on the masks that number their lesions, by the largest label of each by its name, if there are any."""
    if numbered := [name for name, largest in labels.items() if largest > 1]:
        verb = "numbers its" if len(numbered) == 1 else "number their"
        print(
            f"{counted(len(numbered), MASK)} {verb} lesions (e.g. {numbered[0]} holds 1 to {labels[numbered[0]]}): "
            "each label above 0 is lesion"
        )


def read_binary(path: Path | str) -> np.ndarray:
    """A volume that holds what rounds to 0 and 1, a brain mask or a prediction, (D, H, W) bool."""
    return require_binary(_read_one_channel(path), path)


def _read_one_channel(path: Path | str) -> np.ndarray:
    volume = read_volume(path).array
    require_one_channel(len(volume), path)
    return volume[0]


def require_binary(values: np.ndarray, path: Path | str) -> np.ndarray:
    """Where `values` round to 1, bool; refuses those that round to neither 0 nor 1, and names them."""
    mask = values > 0.5
    if not _is_near(values, mask):
        raise UserError(f"{path} is not binary: it holds {_listed(np.unique(values))}; keep one lesion label (0 and 1)")
    return mask


def _is_near(values: np.ndarray, meant: np.ndarray) -> bool:
    return bool((np.abs(values - meant) <= NEARLY).all())


def _listed(values: np.ndarray) -> str:
    """Sorted values in words, the first few if they are many: "0, 1 and 3"."""
    numbers = values[~np.isnan(values)]
    names = list(dict.fromkeys(f"{value:.6g}" for value in numbers[:LISTED]))
    if len(numbers) > LISTED:
        names.append(f"{len(numbers) - LISTED} other values")
    if len(numbers) < len(values):
        names.append("NaN")
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def find_head(scan: np.ndarray, case: Case, brain: np.ndarray | None = None) -> np.ndarray:
    """`head_mask` of a case's scan (C, D, H, W); refuses a scan of a slice or two, or one that shows nothing.

    It shows something where it has a head or, inside a `brain` (D, H, W) that is known, more than one value.
    """
    _require_3d(scan.shape[1:], case)
    head = head_mask(scan[0])
    if not head.any() and (brain is None or np.ptp(np.percentile(scan[0][brain], PERCENTILES)) == 0):
        raise UserError(f"{case.scan} shows no head; fix or remove the scan")
    return head


def lies_in(mask: np.ndarray, head: np.ndarray) -> bool:
    """Whether `LEAST_SHARE_IN_HEAD` of a (D, H, W) lesion mask lies in the (D, H, W) head."""
    return bool((mask & head).sum() >= LEAST_SHARE_IN_HEAD * mask.sum())


def require_mask_in_head(mask: np.ndarray, head: np.ndarray, case: Case) -> None:
    """Refuse a lesion mask that does not lie in the head; give a head with its brain, which may be the better one."""
    if not lies_in(mask, head):
        raise UserError(
            f"{case.mask} lies outside the head of {case.scan}: the two differ in orientation, or the scan is a block "
            "without air around the head; bring both into one orientation, or give the whole scan"
        )


def check_headers(cases: list[Case], scan_dim: Sequence[int], resize_to: Sequence[int] | None) -> None:
    """Refuse files whose headers say that they are broken or do not fit together; no voxel is read.

    Args:
        scan_dim: (C, D, H, W) of ``--scan_dim``.
        resize_to: of ``--resize_to``; without it scans of unknown voxel size must have one shape.
    """
    first = None
    for case in progress(cases, "Checking headers"):
        channels, *shape = read_header(case.scan).shape
        _require_3d(shape, case)
        if channels != scan_dim[0]:
            raise UserError(f"{case.scan} has {channels} channels; --scan_dim says {scan_dim[0]}")
        for path in (case.mask, case.brain):
            if path is not None:
                check_alignment(case.scan, path)
        if resize_to is None and space_of(case) is None:
            # Voxels of another shape are hardly of the same size.
            first = first or case
            expected = read_header(first.scan).shape[1:]
            if tuple(shape) != expected:
                raise UserError(
                    f"{case.scan} has shape {tuple(shape)} (D, H, W) but {first.scan} {expected}, and both are of "
                    "unknown voxel size; give it in a cohort.csv beside their folder, or give --resize_to"
                )
    _print_missing_spacing(cases)


def require_one_grid(cases: list[Case]) -> None:
    """Refuse scans of several shapes or voxel sizes where voxels move from one to another as they are."""
    shapes = [read_header(case.scan).shape for case in cases]
    spacings = [space.spacing_mm if (space := space_of(case)) else (0, 0, 0) for case in cases]
    for case, shape, spacing_mm in zip(cases, shapes, spacings, strict=True):
        if shape != shapes[0] or not np.allclose(spacing_mm, spacings[0], rtol=SAME_SIZE):
            raise UserError(
                f"{case.scan} and {cases[0].scan} differ in shape or voxel size; bring them to one grid with "
                "python -m data.prepare"
            )


def _require_3d(shape: Sequence[int], case: Case) -> None:
    """Refuse a scan of one or two slices along any axis; `shape` (D, H, W)."""
    if min(shape) < 3:
        what = "a single slice" if min(shape) == 1 else "two slices"
        raise UserError(f"{case.scan} is {what}, of shape {tuple(shape)} (D, H, W); give the whole 3D scan")


def require_one_channel(channels: int, path: Path | str) -> None:
    if channels != 1:
        raise UserError(f"{path} has {channels} channels; a mask has one")


def check_alignment(scan_path: Path, mask_path: Path) -> None:
    """Refuse a mask that does not lie on the voxels of its scan."""
    scan, mask = read_header(scan_path), read_header(mask_path)
    require_one_channel(mask.shape[0], mask_path)
    if mask.shape[1:] != scan.shape[1:]:
        raise UserError(
            f"{mask_path} has shape {mask.shape[1:]} (D, H, W) but its scan {scan.shape[1:]}; "
            "resample one onto the other"
        )
    if scan.space and mask.space and not scan.space.is_close(mask.space):
        raise UserError(f"{mask_path} lies elsewhere than its scan (the affines differ); resample one onto the other")
