"""The template's ventricles: how far a place lies from them, and the push of tissue as they widen."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, map_coordinates, maximum_filter

from data.phantom.heads import MIDLINE_MM, load_templates

# Lateral and third ventricles on a lattice: its spacing, first and last place, and a place in a ventricle, in template
# mm; and how far their widening pushes tissue: the push falls by e every `PUSH_MM` and ends at `REACH_MM`.
LATTICE_MM, LATTICE_FROM_MM, LATTICE_TO_MM, IN_VENTRICLE_MM = 2, (30, 36, 36), (168, 202, 140), (103, 130, 93)
PUSH_MM, REACH_MM = 10.0, 30.0
LATTICE_BOX = tuple(slice(a, b + 1, LATTICE_MM) for a, b in zip(LATTICE_FROM_MM, LATTICE_TO_MM, strict=True))


class Ventricles(NamedTuple):
    """The template's lateral and third ventricles on a lattice (h, w, d), float32 in mm."""

    distance: np.ndarray  # to their wall, negative inside
    normal: np.ndarray  # (3, h, w, d), away from them, of length 1 at most
    depth: np.ndarray  # half their thickness, where they are nearest

    @staticmethod
    def lattice(points_mm: np.ndarray) -> np.ndarray:
        """(3, N) lattice coordinates of points of the template."""
        return (points_mm - np.array(LATTICE_FROM_MM, np.float32)[:, None]) / np.float32(LATTICE_MM)

    def push(self, volume_factor: float) -> np.ndarray:
        """(3, h, w, d) mm from a place to the one whose tissue it shows once the ventricles are so much larger."""
        walls = np.sort(self.distance, axis=None)
        wall = walls[int(volume_factor * np.count_nonzero(self.distance < 0))]
        length = wall * np.exp(np.clip(wall - self.distance, -REACH_MM, wall) / PUSH_MM)
        length *= np.clip((REACH_MM - self.distance) / PUSH_MM, 0, 1)
        # Never through to the opposite wall, where a ventricle is thin.
        length = np.minimum(length, np.maximum(self.distance + 0.7 * self.depth, 0))
        return -length * self.normal

    def push_at(self, points_mm: np.ndarray, volume_factor: float) -> np.ndarray:
        """(3, N) mm, `push` at (3, N) points of the template."""
        places = self.lattice(points_mm)
        return np.stack([map_coordinates(axis, places, order=1, mode="nearest") for axis in self.push(volume_factor)])

    def distance_at(self, points_mm: np.ndarray) -> np.ndarray:
        """(N,) mm to the wall from (3, N) points of the template, too short beyond `REACH_MM`."""
        return map_coordinates(self.distance, self.lattice(points_mm), order=1, mode="nearest")


@lru_cache(maxsize=1)
def load_ventricles() -> Ventricles:
    maps = load_templates()
    box = tuple(slice(a, b + 1) for a, b in zip(LATTICE_FROM_MM, LATTICE_TO_MM, strict=True))
    h, w, d = np.ogrid[box]
    deep = ((h - MIDLINE_MM) / 46) ** 2 + ((w - 116) / 75) ** 2 + ((d - 77) / 40) ** 2 < 1  # no sulcus joins them here
    labels, _ = label(deep & (maps["gm"][box] + maps["wm"][box] < 0.5))
    inside = labels == labels[tuple(np.subtract(IN_VENTRICLE_MM, LATTICE_FROM_MM))]
    inside = inside[::LATTICE_MM, ::LATTICE_MM, ::LATTICE_MM]
    within = distance_transform_edt(inside)
    outside, nearest = distance_transform_edt(~inside, return_indices=True)
    distance = gaussian_filter((LATTICE_MM * (outside - within)).astype(np.float32), 0.7)
    normal = np.array(np.gradient(gaussian_filter(distance, 1.0), LATTICE_MM), np.float32)
    depth = LATTICE_MM * maximum_filter(within, 5)[tuple(nearest)]
    return Ventricles(distance, normal, depth.astype(np.float32))
