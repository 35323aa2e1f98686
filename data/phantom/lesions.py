"""Lesions of the synthetic cohort."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, label
from scipy.spatial.transform import Rotation

from data.phantom.heads import MIDLINE_MM, Field, Head, load_templates

# ATLAS v2.0: lesions of 0.01 to 497 cm3 with a median near 5 (Liew et al., 2022, 10.1038/s41597-022-01401-7).
MEDIAN_VOLUME_CM3, LOG_SPREAD, VOLUME_RANGE_CM3 = 5.0, 1.5, (0.01, 497.0)
ONE_SIDED_SHARE = 0.9
RIM_MM = 0.6  # width of the partial-volume rim
SCATTER_MM = 22.0  # of emboli about the first, in each direction


@dataclass(frozen=True)
class Pattern:
    """How a scan's lesions share their volume."""

    counts: dict[int, float]  # probability of each number of lesions
    evenness: float  # of the Dirichlet distribution of their shares
    scattered: float = 0.0  # probability that a further lesion lies near the first, as emboli of one artery do


# ISLES 2022 has scans of one infarct and of dozens (Hernandez Petzsche et al., 2022, 10.1038/s41597-022-01875-5).
ACUTE = Pattern({1: 0.25, 2: 0.15, 3: 0.12, 5: 0.14, 8: 0.12, 12: 0.1, 16: 0.07, 22: 0.05}, 0.6, 0.6)
PATTERNS = {"t1w": Pattern({1: 0.65, 2: 0.25, 3: 0.10}, 2.0), "flair": ACUTE, "dwi": ACUTE}


def draw_lesions(head: Head, pattern: Pattern, rng: np.random.Generator) -> np.ndarray:
    """Opacity of the scan's lesions, (H, W, D) float32 in [0, 1]; a voxel above 0.5 is lesion."""
    n = int(rng.choice(list(pattern.counts), p=list(pattern.counts.values())))
    total = min(MEDIAN_VOLUME_CM3 * np.exp(LOG_SPREAD * rng.normal()), VOLUME_RANGE_CM3[1])
    volumes = np.clip(total * rng.dirichlet(np.full(n, pattern.evenness)), *VOLUME_RANGE_CM3)
    side = rng.choice([-1, 1])
    first = _lesion_centre(side, rng)
    centres = [(first, side)]
    for _ in range(n - 1):
        hemisphere = side if rng.random() < ONE_SIDED_SHARE else -side
        near = first if rng.random() < pattern.scattered and hemisphere == side else None
        centres.append((_lesion_centre(hemisphere, rng, near), hemisphere))
    tissue = Tissue(np.argwhere(head.tissue), head.template_mm[:, head.tissue], head.grid.spacing_mm)
    opacity = np.zeros(head.brain.shape, np.float32)
    for volume_cm3, (centre, hemisphere) in zip(volumes, centres, strict=True):
        box, lesion = draw_lesion(tissue, volume_cm3, centre, hemisphere, rng)
        np.maximum(opacity[box], lesion, out=opacity[box])
    return opacity


class Tissue(NamedTuple):
    """The voxels a lesion may lie in: their places on the grid (N, 3) and in the template (3, N) mm."""

    voxels: np.ndarray
    template_mm: np.ndarray
    spacing_mm: tuple[float, float, float]


def draw_lesion(
    tissue: Tissue, volume_cm3: float, centre: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[tuple, np.ndarray]:
    """One lesion of a volume: an ellipsoid with a rough surface about `centre` (template mm), cut to one hemisphere.

    Returns slices of a box of the grid, and the lesion's opacity in it.
    """
    radius = 10 * (3 * volume_cm3 / (4 * np.pi)) ** (1 / 3)
    stretch = np.exp(rng.normal(0, 0.25, 3))
    shape = Rotation.random(rng=rng).as_matrix() @ np.diag(stretch / np.prod(stretch) ** (1 / 3))
    roughness = Field.draw(1.6 * radius + 4, rng)
    reach = max(3 * radius, 4 * max(tissue.spacing_mm))
    from_centre = tissue.template_mm - centre.astype(np.float32)[:, None]
    near = (np.abs(from_centre).max(0) < reach) & ((tissue.template_mm[0] - MIDLINE_MM) * side > 0)
    if not near.any():
        return (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32)
    distance = np.linalg.norm(np.linalg.solve(shape, from_centre[:, near]), axis=0)  # mm
    surface = radius * (1 + 0.25 * roughness.at(tissue.template_mm[:, near])) - distance
    voxels = tissue.voxels[near]
    low, high = voxels.min(0), voxels.max(0) + 1
    opacity = np.zeros(high - low, np.float32)
    # A soft threshold that leaves so many voxels, at least one, above 0.5.
    n = min(max(round(1000 * volume_cm3 / np.prod(tissue.spacing_mm)), 1), len(surface))
    ordered = np.sort(surface)[::-1]
    level = ordered[-1] - RIM_MM if n == len(surface) else (ordered[n - 1] + ordered[n]) / 2
    opacity[tuple((voxels - low).T)] = 1 / (1 + np.exp(-np.clip((surface - level) / RIM_MM, -30, 30)))
    return tuple(map(slice, low, high)), _one_blob(opacity)


def _one_blob(opacity: np.ndarray) -> np.ndarray:
    """Keep the largest component and the rim around it."""
    labels, n = label(opacity > 0.5, np.ones((3, 3, 3)))
    if n <= 1:
        return opacity
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return np.where(largest | (binary_dilation(largest, iterations=2) & (labels == 0)), opacity, 0)


def _lesion_centre(side: int, rng: np.random.Generator, near: np.ndarray | None = None) -> np.ndarray:
    """A random place in the template's tissue of one hemisphere, in mm; about `near` if given."""
    candidates = _template_places("tissue")
    candidates = candidates[(candidates[:, 0] - MIDLINE_MM) * side > 4]
    if near is None:
        return candidates[rng.integers(len(candidates))].astype(float)
    wanted = near + rng.normal(0, SCATTER_MM, 3)
    return candidates[((candidates - wanted) ** 2).sum(1).argmin()].astype(float)


@lru_cache(maxsize=2)
def _template_places(kind: str) -> np.ndarray:
    """(N, 3) template voxels of ``tissue`` or deep ``white`` matter, on a lattice of 3 mm."""
    maps = load_templates()
    chosen = maps["wm"] > 0.95 if kind == "white" else maps["gm"] + maps["wm"] > 0.8
    lattice = np.zeros_like(chosen)
    lattice[::3, ::3, ::3] = True
    return np.argwhere(chosen & lattice)
