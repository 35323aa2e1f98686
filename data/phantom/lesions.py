"""Lesions of the synthetic cohort."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, find_objects, label
from scipy.spatial.transform import Rotation

from data.phantom import statistics
from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Field, Head, load_templates
from data.phantom.statistics import ARTERIES, NAMES, SPREADS_MM, Law, draw_volumes, territory_scores
from utils.scores.masks import TWENTY_SIX_CONNECTED

# From 0.1 to 0.9 of its opacity a lesion's edge fades over that many mm: at variety 0 and, half as wide again as the
# 0.5 to 4 mm of real scans, at variety 1.
FADE_MM, FULL_FADE_MM = (2.6, 2.6), (0.5, 5.75)
FADE_SLOPE = 2 * np.log(9)  # of the logistic function between 0.1 and 0.9
BORDER_MM = 4.0  # in which the log densities of two territories change by about 1
CORE = 1.7  # standard deviations of a territory, in which its largest infarcts begin
PROXIMAL_CM3 = 60.0  # beyond it a stroke is that of a trunk, not of one of its arteries
CHAINED = ("ACA", "MCA frontal", "MCA parietal")
SMALLEST_WEDGE_CM3 = 0.3  # smaller lesions show no wedge in voxels of DWI
WEDGE_DEGREES = (22.0, 40.0)  # between the axis and the sides of a wedge


class Tissue(NamedTuple):
    """The voxels a lesion may lie in: their places on the grid (N, 3) and in the template (3, N) mm."""

    voxels: np.ndarray
    template_mm: np.ndarray
    spacing_mm: tuple[float, float, float]

    def among(self, chosen: np.ndarray) -> "Tissue":
        return Tissue(self.voxels[chosen], self.template_mm[:, chosen], self.spacing_mm)


class Lesion(NamedTuple):
    """A lesion that is to be drawn."""

    volume_cm3: float
    centre: np.ndarray  # (3,) template mm
    side: int  # of the midline, -1 or 1; 0 where it may cross
    artery: str


def radius_mm(volume_cm3: float) -> float:
    return 10 * (3 * volume_cm3 / (4 * np.pi)) ** (1 / 3)


def draw_fade_mm(variety: float, radius: float, rng: np.random.Generator) -> float:
    """How wide the edge of a lesion is: log-uniform, but no more than its diameter, or its core would be faint."""
    low, high = (plain + variety * (full - plain) for plain, full in zip(FADE_MM, FULL_FADE_MM, strict=True))
    return min(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 2 * radius)


def opacity_at(depth_mm: np.ndarray, fade_mm: float) -> np.ndarray:
    """Opacity in [0, 1] at a depth below the surface, where it is 0.5, float32."""
    return 1 / (1 + np.exp(-np.clip(depth_mm * np.float32(FADE_SLOPE / fade_mm), -30, 30)))


def draw_lesions(head: Head, law: Law, evenly: np.ndarray, variety: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity of the scan's lesions, (H, W, D) float32 in [0, 1]; a voxel above 0.5 is lesion.

    `evenly` are numbers of `statistics.even_numbers`.
    """
    lesions = plan_lesions(law, evenly, rng)
    tissue = Tissue(np.argwhere(head.tissue), head.template_mm[:, head.tissue], head.grid.spacing_mm)
    voxel_cm3 = float(np.prod(tissue.spacing_mm)) / 1000
    opacity = np.zeros(head.brain.shape, np.float32)
    taken = np.zeros(head.brain.shape, bool)
    for i, (lesion, own) in enumerate(zip(lesions, rng.spawn(len(lesions)), strict=True)):
        n = max(round(lesion.volume_cm3 / voxel_cm3), int(i == 0))  # a scan with lesions has one at any spacing
        near = _within_reach(tissue, lesion, taken)
        if n == 0 or len(near.voxels) == 0:
            continue
        surface = draw_surface(near.template_mm, lesion, own)
        box, drawn = fill(surface, near, n, draw_fade_mm(variety, radius_mm(lesion.volume_cm3), own))
        np.maximum(opacity[box], drawn, out=opacity[box])
        around = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        taken[around] |= binary_dilation(opacity[around] > 0.5, TWENTY_SIX_CONNECTED)  # lesions do not touch each other
    return opacity


def plan_lesions(law: Law, evenly: np.ndarray, rng: np.random.Generator) -> list[Lesion]:
    """Sizes and places of a scan's lesions, the largest first."""
    volumes, name = draw_volumes(law, evenly, rng)
    places, side = _lattice(), int(rng.choice([-1, 1]))
    opposite_share = statistics.OTHER_SIDE[rng.random() < statistics.BOTH_SIDES]
    is_chain = len(volumes) > 2 and name in CHAINED and rng.random() < statistics.CHAIN_SHARE
    own = places.artery == NAMES.index(name)
    first = _draw_place(places.mm[own & (places.is_border if is_chain else places.is_core)], side, rng)
    lesions = [_lesion_at(volumes[0], first, side, name, rng)]
    candidates = places.mm[places.is_border] if is_chain else places.mm
    for volume in volumes[1:]:
        hemisphere = -side if rng.random() < opposite_share else side
        is_near = hemisphere == side and (is_chain or rng.random() < statistics.NEAR_SHARE)
        place = _draw_place(candidates, hemisphere, rng, first if is_near else None)
        scores = territory_scores((place - ORIGIN_MM)[:, None])[:, 0]
        lesions.append(_lesion_at(volume, place, hemisphere, NAMES[int(scores.argmax())], rng))
    return lesions


def _lesion_at(volume_cm3: float, place: np.ndarray, side: int, name: str, rng: np.random.Generator) -> Lesion:
    artery = ARTERIES[name]
    may_cross = rng.random() < artery.crossing and (volume_cm3 < PROXIMAL_CM3 or artery.trunk == "cerebellum")
    return Lesion(float(volume_cm3), place, 0 if may_cross else side, name)


def _within_reach(tissue: Tissue, lesion: Lesion, taken: np.ndarray) -> Tissue:
    """The free voxels about a lesion's centre, in its hemisphere."""
    x = tissue.template_mm[0] - MIDLINE_MM
    reach = max(3.5 * radius_mm(lesion.volume_cm3), 4 * max(tissue.spacing_mm))
    near = x * lesion.side >= 0 if lesion.side else np.ones(len(x), bool)
    for axis, centre in zip(tissue.template_mm, lesion.centre.tolist(), strict=True):
        near &= np.abs(axis - np.float32(centre)) < reach
    found = tissue.among(np.flatnonzero(near))
    return found.among(~taken[tuple(found.voxels.T)])


def draw_surface(points: np.ndarray, lesion: Lesion, rng: np.random.Generator) -> np.ndarray:
    """(N,) float32: how far inside of a lesion (3, N) points in template mm lie, in about mm; its level is free."""
    artery, radius = ARTERIES[lesion.artery], radius_mm(lesion.volume_cm3)
    offset = points - lesion.centre.astype(np.float32)[:, None]
    mirror = np.array([np.sign(lesion.centre[0] - MIDLINE_MM) or 1, 1, 1])
    if artery.apex_mm is not None and lesion.volume_cm3 > SMALLEST_WEDGE_CM3:
        apex = np.array(artery.apex_mm) * mirror + ORIGIN_MM
        surface = _wedge(offset, radius, lesion.centre - apex, rng)
    else:
        axis = mirror * artery.axis if artery.apex_mm is None else rng.normal(size=3)
        surface = _spindle(offset, radius, axis, rng)
    if lesion.volume_cm3 > 1:
        surface = np.minimum(surface, _inside_territory(points, lesion, radius, rng))
    for wavelength, depth in ((1.6 * radius + 4, 0.19 * radius), (0.5 * radius + 4, 0.08 * radius)):
        surface += np.float32(depth) * Field.draw(wavelength, rng).at(points)
    return surface


def _spindle(offset: np.ndarray, radius: float, axis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid that is long about along `axis`."""
    along = axis / np.linalg.norm(axis) + rng.normal(0, 0.3, 3)
    turn, _ = Rotation.align_vectors([along / np.linalg.norm(along)], [[0, 0, 1]])
    stretch = np.exp(np.array([-0.5, -0.5, 1]) * abs(rng.normal(0.36, 0.22)) + rng.normal(0, 0.15, 3))
    shape = turn.as_matrix() @ np.diag(stretch / np.prod(stretch) ** (1 / 3))
    return radius - np.linalg.norm(np.linalg.inv(shape).astype(np.float32) @ offset, axis=0)


def _wedge(offset: np.ndarray, radius: float, outward: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cone that opens `outward` to the surface of the brain, cut by a ball about its base."""
    direction = outward / max(np.linalg.norm(outward), 1) + rng.normal(0, 0.15, 3)
    direction /= np.linalg.norm(direction)
    along = direction.astype(np.float32) @ offset
    broad = np.cross(direction, rng.normal(size=3))  # along the cortex; real lesions are 2.4 times as long as wide
    broad = (broad / np.linalg.norm(broad)).astype(np.float32)
    offset = offset - np.float32(rng.uniform(0.35, 0.75)) * (broad @ offset) * broad[:, None]
    beside = np.sqrt(np.maximum((offset**2).sum(0) - along**2, 0))
    angle = np.radians(rng.uniform(*WEDGE_DEGREES))
    cone = (along + 1.2 * radius) * np.float32(np.sin(angle)) - beside * np.float32(np.cos(angle))
    ball = radius * 1.2 - np.sqrt((offset**2).sum(0)) * np.float32(0.8)
    return np.minimum(cone, ball)


def _inside_territory(points: np.ndarray, lesion: Lesion, radius: float, rng: np.random.Generator) -> np.ndarray:
    """How far inside of its artery's territory, or its trunk's, points lie, in about mm, plus a margin."""
    trunk = ARTERIES[lesion.artery].trunk
    is_below = trunk == "cerebellum"  # the tentorium keeps its infarcts from the cerebrum
    as_trunk = is_below or lesion.volume_cm3 > PROXIMAL_CM3
    is_own = [name == lesion.artery or (as_trunk and other.trunk == trunk) for name, other in ARTERIES.items()]
    scores = territory_scores(points - np.array(ORIGIN_MM, np.float32)[:, None])
    inside = np.clip(scores[is_own].max(0) - scores[np.invert(is_own)].max(0), -20, 20)
    margin = radius * rng.uniform(0.2, 0.8) * (0.2 if is_below else 1)
    return np.float32(BORDER_MM) * inside + np.float32(margin)


def fill(surface: np.ndarray, tissue: Tissue, n: int, fade_mm: float) -> tuple[tuple, np.ndarray]:
    """The level set of a surface (N,) over tissue whose largest component has about `n` voxels.

    Returns slices of a box of the grid, and the lesion's opacity in it, float32.
    """
    low, high = tissue.voxels.min(0), tissue.voxels.max(0) + 1
    depth = np.full(high - low, -1e3, np.float32)
    depth[tuple((tissue.voxels - low).T)] = surface
    ordered = np.sort(surface)[::-1]
    fewest, most, wanted, best = 0, len(surface), min(n, len(surface)), np.inf
    for _ in range(8):
        at = ordered[-1] - 1 if wanted == len(surface) else (ordered[wanted - 1] + ordered[wanted]) / 2
        largest, rest = _largest_component(depth > at)
        excess = int(np.count_nonzero(largest)) - n
        if abs(excess) < best:
            best, level, blob, others = abs(excess), at, largest, rest
        fewest, most = (wanted, most) if excess < 0 else (fewest, wanted)
        if abs(excess) <= 0.02 * n or most - fewest <= 1:
            break
        wanted = min(wanted - excess, (wanted + most) // 2) if excess < 0 else (fewest + most) // 2
    opacity = opacity_at(depth - level, fade_mm)
    if others.any():  # what is a component of its own at this level is not the lesion's, nor is its edge
        opacity[others | (binary_dilation(others, iterations=2) & ~binary_dilation(blob, iterations=2))] = 0
    keep = find_objects((opacity > 0.01).view(np.uint8))[0]
    return tuple(slice(start + s.start, start + s.stop) for start, s in zip(low, keep, strict=True)), opacity[keep]


def _largest_component(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest component of a mask, and the rest of it."""
    labels, n = label(mask, TWENTY_SIX_CONNECTED)
    if n <= 1:
        return mask, np.zeros_like(mask)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return largest, mask & ~largest


class Lattice(NamedTuple):
    """Places in the template's tissue, on a lattice of 3 mm."""

    mm: np.ndarray  # (N, 3)
    artery: np.ndarray  # (N,) index into `NAMES`
    is_core: np.ndarray  # (N,) within `CORE` standard deviations of its artery's territory
    is_border: np.ndarray  # (N,) between anterior and middle, or middle and posterior cerebral artery


@lru_cache(maxsize=1)
def _lattice() -> Lattice:
    places = tissue_places()
    scores = territory_scores((places - ORIGIN_MM).T.astype(np.float32))
    order = np.argsort(scores, axis=0)[-2:]  # the likeliest two, the likeliest last
    second, first = np.take_along_axis(scores, order, 0)
    trunks = np.sort(np.array([artery.trunk for artery in ARTERIES.values()])[order], axis=0)
    is_pair = (trunks == [["ACA"], ["MCA"]]).all(0) | (trunks == [["MCA"], ["PCA"]]).all(0)
    is_core = first + np.log(SPREADS_MM).sum(1)[order[-1]] > -(CORE**2) / 2
    return Lattice(places.astype(float), order[-1], is_core, is_pair & (first - second < 1))


def _draw_place(
    candidates: np.ndarray, side: int, rng: np.random.Generator, near: np.ndarray | None = None
) -> np.ndarray:
    """One of (N, 3) places of a hemisphere, in template mm; about `near` if given."""
    some = candidates[rng.integers(len(candidates), size=400)]
    some = some[(some[:, 0] - MIDLINE_MM) * side > 2]
    if near is None:
        return some[0]
    wanted = near + rng.normal(0, statistics.SCATTER_MM, 3)
    return some[((some - wanted) ** 2).sum(1).argmin()]


@lru_cache(maxsize=1)
def tissue_places() -> np.ndarray:
    """(N, 3) voxels of the template's grey and white matter, on a lattice of 3 mm."""
    maps = load_templates()
    return 3 * np.argwhere((maps["gm"] + maps["wm"])[::3, ::3, ::3] > 0.8)
