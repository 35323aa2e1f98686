"""Layouts of data sets, the published ones and others: which files take part, and the grid that suits them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.files.listing import (
    CHOOSE_BY_PATTERN,
    Patterns,
    counted,
    find_volumes,
    fits,
    print_left_out,
    require_present,
    require_some,
    role_below,
)
from data.files.names import BRAIN_MASK, MASK, SCAN, extension_of
from data.files.space import Shape, Space, Spacing, centred_space, places_in, share_outside
from data.files.volumes import read_header
from data.scans.brain import brain_masks, read_brain, with_brains
from data.scans.checks import check_alignment, read_lesions, require_one_channel
from data.scans.cohort import BRAINS, Case, pair_files, print_cases
from data.scans.grid import CUT_OFF, centre_of, choose_spacing, print_cut, shape_that_holds, too_large
from data.scans.groups import require_one_centre
from utils.errors import UserError
from utils.progress import progress


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out."""

    scan: str | None  # pattern of its scans, as of a shell; None to choose by the names (`role_of`)
    mask: str | None
    scan_dim: tuple[int, int, int, int] | None  # (C, D, H, W) that holds every head; None for what holds those present
    spacing_mm: Spacing | None  # that most of its scans have; None for the median
    scan_has_own_grid: bool = False  # scan and mask may lie on different grids: the scan goes onto the mask's


# ATLAS R2.0: 197 x 233 x 189 at 1 mm in MNI152NLin2009aSym (Liew et al., 2022, 10.1038/s41597-022-01401-7).
# ATLAS R3.0, of ISLES'26: brains alone on their scanner's grid, 0.03 to 5.3 mm3, a folder for each of 55 centres (de la
# Rosa et al., 2026, 10.5281/zenodo.19856506).
# ISLES 2022: mostly 112 x 112 x 73 at 2 mm, the mask on the grid of the DWI (Hernandez Petzsche et al., 2022,
# 10.1038/s41597-022-01875-5); the FLAIR has a grid of its own and is not registered to it.
HEAD, MM = (1, 189, 192, 192), (1.0, 1.0, 1.0)
LAYOUTS = {
    "atlas": Layout("*_space-MNI152NLin2009aSym_*T1w", "*_space-MNI152NLin2009aSym_*T1lesion_mask", HEAD, MM),
    "atlas3": Layout("*_space-orig_*T1w", "*_space-orig_*T1lesion_mask", HEAD, MM),
    "isles-dwi": Layout("*_dwi", "*_msk", (1, 73, 112, 112), (2.0, 2.0, 2.0)),
    "isles-flair": Layout("*_flair", "*_msk", (1, 73, 112, 112), (2.0, 2.0, 2.0), True),
    "bids": Layout(None, None, None, None, True),
}
UNLABELLED = "Testing"  # the folder of ATLAS's hidden test set, whose masks are not published


@dataclass(frozen=True)
class Fit:
    """How a case's brain fits the grid."""

    needed: Shape  # holds it, and the lesions
    lost: float  # share of it that the grid cuts off; 0 where no shape is given
    labels: int  # the largest of its mask; above 1 where that numbers its lesions


def choose_layout(dataset: str, patterns: Patterns) -> Layout:
    """The layout of ``--dataset``, with the patterns that were given for any other folder."""
    layout = LAYOUTS[dataset]
    for field, pattern in patterns._asdict().items():
        if pattern and getattr(layout, field):
            raise UserError(f"--{field}_pattern is for --dataset bids; {dataset} has names of its own")
    return replace(layout, **{field: pattern for field, pattern in patterns._asdict().items() if pattern})


def find_cases(
    root: Path, layout: Layout, out_dir: Path | None = None, brains_dirs: Sequence[str] | None = None
) -> list[Case]:
    """The scans of a data set below `root`, each with its mask and, where there are some, its brain.

    Args:
        out_dir: folder of prepared files, which `root` may hold; they are left out.
        brains_dirs: of ``--brains_dir``; their files are no lesion masks.

    Raises:
        UserError: no scan of this layout, a scan or mask without the other, two of one session.
    """
    prepared: list[Path] = []  # folders of prepared files: `out_dir`, or those made in it where it holds the root
    if out_dir is not None:
        holds_root = Path(os.path.realpath(root)).is_relative_to(os.path.realpath(out_dir))
        made = [out_dir / name for name in ("Scans", "Masks", BRAINS, "cache")] if holds_root else [out_dir]
        prepared = [Path(os.path.realpath(folder)) for folder in made]
    volumes = find_volumes([root], "--root")
    files = {place: path for place, path in volumes.items() if not _is_below(place, prepared)}
    require_some(files, [root], None, "--root")
    brains = {_place(path) for path in brain_masks(brains_dirs)} if brains_dirs else set()
    roles = {path: BRAIN_MASK if place in brains else _role_in(layout, path, root) for place, path in files.items()}
    scans, masks = ([path for path in roles if roles[path] == role] for role in (SCAN, MASK))
    scan_named, mask_named = (f" named {pattern}" if pattern else "" for pattern in (layout.scan, layout.mask))
    if not scans:
        raise UserError(f"--root {root} holds no NIfTI scan{scan_named}; {_other_layout(files, layout)}")
    require_present([*scans, *masks])
    print_left_out((path, role) for path, role in roles.items() if role not in (SCAN, MASK))
    if not masks:
        raise UserError(f"{scans[0]} has no mask: --root holds no lesion mask{mask_named}; check its names")
    try:
        cases = pair_files(scans, masks, ("--root", "--root"))
    except UserError as error:
        if layout.scan_dim:
            raise
        raise UserError(f"{error}; {CHOOSE_BY_PATTERN}") from None
    if layout.scan_dim:
        require_one_centre(cases)
    print_cases(cases, "--root")
    paired = with_brains(cases, brains_dirs)
    return [replace(c, brain=None) if c.brain and _is_below(_place(c.brain), prepared) else c for c in paired]


def _role_in(layout: Layout, path: Path, root: Path) -> str:
    folders = path.relative_to(root).parts
    if UNLABELLED in folders:
        return "volume of the hidden test set"
    if extension_of(path) == ".npy":
        return ".npy file"  # it has no affine
    if BRAINS in folders:
        return BRAIN_MASK
    # ATLAS is also handed on with all that it holds in derivatives/.
    return role_below(root, path, SCAN, Patterns(layout.scan, layout.mask), raw_only=layout.scan_dim is None)


def _other_layout(files: Iterable[Path], layout: Layout) -> str:
    """What to do about a folder without a scan of a layout."""
    if not layout.scan_dim:
        return "check the folder and --scan_pattern"
    fitting = (name for path in files for name, o in LAYOUTS.items() if o.scan and fits(Path(path.name), o.scan))
    other = next(fitting, None)
    return f"its names are those of --dataset {other}" if other else "check the folder and --dataset"


def _place(path: Path) -> Path:
    """The real folder of a file and its own name, as `find_volumes` has it."""
    return Path(os.path.realpath(path.parent), path.name)


def _is_below(place: Path, folders: list[Path]) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)


def check_headers(cases: list[Case], layout: Layout, channels: int | None) -> int:
    """Refuse headers that are broken or do not fit together; the number of `channels`, by default of the first scan."""
    apart = []
    channels = channels or read_header(cases[0].scan).shape[0]
    for case in progress(cases, "Checking headers"):
        n_channels, mask = read_header(case.scan).shape[0], case.lesion_mask
        if n_channels != channels:
            raise UserError(f"{case.scan} has {counted(n_channels, 'channel')}, not {channels}; take it out")
        if not layout.scan_has_own_grid:
            check_alignment(case.scan, mask)
        elif not space_in(case.scan).is_close(space_in(mask)):
            apart.append(case.name)
        require_one_channel(read_header(mask).shape[0], mask)
        if case.brain:
            check_alignment(case.scan, case.brain)
    if apart:
        print(f"{counted(len(apart), SCAN)} on another grid than the mask (e.g. {apart[0]}): resampled onto the mask's")
    return channels


def space_in(path: Path) -> Space:
    """Where a NIfTI file lies."""
    space = read_header(path).space
    if space is None:
        raise UserError(f"{path} has no affine; convert it to NIfTI")
    return space


def spacing_for(cases: list[Case], layout: Layout, wanted: Sequence[float] | None) -> Spacing:
    """``--spacing``, the layout's or, without either, the median of the cohort: of its masks, whose grids are kept."""
    if wanted is None and layout.spacing_mm:
        return layout.spacing_mm
    spacing_mm = choose_spacing([replace(case, scan=case.lesion_mask) for case in cases], wanted, None)
    return spacing_mm or space_in(cases[0].lesion_mask).spacing_mm


def centre_in(axes: Space, brain: np.ndarray, own: Space) -> tuple[float, ...]:
    """The middle of a brain (D, H, W) in voxels (D, H, W) of another grid."""
    return tuple(places_in(axes, np.array(centre_of(brain)), own))


def fit_brain(case: Case, shape: Shape | None, spacing_mm: Spacing, brains: Path) -> Fit:
    """How a case fits a grid along the axes of its mask; `brains` is the folder of `read_brain`."""
    brain, own, axes = read_brain(case, brains), space_in(case.scan), space_in(case.lesion_mask)
    centre = centre_in(axes, brain, own)
    mask, labels = read_lesions(case.lesion_mask)
    parts = (brain, own), (mask, axes)
    d, h, w = map(max, *(shape_that_holds(part, space, axes, centre, spacing_mm) for part, space in parts))
    lost = share_outside(brain, own, centred_space(axes, centre, shape, spacing_mm)) if shape else 0.0
    return Fit((d, h, w), lost, labels)


def shape_for(fits: Mapping[Case, Fit], shape: Shape | None, channels: int) -> Shape:
    """The given shape of the prepared grid, if it cuts no brain, or one that holds all."""
    if shape is None:
        d, h, w = np.max([fit.needed for fit in fits.values()], axis=0).tolist()
        print(f"Grid of --scan_dim {channels} {d} {h} {w} (C D H W), which holds every brain and lesion")
        return d, h, w
    worst = max(fits, key=lambda case: fits[case].lost)
    if fits[worst].lost > CUT_OFF:
        needed = np.max([fit.needed for fit in fits.values() if fit.lost > CUT_OFF], axis=0)
        raise UserError(too_large(worst, fits[worst].lost, (channels, *shape), needed))
    print_cut({case.name: fit.lost for case, fit in fits.items()})
    return shape
