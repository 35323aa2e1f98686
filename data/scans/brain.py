"""The brain: of a mask made elsewhere, or the head of a stripped scan, or found in T1w with a skull by deepbet.

deepbet is of Fisch et al. (2024, 10.1016/j.compbiomed.2024.108845). In other scans the whole head is used as the brain.
"""

import ctypes
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.files.listing import Paths, counted, find_volumes, require_present
from data.files.names import BRAIN_MASK, MASK, SCAN, contrast_of, extension_of, role_of, standard_contrast
from data.files.nifti import affine_of
from data.files.space import Space
from data.files.volumes import write_like
from data.scans.checks import find_head, read_binary, read_scan, space_of
from data.scans.cohort import BRAINS, Case, by_identity, identity, match_by_identity
from data.scans.fingerprints import PREPARATION_VERSION, cache_key, stamp_of
from data.scans.grid import UNKNOWN_MM
from data.scans.symmetry import complete_by_symmetry
from utils.errors import UserError
from utils.scores.masks import voxel_cm3

# Of the head: where deepbet's first network sees that much brain, the head is the brain. It was 0.95 to 0.99 in
# stripped T1w, DWI and FLAIR scans, 0.74 in ADC, and 0.46 in a head with skull and neck.
STRIPPED = 0.7
BRAIN_LITRES = 0.3, 2.2  # a newborn's has 0.35; of a torso deepbet takes 10 for brain
HEAD_LITRES = 8.0  # the most of a head with its neck, used as the brain mask
# Where the voxel size is unknown, less is no brain but a failure: of the head or, where that is wrong, of the scan.
LEAST_BRAIN, LEAST_OF_SCAN = 0.15, 0.03
HELD = 0.95  # of a brain; a head that holds less of it is wrong: in MP2RAGE (UNI) it is air, as bright as tissue
COARSE = (128, 128, 128)  # voxels that deepbet's first network sees of a scan
CERTAIN = 0.5
BRAINS_DIR = "--brains_dir"
Finder = Callable[[np.ndarray, np.ndarray, str | None, Space | None], np.ndarray | None]  # as `find_brain`
BRAIN_SUFFIX, HEAD_SUFFIX = "_desc-brain_mask", "_desc-head_mask"  # behind a scan's name: a brain, a head in its place


def find_brain(scan: np.ndarray, head: np.ndarray, contrast: str | None, own: Space | None) -> np.ndarray | None:
    """The brain of a scan in any units, (D, H, W) bool as its head; the head itself where the scan is stripped.

    None where deepbet finds no brain, or has not learned the contrast that the file's name spells: it has learned T1w,
    and no contrast is taken for that.

    Args:
        own: where the scan lies; None where its voxel size is unknown.
    """
    ras = np.ascontiguousarray(scan.transpose(1, 2, 0))
    if is_stripped(ras, head):
        return head
    if contrast is not None and standard_contrast(contrast) != "t1w":
        return None
    try:
        certain = _deepbet().run_model(ras.copy()) > CERTAIN
    except (AssertionError, ValueError):  # what it raises where its first network sees no brain
        return None
    if not certain.any():
        return None
    brain = _deepbet().postprocess(certain).transpose(2, 0, 1).astype(bool)
    least = LEAST_BRAIN
    if np.count_nonzero(brain & head) < HELD * np.count_nonzero(brain):
        head, least = np.ones_like(head), LEAST_OF_SCAN
    brain &= head
    if _litres(brain, own) < BRAIN_LITRES[0] or (own is None and brain.sum() < least * head.sum()):
        return None
    return complete_by_symmetry(brain, head, own or Space(scan.shape, affine_of(UNKNOWN_MM)))


def use_head(scan: np.ndarray, head: np.ndarray, contrast: str | None, own: Space | None) -> None:
    """In the place of `find_brain` where PyTorch is missing: no brain is found, and the whole head is used."""


def is_stripped(ras: np.ndarray, head: np.ndarray) -> bool:
    """Whether the head (D, H, W) of a scan (H, W, D) is all brain, by deepbet's first network on `COARSE` voxels."""
    import torch
    from deepbet.utils import normalize
    from torch.nn import functional

    with torch.inference_mode():
        small = functional.interpolate(torch.from_numpy(ras)[None, None], COARSE, mode="nearest-exact")
        low, high = small.quantile(0.005), small.quantile(0.995)
        certainty = _deepbet().bbox_model(normalize(small[0, 0], low, high)[None, None])[:, 1:2]
        brain = functional.interpolate(certainty, ras.shape, mode="nearest-exact")[0, 0].numpy() > CERTAIN
    return bool(np.count_nonzero(brain.transpose(2, 0, 1) & head) >= STRIPPED * np.count_nonzero(head))


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


def store_brain(case: Case, folder: Path, scan: np.ndarray, head: np.ndarray, finder: Finder | None = None) -> Path:
    """Find the brain of a case, scan (C, D, H, W) and head (D, H, W), and return where it is kept now."""
    brain = (finder or find_brain)(scan[0], head, contrast_of(case.scan), space_of(case))
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


@lru_cache(maxsize=1)
def _deepbet():
    """Both networks, on the CPU, so that a brain is the same on every machine."""
    from multiprocessing import parent_process

    import torch
    from deepbet import BrainExtraction

    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc has it, musl does not
        # Keep freed memory: fetching it anew, page by page, takes 1.4 of the 4 s of a brain at 3 mm.
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
    if parent_process():
        torch.set_num_threads(1)  # this is one of several processes that share the cores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of the format that the package ships
        deepbet = BrainExtraction(no_gpu=True)
    network, last = deepbet.bbox_model, []

    def memoised(image):
        if not last or not torch.equal(last[0], image):
            last[:] = image, network(image)
        return last[1]

    deepbet.bbox_model = memoised  # called by `is_stripped` first, and then by deepbet itself with an equal image
    return deepbet
