"""Where stage 2 gets its regions from: a JSON file, a trained RPN, or nowhere (whole volumes)."""

from collections.abc import Iterable, Sequence

from data.scans.prepared import PreparedScan
from models.checkpoints import grid_of, load_rpn, paths_of, read_checkpoint, require_spacing
from models.ensembles import RPNEnsemble
from models.pipeline import RegionSource
from models.rpn.module import RPN
from models.rpn.settings import RegionSettings
from utils.errors import UserError
from utils.progress import progress
from utils.regions.region import Region, Shape, read_regions


def region_source(
    settings: RegionSettings, names: Sequence[str], roi_size: Shape, spacing_mm: Sequence[float] | None
) -> RegionSource | None:
    """The regions of ``--regions`` or ``--rpn_ckpt_path`` as a function of a scan; None where neither is given.

    A regions file must hold all scans, whose file names are `names` and whose voxels are of `spacing_mm` (D, H, W).
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

    def of_file(scan: PreparedScan) -> list[Region]:
        shape, listed = scan.brain.shape, regions[scan.name]
        if any(span.stop > size for region in listed for span, size in zip(region.slices, shape, strict=True)):
            raise UserError(
                f"--regions {path}: a region of {scan.name} leaves the grid {shape} (D, H, W); "
                "give the --scan_dim and --resize_to that it was proposed with"
            )
        return listed

    return of_file


def rpn_source(model: RPN | RPNEnsemble, roi_size: Shape) -> RegionSource:
    return lambda scan: model.regions(scan, roi_size)


def rpn_spacing(settings: RegionSettings) -> tuple[float, float, float] | None:
    """The voxel size (D, H, W, mm) that ``--rpn_ckpt_path`` was trained at; None without it or where unknown."""
    if not settings.rpn_ckpt_path:
        return None
    path = paths_of(settings.rpn_ckpt_path)[0]
    grid = grid_of(read_checkpoint(path), path)
    return grid.spacing_mm if grid else None


def collect_regions(regions_of: RegionSource, scans: Iterable[PreparedScan]) -> dict[str, list[Region]]:
    """Regions of each scan by its file name, with a progress bar."""
    return {scan.name: regions_of(scan) for scan in progress(scans, "Proposing regions")}
