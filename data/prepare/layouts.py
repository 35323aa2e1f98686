"""The published data sets: which of their files are scans and masks, and the grid that suits them."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.cohort import Case, pair_files, say_cases
from data.listing import find_volumes, require_present, require_some, say_left_out
from data.names import MASK, SCAN
from utils.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How a data set is published.

    scan, mask: regular expressions that end the names of its files.
    scan_dim: (C, D, H, W) that holds every head of it.
    spacing_mm: (D, H, W) that most of its scans have.
    in_mni: whether the scans are registered to MNI152, so that places can be compared between subjects.
    scan_has_own_grid: whether scan and mask lie on different grids, so that the scan goes onto the mask's.
    """

    scan: str
    mask: str
    scan_dim: tuple[int, int, int, int]
    spacing_mm: tuple[float, float, float]
    in_mni: bool
    scan_has_own_grid: bool = False


NIFTI = r"\.nii(\.gz)?$"
# ATLAS R2.0: 197 x 233 x 189 at 1 mm in MNI152NLin2009aSym (Liew et al., 2022, 10.1038/s41597-022-01401-7).
# ISLES 2022: mostly 112 x 112 x 73 at 2 mm, the mask on the grid of the DWI (Hernandez Petzsche et al., 2022,
# 10.1038/s41597-022-01875-5); the FLAIR has a grid of its own and is not registered to it.
LAYOUTS = {
    "atlas": Layout(rf"_T1w{NIFTI}", rf"T1lesion_mask{NIFTI}", (1, 189, 192, 192), (1.0, 1.0, 1.0), True),
    "isles-dwi": Layout(rf"_dwi{NIFTI}", rf"_msk{NIFTI}", (1, 73, 112, 112), (2.0, 2.0, 2.0), False),
    "isles-flair": Layout(rf"_flair{NIFTI}", rf"_msk{NIFTI}", (1, 73, 112, 112), (2.0, 2.0, 2.0), False, True),
}
UNLABELLED = "Testing"  # the folder of ATLAS's hidden test set, whose masks are not published


def find_cases(root: Path | str, layout: Layout, out_dir: Path | None = None) -> list[Case]:
    """The scans of a data set below `root`, each with its mask.

    Args:
        out_dir: folder whose files were prepared from the others, which `root` may hold.

    Raises:
        UserError: no scan of this layout, a scan or mask without the other, two of one session.
    """
    prepared = None if out_dir is None else out_dir.resolve()
    files = [
        path
        for place, path in find_volumes([root], "--root").items()
        if prepared is None or not place.is_relative_to(prepared)
    ]
    require_some(files, [root], None, "--root")
    roles = {path: _role_in(layout, path.relative_to(root)) for path in files}
    scans, masks = ([path for path in files if roles[path] == role] for role in (SCAN, MASK))
    if not scans:
        wanted = layout.scan.replace(NIFTI, ".nii.gz")
        raise UserError(f"--root {root} holds no scan named *{wanted}; check the folder and --dataset")
    require_present([*scans, *masks])
    say_left_out((path, role) for path, role in roles.items() if role not in (SCAN, MASK))
    cases = pair_files(scans, masks, ("--root", "--root"))
    say_cases(cases, "--root")
    return cases


def _role_in(layout: Layout, path: Path) -> str:
    """What a volume is in this layout, by its path below the root."""
    if UNLABELLED in path.parts:
        return "volume of the hidden test set"
    if re.search(layout.scan, path.name, re.IGNORECASE):
        return SCAN
    return MASK if re.search(layout.mask, path.name, re.IGNORECASE) else "other volume"
