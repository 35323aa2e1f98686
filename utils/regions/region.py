"""Boxes of slices and regions of volumes, in voxels and half-open: their geometry, and the regions JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_json, write_json

EDGES = ("region_start", "region_end", "xmin", "ymin", "xmax", "ymax")
Shape = tuple[int, int, int]  # (D, H, W) in voxels
UNKNOWN_EVIDENCE = 0.5


@dataclass(frozen=True)
class Region:
    """A half-open box of voxels: slices [region_start, region_end), rows [ymin, ymax), columns [xmin, xmax)."""

    region_start: int
    region_end: int
    xmin: int
    ymin: int
    xmax: int
    ymax: int
    # The boxes around detections from which it has grown; none where they are unknown.
    detected: tuple["Region", ...] = field(default=(), compare=False)
    # Of a detection, that it is a lesion, in [0, 1]; None where that is unknown.
    evidence: float | None = field(default=None, compare=False)
    # The grid that it lies on, ``{"shape": [D, H, W], "affine": 4 x 4 to mm}``; None where that is unknown.
    grid: Mapping | None = field(default=None, compare=False)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of this region in a (D, H, W) array."""
        return slice(self.region_start, self.region_end), slice(self.ymin, self.ymax), slice(self.xmin, self.xmax)

    @property
    def shape(self) -> Shape:
        return self.region_end - self.region_start, self.ymax - self.ymin, self.xmax - self.xmin


def region_of(slices: Iterable[slice]) -> Region:
    """The region that indexes a (D, H, W) array like `slices`; the inverse of ``Region.slices``."""
    d, y, x = slices
    return Region(d.start, d.stop, x.start, y.start, x.stop, y.stop)


def whole_volume(shape: Shape) -> Region:
    return region_of(slice(0, n) for n in shape)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Index of the smallest box around the foreground, where work is faster; of an empty box if there is none."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return tuple(box)


def box_around(mask: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """The `bounding_box` with some voxels more on either side of each axis, where the mask has them."""
    spans = zip(bounding_box(mask), mask.shape, strict=True)
    return tuple(slice(max(span.start - margin, 0), min(span.stop + margin, size)) for span, size in spans)


def bounding_region(mask: np.ndarray) -> Region | None:
    """The smallest region around what a (D, H, W) bool mask holds; None where that is nothing."""
    region = region_of(bounding_box(mask))
    return region if all(region.shape) else None


def voxel_region(start: int, end: int, box: np.ndarray, shape: Shape) -> Region:
    """The voxels of slices [start, end) that a box (xmin, ymin, xmax, ymax) touches, inside a volume of `shape`."""
    _, height, width = shape
    xmin, ymin = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    xmax, ymax = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    return Region(start, end, xmin, ymin, xmax, ymax)


def region_mask(regions: Iterable[Region], shape: Shape) -> np.ndarray:
    """(D, H, W) bool: the union of the regions."""
    mask = np.zeros(shape, bool)
    for region in regions:
        mask[region.slices] = True
    return mask


def expand_region(region: Region, roi_size: Shape, shape: Shape) -> Region:
    """Grow a region to the RoI size about its centre, shifted rather than cut to stay inside a volume of `shape`."""
    expanded = []
    for span, roi, size in zip(region.slices, roi_size, shape, strict=True):
        length = min(max(span.stop - span.start, roi), size)
        start = min(max((span.start + span.stop - length) // 2, 0), size - length)
        expanded.append(slice(start, start + length))
    return replace(region_of(expanded), detected=region.detected)


def enclosing_region(one: Region, other: Region) -> Region:
    """The smallest region around two, with the detections of both."""
    spans = zip(one.slices, other.slices, strict=True)
    both = region_of(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in spans)
    return replace(both, detected=one.detected + other.detected)


def grow_region(region: Region, margin: Sequence[int], shape: Shape) -> Region:
    """A box with some voxels more on either side of each axis (D, H, W), cut where the volume ends."""
    spans = zip(region.slices, margin, shape, strict=True)
    return region_of(slice(max(s.start - more, 0), min(s.stop + more, size)) for s, more, size in spans)


def evidence_map(
    regions: Sequence[Region] | None, shape: Shape, margin: Sequence[int] = (0, 0, 0)
) -> np.ndarray | None:
    """(D, H, W) float32: the largest evidence of the detections, grown by a margin along each axis; 0 without one.

    A region stands for detections that are unknown, and `UNKNOWN_EVIDENCE` for theirs.
    """
    if regions is None:
        return None
    boxes = [box for region in regions for box in region.detected or (region,)]
    evidence = np.zeros(shape, np.float32)
    for box in boxes:
        place = evidence[grow_region(box, margin, shape).slices]
        np.maximum(place, UNKNOWN_EVIDENCE if box.evidence is None else box.evidence, out=place)
    return evidence


def enclosing_box(boxes: np.ndarray) -> np.ndarray:
    """The smallest box around (N, 4) boxes; a row of NaN when there are none."""
    if len(boxes) == 0:
        return np.full(4, np.nan)
    return np.concatenate([np.min(boxes[:, :2], 0), np.max(boxes[:, 2:], 0)]).astype(float)


def pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """(..., N, N) intersection over union of (..., N, 4) boxes."""
    common = np.ones((), boxes.dtype)
    for axis in (0, 1):  # a last axis of two costs NumPy four times as much
        low, high = boxes[..., axis], boxes[..., axis + 2]
        sides = np.minimum(high[..., :, None], high[..., None, :]) - np.maximum(low[..., :, None], low[..., None, :])
        common = common * np.maximum(sides, 0)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return common / np.maximum(areas[..., :, None] + areas[..., None, :] - common, 1e-12)


def lying_on(regions: Iterable[Region], grid: Mapping | None) -> list[Region]:
    return [replace(region, grid=grid) for region in regions]


def write_regions(path: Path | str, regions: dict[str, list[Region]]) -> None:
    """Write ``{scan file name: [region, ...]}`` as JSON."""
    write_json(path, {name: [_to_json(region) for region in listed] for name, listed in regions.items()})


def _to_json(region: Region) -> dict:
    entry: dict = {edge: getattr(region, edge) for edge in EDGES}
    if region.evidence is not None:
        entry["evidence"] = region.evidence
    if region.detected:
        entry["detected"] = [_to_json(box) for box in region.detected]
    return {**entry, "grid": region.grid} if region.grid else entry


def read_regions(path: Path | str) -> dict[str, list[Region]]:
    """Read what `write_regions` wrote; a `UserError` names the file and the scan of a malformed region."""
    content = read_json(path)
    try:
        return {name: [_from_json(entry, path, name) for entry in listed] for name, listed in content.items()}
    except (AttributeError, TypeError) as error:
        raise UserError(f"regions file {path} is no object of lists of regions ({error})") from None


def _from_json(entry: dict, path: Path | str, name: str) -> Region:
    edges = {key: value for key, value in entry.items() if key not in ("detected", "evidence", "grid")}
    if sorted(edges) != sorted(EDGES) or not all(type(v) is int for v in edges.values()):
        raise UserError(f"regions file {path}: a region of {name} needs whole numbers for {', '.join(EDGES)}")
    detected, grid = tuple(_from_json(box, path, name) for box in entry.get("detected", ())), entry.get("grid")
    if grid is not None and not _is_grid(grid):
        raise UserError(f"regions file {path}: the grid of {name} needs a shape (D, H, W) and an affine of 4 x 4")
    evidence = entry.get("evidence")
    if evidence is not None and not (isinstance(evidence, int | float) and 0 <= evidence <= 1):
        raise UserError(f"regions file {path}: the evidence of a region of {name} is no number from 0 to 1")
    region = Region(**edges, detected=detected, evidence=evidence, grid=grid)
    if min(s.start for s in region.slices) < 0 or min(region.shape) < 1:
        raise UserError(f"regions file {path}: the region {entry} of {name} is empty or starts below 0")
    return region


def _is_grid(grid: Mapping) -> bool:
    shape = grid.get("shape")
    try:
        affine = np.array(grid.get("affine"), float)
    except (TypeError, ValueError):
        return False
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)
    return whole and affine.shape == (4, 4) and bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine)) > 0
