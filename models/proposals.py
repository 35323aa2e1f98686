"""Where stage 2 gets its regions from: a JSON file, a trained RPN, or nowhere (whole volumes)."""

from argparse import Namespace
from collections.abc import Callable, Collection

from data.scans.prepared import PreparedScan
from models.checkpoints import load_rpn, paths_of, read_grid, require_spacing
from models.ensembles import RPNEnsemble
from models.rpn.module import RPN
from utils.errors import UserError
from utils.progress import progress
from utils.regions.region import Region, read_regions


def region_source(
    args: Namespace, names: list[str], roi_size: tuple[int, int, int], spacing_mm: tuple[float, ...] | None
) -> Callable[[PreparedScan], list[Region]] | None:
    """What ``--regions`` or ``--rpn_ckpt_path`` ask for, as a function of a scan; None where neither is given.

    Args:
        names: file names of the scans to come; a regions file must know them all.
        spacing_mm: (D, H, W) of the grid that they will be on, or None.
    """
    if args.rpn_ckpt_path:
        model = load_rpn(args.rpn_ckpt_path, args.score_threshold)
        require_spacing(spacing_mm, model, paths_of(args.rpn_ckpt_path)[0], "take a network of stage 1 of that size")
        return rpn_source(model, roi_size)
    if args.regions:
        regions = read_regions(args.regions)
        if missing := [name for name in names if name not in regions]:
            raise UserError(f"--regions {args.regions} has no entry for {missing[0]}; propose its regions first")
        return lambda scan: _inside(regions[scan.name], scan, args.regions)
    return None


def spacing_of_proposer(args: Namespace) -> tuple[float, ...] | None:
    """The voxel size (D, H, W, mm) that ``--rpn_ckpt_path`` was trained at; None without it or where untold."""
    if not args.rpn_ckpt_path:
        return None
    grid = read_grid(args.rpn_ckpt_path)
    return grid and grid.spacing_mm


def rpn_source(model: RPN | RPNEnsemble, roi_size: tuple[int, int, int]) -> Callable[[PreparedScan], list[Region]]:
    return lambda scan: model.propose(scan, model.detect_volume(scan), roi_size)


def _inside(regions: list[Region], scan: PreparedScan, path: str) -> list[Region]:
    shape = scan.brain.shape
    for region in regions:
        if any(span.stop > size for span, size in zip(region.slices, shape, strict=True)):
            raise UserError(
                f"--regions {path}: a region of {scan.name} leaves the grid {shape} (D, H, W); "
                "give the --scan_dim and --resize_to that it was proposed with"
            )
    return regions


def collect_regions(
    regions_of: Callable[[PreparedScan], list[Region]], scans: Collection[PreparedScan]
) -> dict[str, list[Region]]:
    """Regions of each scan by its file name, with a progress bar."""
    return {scan.name: regions_of(scan) for scan in progress(scans, "Proposing regions")}
