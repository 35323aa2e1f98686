"""The grid that a cohort is prepared on: its voxel size, and a shape that cuts no brain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.files.listing import counted
from data.files.names import SCAN
from data.files.space import Shape, Space, Spacing, centred_space, places_in, share_outside
from data.files.volumes import read_header
from data.prepare.attempts import attempt_all
from data.prepare.layouts import Layout, mask_path
from data.scans.brain import read_brain
from data.scans.checks import check_alignment, read_mask, require_one_channel
from data.scans.cohort import Case
from data.scans.grid import CUT_OFF, centre_of, choose_spacing, print_cut, shape_that_holds, too_large
from utils.errors import UserError
from utils.progress import progress


@dataclass(frozen=True)
class Fit:
    """How a case's brain fits the grid."""

    needed: Shape  # holds it, and the lesions
    lost: float  # share of it that the grid cuts off; 0 where no shape is given


def check_headers(cases: list[Case], layout: Layout, channels: int | None) -> int:
    """Refuse headers that are broken or do not fit together; the number of `channels`, by default of the first scan."""
    apart = []
    channels = channels or read_header(cases[0].scan).shape[0]
    for case in progress(cases, "Checking headers"):
        n_channels, mask = read_header(case.scan).shape[0], mask_path(case)
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
    spacing_mm = choose_spacing([replace(case, scan=mask_path(case)) for case in cases], wanted, None)
    return spacing_mm or space_in(mask_path(cases[0])).spacing_mm


def place_about(brain: np.ndarray, own: Space, axes: Space, shape: Shape, spacing_mm: Spacing) -> Space:
    """The prepared grid: along the axes of a case's mask, about the brain (D, H, W) of its scan."""
    return centred_space(axes, _centre_in(axes, brain, own), shape, spacing_mm)


def _centre_in(axes: Space, brain: np.ndarray, own: Space) -> tuple[float, ...]:
    """The middle of a brain (D, H, W) in voxels (D, H, W) of another grid."""
    return tuple(places_in(axes, np.array(centre_of(brain)), own))


def fit_brains(
    cases: list[Case], shape: Shape | None, spacing_mm: Spacing, brains: Path, num_workers: int
) -> tuple[dict[str, Fit], list[str]]:
    """The `Fit` of each case by its scan's name, and the reasons why others cannot be read."""
    work = partial(_fit_brain, shape=shape, spacing_mm=spacing_mm, brains=brains)
    fits, reasons = attempt_all(work, cases, "Finding brains", num_workers)
    return {case.name: fit for case, fit in zip(cases, fits, strict=True) if fit is not None}, reasons


def _fit_brain(case: Case, shape: Shape | None, spacing_mm: Spacing, brains: Path) -> Fit:
    brain, own, axes = read_brain(case, brains), space_in(case.scan), space_in(mask_path(case))
    where = axes, _centre_in(axes, brain, own), spacing_mm
    sizes = np.maximum(shape_that_holds(brain, own, *where), shape_that_holds(read_mask(case), axes, *where))
    lost = share_outside(brain, own, place_about(brain, own, axes, shape, spacing_mm)) if shape else 0.0
    return Fit(_shape_of(sizes), lost)


def _shape_of(sizes: np.ndarray) -> Shape:
    d, h, w = sizes.tolist()
    return d, h, w


def shape_for(cases: list[Case], fits: Mapping[str, Fit], shape: Shape | None, channels: int) -> Shape:
    """The given shape of the prepared grid, if it cuts no brain, or one that holds all."""
    if shape is None:
        shape = _shape_of(np.max([fit.needed for fit in fits.values()], axis=0))
        sizes = " ".join(map(str, shape))
        print(f"Grid of --scan_dim {channels} {sizes} (C D H W), which holds every brain and lesion")
        return shape
    worst = max(cases, key=lambda case: fits[case.name].lost)
    lost = {name: fit.lost for name, fit in fits.items()}
    if lost[worst.name] > CUT_OFF:
        needed = np.max([fit.needed for fit in fits.values() if fit.lost > CUT_OFF], axis=0)
        raise UserError(too_large(worst, lost[worst.name], (channels, *shape), needed))
    print_cut(lost)
    return shape
