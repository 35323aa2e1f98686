"""Regions of stage 1: consolidate the boxes of a slice, group similar slices, agree on a box, grow to the RoI.

Boxes are (xmin, ymin, xmax, ymax) in voxels, half-open, x along W and y along H. A volume's boxes are a
(D, 4) array with a row of NaN for a slice without proposal.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

from utils.errors import UserError
from utils.files import read_json, write_json

# Slices belong together while the brain's area differs by at most this share from the group's first slice ...
AREA_TOLERANCE = 0.15
# ... and the two outlines overlap at least this much. Together they cut an adult brain into some ten groups.
SHAPE_IOU = 0.80
# Boxes of two slices that overlap this much propose the same region: the usual criterion of detection.
CLUSTER_IOU = 0.5


@dataclass(frozen=True)
class Region:
    """A half-open box of voxels: slices [region_start, region_end), rows [ymin, ymax), columns [xmin, xmax)."""

    region_start: int
    region_end: int
    xmin: int
    ymin: int
    xmax: int
    ymax: int

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of this region in a (D, H, W) array."""
        return (
            slice(self.region_start, self.region_end),
            slice(self.ymin, self.ymax),
            slice(self.xmin, self.xmax),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(s.stop - s.start for s in self.slices)


def region_of(slices: tuple[slice, slice, slice]) -> Region:
    """The region that indexes a (D, H, W) array like `slices`; the inverse of ``Region.slices``."""
    d, y, x = slices
    return Region(d.start, d.stop, x.start, y.start, x.stop, y.stop)


def whole_volume(shape: tuple[int, int, int]) -> Region:
    return region_of(tuple(slice(0, n) for n in shape))


def region_mask(regions: list[Region], shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W) bool: the union of the regions."""
    mask = np.zeros(shape, bool)
    for region in regions:
        mask[region.slices] = True
    return mask


# --- within a slice ------------------------------------------------------------------------------------


def enclosing_box(boxes: np.ndarray) -> np.ndarray:
    """The smallest box around (N, 4) boxes; a row of NaN when there are none."""
    if len(boxes) == 0:
        return np.full(4, np.nan)
    return np.concatenate([np.min(boxes[:, :2], 0), np.max(boxes[:, 2:], 0)]).astype(float)


# --- over slices ---------------------------------------------------------------------------------------


def group_slices(head: np.ndarray) -> list[tuple[int, int]]:
    """Cut a head into runs of anatomically similar slices.

    A run goes on while the brain's area and outline stay similar to those of its first slice. Every slice with
    brain is in exactly one run; a slice without brain is in none and ends a run.

    Args:
        head: (D, H, W) bool.

    Returns:
        Half-open (start, end) ranges of slices, in order.
    """
    areas = np.count_nonzero(head, axis=(1, 2))
    groups, start = [], None
    for z, area in enumerate(areas):
        if start is not None and (area == 0 or not _similar(head[start], areas[start], head[z], area)):
            groups.append((start, z))
            start = None
        if start is None and area:
            start = z
    if start is not None:
        groups.append((start, len(areas)))
    return groups


def _similar(first: np.ndarray, first_area: int, other: np.ndarray, area: int) -> bool:
    if abs(int(area) - int(first_area)) > AREA_TOLERANCE * first_area:
        return False
    common = np.count_nonzero(first & other)
    return common >= SHAPE_IOU * (first_area + area - common)


def pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """(N, N) intersection over union of (N, 4) boxes."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return common / np.maximum(areas[:, None] + areas[None] - common, 1e-12)


def agreed_box(boxes: np.ndarray) -> np.ndarray:
    """The box that stands for a whole group of slices.

    Boxes are clustered by IoU. A single largest cluster of at least two is the most frequent region; with none,
    or a tie for the largest, every box counts. The result encloses the boxes that count.

    Args:
        boxes: (N, 4), N at least 1, a box per slice.

    Returns:
        (4,) float.
    """
    _, cluster = connected_components(pairwise_iou(boxes) >= CLUSTER_IOU, directed=False)
    sizes = np.bincount(cluster)
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) == 1 and sizes[largest[0]] >= 2:
        boxes = boxes[cluster == largest[0]]
    return enclosing_box(boxes)


def expand_region(region: Region, roi_size: tuple[int, int, int], shape: tuple[int, int, int]) -> Region:
    """Grow a region to the RoI size about its centre, shifted rather than cut to stay inside the volume.

    Args:
        region: inside the volume.
        roi_size: (D, H, W) in voxels.
        shape: (D, H, W) of the volume.

    Returns:
        A region that holds the given one; smaller than `roi_size` only where the volume is.
    """
    grown = []
    for span, roi, size in zip(region.slices, roi_size, shape, strict=True):
        length = min(max(span.stop - span.start, roi), size)
        start = (span.start + span.stop - length) // 2
        start = min(max(start, 0), size - length)
        grown.append(slice(start, start + length))
    return region_of(tuple(grown))


def consistent_regions(boxes: np.ndarray, head: np.ndarray, roi_size: tuple[int, int, int]) -> list[Region]:
    """Turn a box per slice into 3D regions, one for each anatomical group that has a proposal.

    Args:
        boxes: (D, 4) float, a consolidated box per slice, rows of NaN for none.
        head: (D, H, W) bool.
        roi_size: (D, H, W) in voxels.

    Returns:
        Regions grown to the RoI size, in order of depth and without repetition.
    """
    regions = []
    for start, end in group_slices(head):
        proposed = boxes[start:end]
        proposed = proposed[~np.isnan(proposed[:, 0])]
        if len(proposed):
            region = expand_region(voxel_region(start, end, agreed_box(proposed), head.shape), roi_size, head.shape)
            regions.append(region)
    return list(dict.fromkeys(regions))


def voxel_region(start: int, end: int, box: np.ndarray, shape: tuple[int, int, int]) -> Region:
    """The voxels of slices [start, end) that a box (xmin, ymin, xmax, ymax) touches, inside a volume of `shape`."""
    _, height, width = shape
    xmin, ymin = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    xmax, ymax = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    return Region(start, end, xmin, ymin, xmax, ymax)


# --- on disk -------------------------------------------------------------------------------------------


def write_regions(path: Path | str, regions: dict[str, list[Region]]) -> None:
    """Write ``{scan file name: [region, ...]}`` as JSON."""
    write_json(path, {name: [asdict(r) for r in listed] for name, listed in regions.items()})


def read_regions(path: Path | str) -> dict[str, list[Region]]:
    """Read what `write_regions` wrote; a `UserError` names the file and the scan of a malformed region."""
    content = read_json(path)
    try:
        return {name: [_parse_region(r, path, name) for r in listed] for name, listed in content.items()}
    except (AttributeError, TypeError) as error:
        raise UserError(f"regions file {path} is no object of lists of regions ({error})") from None


def _parse_region(entry: dict, path, name: str) -> Region:
    keys = list(Region.__dataclass_fields__)
    if sorted(entry) != sorted(keys) or not all(type(v) is int for v in entry.values()):
        raise UserError(f"regions file {path}: a region of {name} needs whole numbers for {', '.join(keys)}")
    region = Region(**entry)
    if min(s.start for s in region.slices) < 0 or min(region.shape) < 1:
        raise UserError(f"regions file {path}: the region {entry} of {name} is empty or starts below 0")
    return region
