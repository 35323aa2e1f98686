"""The grid that a cohort is prepared on: its voxel size, and a shape that cuts no brain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.files.listing import counted
from data.files.names import SCAN
from data.files.space import Shape, Space, Spacing, centred_space, places_in, share_outside
from data.files.volumes import read_header
from data.prepare.layouts import Layout, mask_path
from data.scans.brain import read_brain
from data.scans.checks import check_alignment, read_lesions, require_one_channel
from data.scans.cohort import Case
from data.scans.grid import CUT_OFF, centre_of, choose_spacing, print_cut, shape_that_holds, too_large
from utils.errors import UserError
from utils.progress import progress


@dataclass(frozen=True)
class Fit:
    """How a case's brain fits the grid."""

    needed: Shape  # holds it, and the lesions
    lost: float  # share of it that the grid cuts off; 0 where no shape is given
    labels: int  # the largest of its mask; above 1 where that numbers its lesions


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


def centre_in(axes: Space, brain: np.ndarray, own: Space) -> tuple[float, ...]:
    """The middle of a brain (D, H, W) in voxels (D, H, W) of another grid."""
    return tuple(places_in(axes, np.array(centre_of(brain)), own))


def fit_brain(case: Case, shape: Shape | None, spacing_mm: Spacing, brains: Path) -> Fit:
    """How a case fits a grid along the axes of its mask; `brains` is the folder of `read_brain`."""
    brain, own, axes = read_brain(case, brains), space_in(case.scan), space_in(mask_path(case))
    centre = centre_in(axes, brain, own)
    mask, labels = read_lesions(mask_path(case))
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
