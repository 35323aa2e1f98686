"""Where stage 2 gets its regions from: a JSON file, a trained RPN, or nowhere (whole volumes)."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from data.files.nifti import SAME_SIZE
from data.files.space import SAME_VOXEL, Space, places_in, space_from_json
from data.scans.contrast import require_contrast
from data.scans.prepared import PreparedScan
from models.checkpoints import grid_of, load_rpn, paths_of, read_checkpoint, require_spacing
from models.ensembles import RPNEnsemble
from models.pipeline import RegionSource
from models.rpn.module import RPN
from models.rpn.settings import RegionSettings
from utils.errors import UserError
from utils.progress import progress
from utils.regions.region import UNKNOWN_EVIDENCE, Region, Shape, expand_region, lying_on, read_regions, region_of


def region_source(
    settings: RegionSettings,
    names: Sequence[str],
    roi_size: Shape,
    spacing_mm: Sequence[float] | None,
    contrast: str | None,
) -> RegionSource | None:
    """The regions of ``--regions`` or ``--rpn_ckpt_path`` as a function of a scan; None where neither is given.

    A regions file must hold all scans, whose file names are `names` and whose voxels are of `spacing_mm` (D, H, W);
    their `contrast` is None for what the names say.
    """
    if settings.rpn_ckpt_path:
        model = load_rpn(settings.rpn_ckpt_path, settings.score_threshold)
        path = paths_of(settings.rpn_ckpt_path)[0]
        require_spacing(spacing_mm, model, path, "take a network of stage 1 of that size")
        require_contrast(names, model.contrast, path, contrast)
        return rpn_source(model, roi_size)
    if settings.regions is None:
        return None
    regions, path = read_regions(settings.regions), settings.regions
    if missing := [name for name in names if name not in regions]:
        raise UserError(f"--regions {path} has no entry for {missing[0]}; propose its regions first")
    boxes = (box for name in names for region in regions[name] for box in region.detected or (region,))
    if any(box.evidence is None for box in boxes):
        print(f"--regions {path} does not say how sure stage 1 was: its evidence counts as {UNKNOWN_EVIDENCE:g}")

    def of_file(scan: PreparedScan) -> list[Region]:
        try:
            return [_on_grid_of(scan, region, roi_size) for region in regions[scan.name]]
        except ValueError as error:
            raise UserError(f"--regions {path}: {error}; propose the regions of {scan.name} again") from None

    return of_file


def _on_grid_of(scan: PreparedScan, region: Region, roi_size: Shape) -> Region:
    """A region of a file on the grid of a scan, at least of the RoI size where it is moved there from another one.

    Raises:
        ValueError: where it lies is unknown, or beyond the grid.
    """
    if region.grid is None and not scan.space.is_close(scan.own):
        raise ValueError("it does not say on which grid they lie")
    source = scan.space if region.grid is None else space_from_json(region.grid)
    if any(span.stop > size for span, size in zip(region.slices, source.shape, strict=True)):
        raise ValueError(f"a region leaves its grid of {source.shape} voxels (D, H, W)")
    if source.is_close(scan.space):
        return region
    if not (scan.spacing_known or np.allclose(source.spacing_mm, scan.space.spacing_mm, rtol=SAME_SIZE)):
        raise ValueError("they are of another voxel size, and that of the scan is unknown")
    detected = [box for each in region.detected if (box := _moved(each, source, scan.space))]
    if (moved := _moved(region, source, scan.space)) is None:
        raise ValueError(f"a region lies beyond the grid of {scan.space.shape} voxels (D, H, W)")
    return expand_region(replace(moved, detected=tuple(detected)), roi_size, scan.space.shape)


def _moved(box: Region, source: Space, target: Space) -> Region | None:
    """The voxels of a grid that a box of another one touches; None where it lies beyond."""
    corners = itertools.product(*((span.start - 0.5, span.stop - 0.5) for span in box.slices))
    places = places_in(target, np.array([*corners]), source) + 0.5
    low = np.maximum(np.floor(places.min(0) + SAME_VOXEL), 0).astype(int).tolist()
    high = np.minimum(np.ceil(places.max(0) - SAME_VOXEL), target.shape).astype(int).tolist()
    spans = [slice(*ends) for ends in zip(low, high, strict=True)]
    return replace(region_of(spans), evidence=box.evidence) if all(s.start < s.stop for s in spans) else None


def rpn_source(model: RPN | RPNEnsemble, roi_size: Shape) -> RegionSource:
    return lambda scan: model.regions(scan, roi_size)


def rpn_spacing(settings: RegionSettings) -> tuple[float, float, float] | None:
    """The voxel size (D, H, W, mm) that ``--rpn_ckpt_path`` was trained at; None without it or where unknown."""
    if not settings.rpn_ckpt_path:
        return None
    path = paths_of(settings.rpn_ckpt_path)[0]
    grid = grid_of(read_checkpoint(path, RPN.__name__), path)
    return grid.spacing_mm if grid else None


def collect_regions(regions_of: RegionSource, scans: Iterable[PreparedScan]) -> dict[str, list[Region]]:
    """Regions of each scan by its file name, with a progress bar."""
    bar = progress(scans, "Proposing regions")
    return {scan.name: lying_on(regions_of(scan), scan.space.as_json) for scan in bar}
