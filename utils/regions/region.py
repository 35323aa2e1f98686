"""A region of a volume: its place, how it grows to the RoI, and the regions JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_json, write_json

EDGES = ("region_start", "region_end", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Region:
    """A half-open box of voxels: slices [region_start, region_end), rows [ymin, ymax), columns [xmin, xmax).

    seen: the boxes about what stage 1 saw, from which the region has grown; none where that is not known.
    """

    region_start: int
    region_end: int
    xmin: int
    ymin: int
    xmax: int
    ymax: int
    seen: tuple["Region", ...] = field(default=(), compare=False)

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


def bounding_region(mask: np.ndarray) -> Region | None:
    """The smallest region around what a (D, H, W) bool mask holds; None where that is nothing."""
    lines = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return region_of(tuple(slice(int(i[0]), int(i[-1]) + 1) for i in lines)) if len(lines[0]) else None


def voxel_region(start: int, end: int, box: np.ndarray, shape: tuple[int, int, int]) -> Region:
    """The voxels of slices [start, end) that a box (xmin, ymin, xmax, ymax) touches, inside a volume of `shape`."""
    _, height, width = shape
    xmin, ymin = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    xmax, ymax = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    return Region(start, end, xmin, ymin, xmax, ymax)


def region_mask(regions: list[Region], shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W) bool: the union of the regions."""
    mask = np.zeros(shape, bool)
    for region in regions:
        mask[region.slices] = True
    return mask


def expand_region(region: Region, roi_size: tuple[int, int, int], shape: tuple[int, int, int]) -> Region:
    """Grow a region to the RoI size about its centre, shifted rather than cut to stay inside the volume.

    Args:
        region: inside the volume.
        roi_size: (D, H, W) in voxels.
        shape: (D, H, W) of the volume.

    Returns:
        A region that holds the given one and has seen the same; smaller than `roi_size` only where the volume is.
    """
    grown = []
    for span, roi, size in zip(region.slices, roi_size, shape, strict=True):
        length = min(max(span.stop - span.start, roi), size)
        start = (span.start + span.stop - length) // 2
        start = min(max(start, 0), size - length)
        grown.append(slice(start, start + length))
    return replace(region_of(tuple(grown)), seen=region.seen)


def grow_region(region: Region, margin: Sequence[int], shape: tuple[int, int, int]) -> Region:
    """A box with some voxels more on either side of each axis (D, H, W), cut where the volume ends."""
    spans = zip(region.slices, margin, shape, strict=True)
    return region_of(tuple(slice(max(s.start - more, 0), min(s.stop + more, size)) for s, more, size in spans))


def seen_mask(
    regions: list[Region] | None, shape: tuple[int, int, int], margin: Sequence[int] = (0, 0, 0)
) -> np.ndarray | None:
    """(D, H, W) bool: what stage 1 saw, and all of a region that does not tell it; None without regions.

    Args:
        margin: voxels by which the boxes grow on either side, along each axis.
    """
    if regions is None:
        return None
    boxes = [box for region in regions for box in region.seen or (region,)]
    return region_mask([grow_region(box, margin, shape) for box in boxes], shape)


# --- on disk -------------------------------------------------------------------------------------------


def write_regions(path: Path | str, regions: dict[str, list[Region]]) -> None:
    """Write ``{scan file name: [region, ...]}`` as JSON."""
    write_json(path, {name: [_entry_of(r) for r in listed] for name, listed in regions.items()})


def _entry_of(region: Region) -> dict:
    entry = {edge: getattr(region, edge) for edge in EDGES}
    return {**entry, "seen": [_entry_of(box) for box in region.seen]} if region.seen else entry


def read_regions(path: Path | str) -> dict[str, list[Region]]:
    """Read what `write_regions` wrote; a `UserError` names the file and the scan of a malformed region."""
    content = read_json(path)
    try:
        return {name: [_parse_region(r, path, name) for r in listed] for name, listed in content.items()}
    except (AttributeError, TypeError) as error:
        raise UserError(f"regions file {path} is no object of lists of regions ({error})") from None


def _parse_region(entry: dict, path, name: str) -> Region:
    edges = {key: value for key, value in entry.items() if key != "seen"}
    if sorted(edges) != sorted(EDGES) or not all(type(v) is int for v in edges.values()):
        raise UserError(f"regions file {path}: a region of {name} needs whole numbers for {', '.join(EDGES)}")
    region = Region(**edges, seen=tuple(_parse_region(box, path, name) for box in entry.get("seen", ())))
    if min(s.start for s in region.slices) < 0 or min(region.shape) < 1:
        raise UserError(f"regions file {path}: the region {entry} of {name} is empty or starts below 0")
    return region
