"""The grid that a cohort is prepared on: its voxel size, and a shape that cuts no brain."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.files.listing import counted
from data.files.names import SCAN
from data.files.space import Space, centred_space, places_in, share_outside
from data.files.volumes import read_header
from data.prepare.layouts import Layout
from data.scans.brain import read_brain
from data.scans.checks import check_alignment, read_mask, require_one_channel
from data.scans.cohort import Case
from data.scans.grid import CUT_OFF, centre_of, choose_spacing, say_cut, shape_that_holds, too_large
from utils.errors import UserError
from utils.parallel import map_in_order
from utils.progress import progress


@dataclass(frozen=True)
class Settings:
    """What fixes the prepared files. Shapes and spacings run along (D, H, W); `shape` None until brains are known."""

    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float]
    ext: str


@dataclass(frozen=True)
class Fit:
    """How a case's brain fits the grid.

    needed: (D, H, W) that holds it, and the lesions.
    lost: share of it that the grid cuts off; 0 where there is no shape yet.
    """

    needed: tuple[int, int, int]
    lost: float


# --- headers -------------------------------------------------------------------------------------------


def check_headers(cases: list[Case], layout: Layout, channels: int | None) -> int:
    """Refuse files whose headers are broken or do not fit together; the number of channels, which all scans have.

    Args:
        channels: of ``--scan_dim`` or the layout; None for those of the first scan.
    """
    apart = []
    for case in progress(cases, "Checking headers"):
        found = read_header(case.scan).shape[0]
        channels = channels or found
        if found != channels:
            raise UserError(
                f"{case.scan} has {counted(found, 'channel')}, where {channels} are looked for; take it out"
            )
        if not layout.scan_has_own_grid:
            check_alignment(case.scan, case.mask)
        elif not scan_space(case).is_close(mask_space(case)):
            apart.append(case.name)
        require_one_channel(read_header(case.mask).shape[0], case.mask)
        if case.brain:
            check_alignment(case.scan, case.brain)
    if apart:
        print(f"{counted(len(apart), SCAN)} on another grid than the mask (e.g. {apart[0]}): resampled onto the mask's")
    return channels


def scan_space(case: Case) -> Space:
    return read_header(case.scan).space


def mask_space(case: Case) -> Space:
    return read_header(case.mask).space


def spacing_for(cases: list[Case], layout: Layout, wanted: list[float] | None) -> tuple[float, float, float]:
    """``--spacing``, the layout's or, without either, the median of the cohort: of its masks, whose grids are kept."""
    if wanted is None and layout.spacing_mm:
        return layout.spacing_mm
    return choose_spacing([replace(case, scan=case.mask) for case in cases], wanted, None)


# --- brains --------------------------------------------------------------------------------------------


def centre_in(axes: Space, brain: np.ndarray, own: Space) -> tuple[float, float, float]:
    """Where the middle of a brain (D, H, W) lies among the voxels of another grid, (D, H, W)."""
    return tuple(places_in(axes, np.array(centre_of(brain)), own))


def place_about(brain: np.ndarray, own: Space, axes: Space, settings: Settings) -> Space:
    """The prepared grid: along the axes of a case's mask, about the brain (D, H, W) of its scan."""
    return centred_space(axes, centre_in(axes, brain, own), settings.shape, settings.spacing_mm)


def fit_brains(cases: list[Case], settings: Settings, brains: Path, num_workers: int) -> tuple[dict, list[str]]:
    """The `Fit` of each case by its scan's name, and of the cases that cannot be read the reasons.

    Args:
        brains: folder that keeps the brains which are found (`data.scans.brain.read_brain`).
    """
    results = map_in_order(partial(_try_fit, settings=settings, brains=brains), cases, num_workers)
    fits, refused = {}, []
    for case, (fit, reason) in zip(cases, progress(results, "Finding brains", len(cases)), strict=True):
        if reason is None:
            fits[case.name] = fit
        else:
            refused.append(reason)
    return fits, refused


def _try_fit(case: Case, settings: Settings, brains: Path) -> tuple[Fit | None, str | None]:
    try:
        brain, own, axes = read_brain(case, brains), scan_space(case), mask_space(case)
        where = axes, centre_in(axes, brain, own), settings.spacing_mm
        needed = np.maximum(shape_that_holds(brain, own, *where), shape_that_holds(read_mask(case), axes, *where))
        lost = share_outside(brain, own, place_about(brain, own, axes, settings)) if settings.shape else 0.0
        return Fit(tuple(needed.tolist()), lost), None
    except UserError as error:
        return None, str(error)


def shape_for(cases: list[Case], fits: dict[str, Fit], shape: tuple | None, channels: int) -> tuple[int, int, int]:
    """The shape (D, H, W) of the prepared grid: the given one, if it cuts no brain, or one that holds all."""
    if shape is None:
        shape = tuple(int(n) for n in np.max([fit.needed for fit in fits.values()], axis=0))
        print(
            f"Grid of --scan_dim {channels} {' '.join(map(str, shape))} (C D H W), which holds every brain and lesion"
        )
        return shape
    by_name = {case.name: case for case in cases}
    worst = max(fits, key=lambda name: fits[name].lost)
    if fits[worst].lost > CUT_OFF:
        needed = np.max([fit.needed for fit in fits.values() if fit.lost > CUT_OFF], axis=0)
        raise UserError(too_large(by_name[worst], fits[worst].lost, (channels, *shape), needed))
    say_cut({name: fit.lost for name, fit in fits.items()})
    return shape
