"""Where stage 2 gets its regions from: a JSON file, a trained RPN, or nowhere (whole volumes)."""

from collections.abc import Iterable, Sequence

from data.scans.prepared import PreparedScan
from models.checkpoints import load_rpn, paths_of, read_grid, require_spacing
from models.ensembles import RPNEnsemble
from models.pipeline import RegionSource
from models.rpn.module import RPN
from models.rpn.settings import RegionSettings
from models.segmentation.settings import ROI_SIZE
from utils.errors import UserError
from utils.progress import progress
from utils.regions.region import Region, read_regions


def region_source(
    settings: RegionSettings, names: Sequence[str], roi_size: tuple[int, int, int], spacing_mm: Sequence[float] | None
) -> RegionSource | None:
    """The regions of ``--regions`` or ``--rpn_ckpt_path`` as a function of a scan; None where neither is given.

    Args:
        names: file names of the scans to come; a regions file must hold them all.
        spacing_mm: (D, H, W) of their grid, or None.
    """
    if settings.rpn_ckpt_path:
        model = load_rpn(settings.rpn_ckpt_path, settings.score_threshold)
        path = paths_of(settings.rpn_ckpt_path)[0]
        require_spacing(spacing_mm, model, path, "take a network of stage 1 of that size")
        return rpn_source(model, roi_size)
    if settings.regions is None:
        return None
    regions, path = read_regions(settings.regions), settings.regions
    if missing := [name for name in names if name not in regions]:
        raise UserError(f"--regions {path} has no entry for {missing[0]}; propose its regions first")
    return lambda scan: _inside(regions[scan.name], scan, path)


def rpn_source(model: RPN | RPNEnsemble, roi_size: tuple[int, int, int] = ROI_SIZE) -> RegionSource:
    return lambda scan: model.regions(scan, roi_size)


def rpn_spacing(settings: RegionSettings) -> tuple[float, float, float] | None:
    """The voxel size (D, H, W, mm) that ``--rpn_ckpt_path`` was trained at; None without it or where unknown."""
    grid = read_grid(paths_of(settings.rpn_ckpt_path)[0]) if settings.rpn_ckpt_path else None
    return grid.spacing_mm if grid else None


def _inside(regions: list[Region], scan: PreparedScan, path: str) -> list[Region]:
    shape = scan.brain.shape
    if any(span.stop > size for region in regions for span, size in zip(region.slices, shape, strict=True)):
        raise UserError(
            f"--regions {path}: a region of {scan.name} leaves the grid {shape} (D, H, W); "
            "give the --scan_dim and --resize_to that it was proposed with"
        )
    return regions


def collect_regions(regions_of: RegionSource, scans: Iterable[PreparedScan]) -> dict[str, list[Region]]:
    """Regions of each scan by its file name, with a progress bar."""
    return {scan.name: regions_of(scan) for scan in progress(scans, "Proposing regions")}
