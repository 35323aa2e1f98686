"""The brain: of a mask made elsewhere, or the head of a stripped scan, or found by a network in a scan with a skull.

Where the network finds none the whole head is used as the brain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.files.listing import Paths, counted, find_volumes, require_present
from data.files.names import BRAIN_MASK, MASK, SCAN, extension_of, role_of
from data.files.nifti import affine_of
from data.files.space import Space
from data.files.volumes import write_like
from data.scans.checks import find_head, read_binary, read_scan, space_of
from data.scans.cohort import BRAINS, Case, by_identity, identity, match_by_identity
from data.scans.extraction import extract_brain
from data.scans.fingerprints import PREPARATION_VERSION, cache_key, stamp_of
from utils.errors import UserError
from utils.scores.masks import voxel_cm3

# Of the head, in air of one value: where the network sees that much brain, the scan is stripped and the head its brain.
# In synthetic heads with skull it is up to 0.54 in T1w and FLAIR but 0.99 in DWI, whose air is noise.
STRIPPED, ONE_VALUE = 0.9, 0.5
BRAIN_LITRES = 0.3, 2.2  # a newborn's has 0.35
HEAD_LITRES = 8.0  # the most of a head with its neck, used as the brain mask
HEAD_MM = (170.0, 150.0, 195.0)  # (D, H, W): a head is taken for that large where the voxel size is unknown
# Of a brain mask that was given, the least share in the head, and of the head. Of 12 synthetic heads with and without
# skull they are 0.91 and 0.49; but a head may be all air and half noise.
IN_HEAD, OF_HEAD = 0.2, 0.05
BRAINS_DIR = "--brains_dir"
BRAIN_SUFFIX, HEAD_SUFFIX = "_desc-brain_mask", "_desc-head_mask"  # behind a scan's name: a brain, a head in its place


def find_brain(scan: np.ndarray, head: np.ndarray, own: Space | None) -> np.ndarray | None:
    """The brain of a scan in any contrast and units, (D, H, W) bool as its head; the head itself where it is stripped.

    None where the network finds no brain.

    Args:
        own: where the scan lies; None where its voxel size is unknown.
    """
    space = own or _space_by_head(head)
    brain = extract_brain(scan, space)
    if _is_stripped(scan, head, brain):
        return head
    return brain if _litres(brain, space) >= BRAIN_LITRES[0] else None


def _is_stripped(scan: np.ndarray, head: np.ndarray, brain: np.ndarray) -> bool:
    """Whether a brain is nearly all of the head, and most of the air is of one value; all (D, H, W)."""
    if np.count_nonzero(brain & head) < STRIPPED * np.count_nonzero(head):
        return False
    sample = (slice(None, None, 3),) * 3
    air = scan[sample][~head[sample]]
    return not air.size or bool(np.mean(air == np.median(air)) >= ONE_VALUE)


def _space_by_head(head: np.ndarray) -> Space:
    """Where a scan of unknown voxel size lies, with a head (D, H, W) of `HEAD_MM`."""
    extents = [max(int(np.any(head, axis=tuple({0, 1, 2} - {axis})).sum()), 1) for axis in range(3)]
    d, h, w = np.divide(HEAD_MM, extents).tolist()
    return Space(head.shape, affine_of((d, h, w)))


def with_brains(cases: list[Case], brains_dirs: Paths | None) -> list[Case]:
    """The cases with brain masks made elsewhere, paired like lesion masks.

    Args:
        brains_dirs: folders that hold one for every case; None for ``Brains/`` beside the folder of the scans, if any.

    Raises:
        UserError: a scan without brain mask in folders that were given, masks that cannot be told apart.
    """
    folders = brains_dirs or sorted({b for case in cases if (b := case.scan.parent.parent / BRAINS).is_dir()})
    if not folders:
        return cases
    by_scan = by_identity([case.scan for case in cases], "--scans", identity)
    argument = BRAINS_DIR if brains_dirs else f"{BRAINS}/"
    by_brain = by_identity(brain_masks(folders, argument), argument, identity)
    brain_of = {by_scan[key]: by_brain[brain] for key, brain in match_by_identity(by_scan, by_brain).items()}
    for case in cases:
        if brains_dirs and case.scan not in brain_of:
            raise UserError(f"{case.scan} has no brain mask in {BRAINS_DIR}; add it or leave the argument out")
    return [replace(case, brain=brain_of.get(case.scan)) for case in cases]


def brain_masks(folders: Paths, argument: str = BRAINS_DIR) -> list[Path]:
    """The volumes that are brain masks by their names or, where none is, those whose names do not say.

    Args:
        argument: to name in messages; another than ``--brains_dir`` for folders that nobody gave.
    """
    roles = {path: role_of(path) for path in find_volumes(folders, argument).values()}
    masks = [path for path, role in roles.items() if role == BRAIN_MASK]
    masks = masks or [path for path, role in roles.items() if role in (MASK, None)]
    if not masks:
        given = argument == BRAINS_DIR
        where, or_else = (f"{argument} ", "") if given else ("", f", move the folder away, or give {BRAINS_DIR}")
        where += " ".join(map(str, folders))
        raise UserError(f"{where} holds no file named as a brain mask; name each <scan>{BRAIN_SUFFIX}{or_else}")
    require_present(masks)
    return masks


def read_brain(case: Case, folder: Path) -> np.ndarray:
    """The brain of a case, (D, H, W) bool on its scan's grid; found now if it is neither given nor in the folder."""
    path = brain_path(case, folder)
    if path is None:
        scan = read_scan(case)
        path = store_brain(case, folder, scan, find_head(scan, case))
    brain = read_binary(path)
    if not brain.any():
        raise UserError(f"{path} is empty; fix it or take it out")
    origin, litres, (least, most) = brain_origin(case, folder), _litres(brain, space_of(case)), BRAIN_LITRES
    crop = f"crop the scan to the head, or give a brain mask with {BRAINS_DIR}"
    if origin == "head" and litres > HEAD_LITRES:
        raise UserError(
            f"{case.scan} shows a head of {litres:.1f} L, which is used as the brain mask and may have up to "
            f"{HEAD_LITRES:.0f} L; {crop}"
        )
    # `data.prepare` and `strokeformer.find_brain` leave whole heads as brain masks, which are then given.
    if origin != "head" and litres > (HEAD_LITRES if case.brain else most):
        what, fix = (f"{case.brain} holds", "fix the mask") if case.brain else (f"{case.scan} shows", crop)
        raise UserError(f"{what} a brain of {litres:.1f} L, outside the range of {least} to {most} L; {fix}")
    return brain


def doubt(case: Case, brain: np.ndarray, head: np.ndarray) -> str:
    """What makes a brain mask (D, H, W) that was given unlikely, in words; empty where nothing does."""
    common, in_brain, in_head = (int(mask.sum()) for mask in (brain & head, brain, head))
    if not case.brain or in_head < in_brain:  # then it is the head that is wrong
        return ""
    if common < OF_HEAD * in_head:
        return f"{common / in_head:.1%} of the head"
    return f"{common / in_brain:.0%} of it in the head" if common < IN_HEAD * in_brain else ""


def print_doubts(doubts: Mapping[str, str]) -> None:
    """One line on the brain masks that are unlikely, by the names of their scans, if there are any."""
    if unlikely := [name for name, words in doubts.items() if words]:
        more = f" (and of {len(unlikely) - 1} more)" if unlikely[1:] else ""
        print(f"The brain mask of {unlikely[0]} is unlikely, {doubts[unlikely[0]]}{more}: nothing else is segmented")


def _litres(mask: np.ndarray, own: Space | None) -> float:
    """The volume of a (D, H, W) mask; NaN, which no bound excludes, where the voxel size is unknown."""
    return np.count_nonzero(mask) * voxel_cm3(None if own is None else own.spacing_mm) / 1000


def brain_origin(case: Case, folder: Path) -> str:
    """Where the brain of `read_brain` is from: "given", "found", or "head" where the whole head is used."""
    return "given" if case.brain else "head" if _cached_path(case, folder, HEAD_SUFFIX).exists() else "found"


def brain_path(case: Case, folder: Path) -> Path | None:
    """The brain mask that was given, or else the one in the folder; None where `read_brain` has to find it."""
    paths = (_cached_path(case, folder, suffix) for suffix in (BRAIN_SUFFIX, HEAD_SUFFIX))
    return case.brain or next((path for path in paths if path.exists()), None)


def store_brain(case: Case, folder: Path, scan: np.ndarray, head: np.ndarray) -> Path:
    """Find the brain of a case, scan (C, D, H, W) and head (D, H, W), and return where it is kept now."""
    brain = find_brain(scan[0], head, space_of(case))
    path = _cached_path(case, folder, HEAD_SUFFIX if brain is None else BRAIN_SUFFIX)
    write_like(path, (head if brain is None else brain).astype(np.uint8), case.scan)
    return path


def print_heads(heads: Sequence[Case]) -> None:
    """One line on the cases whose whole head is used as the brain, if there are any."""
    if heads:
        print(
            f"No brain found in {counted(len(heads), SCAN)} with a skull (e.g. {heads[0].name}): the whole head is "
            "used as the brain mask; give brain masks with --brains_dir, or a stripped scan"
        )


def _cached_path(case: Case, folder: Path, suffix: str) -> Path:
    """Where the brain of a case is cached; another place for a file that has changed, and for other code."""
    key = cache_key(stamp_of(case.scan), PREPARATION_VERSION)
    return folder / f"{case.stem}_{key}{suffix}{extension_of(case.scan)}"
