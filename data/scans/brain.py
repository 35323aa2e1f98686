"""The brain: the head without skull, scalp, eyes and neck.

A mask made elsewhere (``--brains_dir``, or ``Brains/`` beside the folder of the scans) goes before one found here. A
scan that is stripped already is its own brain. In a T1w scan with a skull deepbet finds it (Fisch et al., 2024,
10.1016/j.compbiomed.2024.108845), whose networks come with the package. In other contrasts the head stands for it.
"""

import ctypes
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.files.listing import counted, find_volumes, require_present, require_some
from data.files.names import BRAIN_MASK, MASK, SCAN, contrast_of, extension_of, role_of
from data.files.space import Space
from data.files.volumes import write_like
from data.scans.checks import find_head, read_binary, read_scan, space_of
from data.scans.cohort import BRAINS, Case, by_identity, match_by_identity
from data.scans.fingerprints import PREPARATION, cache_key, stamp_of
from data.scans.symmetry import add_what_the_mirror_has
from utils.errors import UserError

T1W = re.compile(r"t1(w|c|ce|gd)?|mprage|mp2rage|unit1", re.IGNORECASE)  # what deepbet has learned
# Of the head: where deepbet's first network sees that much brain, the head is the brain. It was 0.95 to 0.99 in
# stripped T1w, DWI and FLAIR scans, 0.74 in ADC, and 0.46 in a head with skull and neck.
STRIPPED = 0.7
LEAST_BRAIN = 0.15  # of the head; less is no brain but a failure
COARSE = (128, 128, 128)  # voxels that deepbet's first network sees of a scan
CERTAIN = 0.5
BRAINS_DIR = "--brains_dir"
Finder = Callable[[np.ndarray, np.ndarray, str | None, Space], np.ndarray | None]  # as `find_brain`
FOUND, HEAD = "_desc-brain_mask", "_desc-head_mask"  # behind a scan's name: a brain, and a head in its stead


# --- finding -------------------------------------------------------------------------------------------


def find_brain(scan: np.ndarray, head: np.ndarray, contrast: str | None, own: Space) -> np.ndarray | None:
    """The brain of a scan in any units, whatever its voxel size.

    Args:
        scan: (D, H, W) float32.
        head: (D, H, W) bool.
        contrast: as the file's name spells it; None is taken for T1w.
        own: where the scan lies.

    Returns:
        (D, H, W) bool, the head itself where it is stripped; None where the contrast is none that deepbet knows, or
        where it finds no brain.
    """
    ras = np.ascontiguousarray(scan.transpose(1, 2, 0))
    if is_stripped(ras, head):
        return head
    if contrast is not None and not T1W.fullmatch(contrast):
        return None
    try:
        certain = _deepbet().run_model(ras.copy()) > CERTAIN
    except (AssertionError, ValueError):  # what it raises where its first network sees no brain
        return None
    if not certain.any():
        return None
    brain = _deepbet().postprocess(certain).transpose(2, 0, 1).astype(bool) & head
    if np.count_nonzero(brain) < LEAST_BRAIN * np.count_nonzero(head):
        return None
    return add_what_the_mirror_has(brain, head, own)


def take_for_stripped(scan: np.ndarray, head: np.ndarray, contrast: str | None, own: Space) -> np.ndarray:
    """The head as the brain, without a look at whether it is: in the place of `find_brain` where PyTorch is missing."""
    return head


def is_stripped(ras: np.ndarray, head: np.ndarray) -> bool:
    """Whether the head (D, H, W) of a scan (H, W, D) is all brain.

    deepbet's first network tells, which looks at `COARSE` voxels to find the box that holds the brain.
    """
    import torch
    from deepbet.utils import normalize
    from torch.nn import functional

    with torch.inference_mode():
        small = functional.interpolate(torch.from_numpy(ras)[None, None], COARSE, mode="nearest-exact")
        low, high = small.quantile(0.005), small.quantile(0.995)
        certainty = _deepbet().bbox_model(normalize(small[0, 0], low, high)[None, None])[:, 1:2]
        brain = functional.interpolate(certainty, ras.shape, mode="nearest-exact")[0, 0].numpy() > CERTAIN
    return np.count_nonzero(brain.transpose(2, 0, 1) & head) >= STRIPPED * np.count_nonzero(head)


@lru_cache(maxsize=1)
def _deepbet():
    """Both networks, on the CPU, so that a brain is the same on every machine."""
    from multiprocessing import parent_process

    import torch
    from deepbet import BrainExtraction

    _keep_freed_memory()
    if parent_process():
        torch.set_num_threads(1)  # this is one of several processes that share the cores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of the format that the package ships
        deepbet = BrainExtraction(no_gpu=True)
    deepbet.bbox_model = _remembering(deepbet.bbox_model)  # asked by `is_stripped` first, and then by deepbet itself
    return deepbet


def _remembering(network):
    """A network that gives its last answer again to the same question."""
    import torch

    last = []

    def answer(image):
        if not last or not torch.equal(last[0], image):
            last[:] = image, network(image)
        return last[1]

    return answer


def _keep_freed_memory() -> None:
    """Let the C library keep memory that is freed for what comes next.

    By default it hands the large maps of the networks back one by one and fetches them anew, page by page: 1.4 of the
    4 s that a brain of 3 mm takes.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc has it, musl does not
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


# --- given ---------------------------------------------------------------------------------------------


def with_brains(cases: list[Case], brains_dirs: list[Path | str] | None) -> list[Case]:
    """The cases with brain masks made elsewhere, paired like lesion masks.

    Args:
        brains_dirs: folders that hold one for every case; None for ``Brains/`` beside the folder of the scans, where
            there is one, and no mask where there is none.

    Raises:
        UserError: a scan without brain mask in folders that were given, masks that cannot be told apart.
    """
    folders = brains_dirs or sorted({b for case in cases if (b := case.scan.parent.parent / BRAINS).is_dir()})
    if not folders:
        return cases
    by_scan = by_identity([case.scan for case in cases], "--scans")
    by_brain = by_identity(brain_masks(folders), BRAINS_DIR)
    brain_of = {by_scan[key]: by_brain[brain] for key, brain in match_by_identity(by_scan, by_brain).items()}
    for case in cases:
        if brains_dirs and case.scan not in brain_of:
            raise UserError(f"{case.scan} has no brain mask in {BRAINS_DIR}; add it or leave the argument out")
    return [replace(case, brain=brain_of.get(case.scan)) for case in cases]


def brain_masks(folders: list[Path | str]) -> list[Path]:
    """The volumes that are brain masks by their names or, where none is, those whose names do not tell."""
    roles = {path: role_of(path) for path in find_volumes(folders, BRAINS_DIR).values()}
    found = [path for path, role in roles.items() if role == BRAIN_MASK]
    found = found or [path for path, role in roles.items() if role in (MASK, None)]
    require_some(found, folders, None, BRAINS_DIR)
    require_present(found)
    return found


# --- of a cohort ---------------------------------------------------------------------------------------


def read_brain(case: Case, folder: Path) -> np.ndarray:
    """The brain of a case, (D, H, W) bool on its scan's grid.

    Args:
        folder: where brains that were found are kept; one that is not there yet is found now.
    """
    brain = read_binary(case.brain or _kept(case, folder) or _find(case, folder))
    if not brain.any():
        raise UserError(f"{case.brain} is empty; mend it or take it out")
    return brain


def brain_is(case: Case, folder: Path) -> str:
    """How the brain came to be that `read_brain` gives: "given", "found", or "head" where the head stands for it."""
    return "given" if case.brain else "head" if _path(case, folder, HEAD).exists() else "found"


def has_brain(case: Case, folder: Path) -> bool:
    """Whether the brain was given or `folder` holds it, so that `read_brain` need not find it."""
    return bool(case.brain or _kept(case, folder))


def keep_brain(case: Case, folder: Path, scan: np.ndarray, head: np.ndarray, finder: Finder | None = None) -> Path:
    """Find the brain of a case, scan (C, D, H, W) and head (D, H, W), and return where it is kept now.

    Args:
        finder: what finds it; None for `find_brain`.
    """
    own = space_of(case) or Space(head.shape, np.eye(4))
    brain = (finder or find_brain)(scan[0], head, contrast_of(case.scan), own)
    path = _path(case, folder, HEAD if brain is None else FOUND)
    write_like(path, (head if brain is None else brain).astype(np.uint8), case.scan)
    return path


def say_heads(heads: Sequence[Case]) -> None:
    """One line on the cases whose head stands for the brain, if there are any."""
    if heads:
        print(
            f"No brain found in {counted(len(heads), SCAN)} with a skull (e.g. {heads[0].name}): the whole head stands "
            "for it; give brain masks with --brains_dir, or a stripped scan"
        )


def _kept(case: Case, folder: Path) -> Path | None:
    return next((path for ending in (FOUND, HEAD) if (path := _path(case, folder, ending)).exists()), None)


def _find(case: Case, folder: Path) -> Path:
    scan = read_scan(case)
    return keep_brain(case, folder, scan, find_head(scan, case))


def _path(case: Case, folder: Path, ending: str) -> Path:
    """Where a found brain is kept; another place for a file that has changed, and for other code."""
    return folder / f"{case.stem}_{cache_key(stamp_of(case.scan), PREPARATION)}{ending}{extension_of(case.scan)}"
