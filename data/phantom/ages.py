"""Heads of all ages: wider ventricles and sulci, white matter disease, spaces of fluid; none of it is a lesion."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, map_coordinates, maximum_filter
from scipy.special import expit

from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Atrophy, Field, Head, load_templates, square_distance

# Of 3,301 patients with an acute ischaemic stroke (MRI-GENIE): mean and standard deviation of their age (65 +- 14.6 in
# 503 of them), and median and interquartile range of 2,529 volumes of white matter disease, 5.86 (2.18 to 14.61) cm3
# (Giese et al., 2020, 10.1212/WNL.0000000000009728), whose log grows with age here, and scatters by the rest.
STROKE_YEARS, YOUNG_YEARS, YEARS = (65.0, 14.6), 25.0, (18.0, 90.0)
DISEASE_CM3, DISEASE_PER_YEAR, DISEASE_SCATTER, MOST_DISEASE_CM3 = 5.86, 0.045, 1.25, 90.0
# Ventricles of 16 cm3 in the third decade and 25 in the fifth (218 healthy Koreans, 10.1016/j.neulet.2005.10.066), and
# about two and a half times the first at 85; their volume against that of a head of 25 years stays in this range.
VENTRICLES_PER_YEAR, VENTRICLE_FACTORS = 0.016, (0.7, 3.0)
# The log weight of fluid in sulci at 25 years, and its growth: CSF fills 18.7 % of the intracranial space in the third
# decade and 33.7 % beyond 80 years (133 healthy heads, Yamada et al., 2023, 10.1007/s00330-023-09632-x), or 11.4 % of
# it on average (49 heads of 24 to 80 years, Matsumae et al., 1996, J Neurosurg 84:982): heads differ by as much here.
SULCI_YOUNG, SULCI_PER_YEAR = 2.1, 0.045
VENTRICLE_SPREAD, SULCI_SPREAD = 0.5, 2.0  # at variety 1, of the logs between heads of one age; the first an estimate

# Levels as shares of white matter's, drawn for each head: disease of white matter is between grey matter and CSF on
# T1w, bright on FLAIR and faint on DWI (STRIVE: Wardlaw et al., 2013, 10.1016/S1474-4422(13)70124-8).
DISEASE = {"t1w": (0.6, 0.88), "flair": (1.45, 2.0), "dwi": (1.05, 1.35)}
RIM = {"t1w": (0.7, 0.85), "flair": (1.35, 1.8), "dwi": (1.0, 1.2)}
HORNS_MM = ((16, 36, 6), (28, -62, 16))  # where caps sit, of frontal horns in 90 % and occipital horns in 77 % of all
# healthy heads (10.1007/s002340050402); MNI mm off the template
# Perivascular spaces are up to 3 mm wide, most below the putamen and in the centrum semiovale; lacunes 3 to 15 mm, in
# deep grey matter, white matter and pons (STRIVE). T1w cohorts count lacunes among their lesions, so they have none.
SPACES_MM, LACUNES_MM = (0.6, 1.5), (1.5, 5.0)
SPACE_PLACES = (((22, 4, -6), (6, 6, 3)), ((26, -16, 36), (6, 22, 6)))  # MNI mm and standard deviations
LACUNE_PLACES = (
    ((24, 2, 6), (5, 9, 6)),
    ((12, -18, 8), (4, 6, 4)),
    ((26, -10, 32), (6, 22, 6)),
    ((4, -26, -32), (3, 3, 6)),
)
# Lateral and third ventricles on a lattice: its spacing, first and last place, and a place in a ventricle, in template
# mm; and how far their widening pushes tissue: the push falls by e every `PUSH_MM` and ends at `REACH_MM`.
LATTICE_MM, LATTICE_FROM_MM, LATTICE_TO_MM, IN_VENTRICLE_MM = 2, (30, 36, 36), (168, 202, 140), (103, 130, 93)
PUSH_MM, REACH_MM = 10.0, 30.0
LATTICE_BOX = tuple(slice(a, b + 1, LATTICE_MM) for a, b in zip(LATTICE_FROM_MM, LATTICE_TO_MM, strict=True))


@dataclass(frozen=True)
class Ageing:
    """What age has done to a head."""

    years: float
    ventricles: float  # factor on their volume
    sulci: float  # log of the factor on the weight of their fluid
    disease_cm3: float  # of white matter disease
    lacunes: int
    spaces: int  # perivascular ones that show

    @property
    def atrophy(self) -> Atrophy:
        return Atrophy(self.sulci, partial(load_ventricles().push_at, volume_factor=self.ventricles))


def draw_ageing(variety: float, rng: np.random.Generator) -> Ageing | None:
    """From variety 0.5 on heads are as old as stroke patients; at 0 there is no ageing."""
    if not variety:
        return None
    share = min(2 * variety, 1)
    years = YOUNG_YEARS + share * (np.clip(rng.normal(*STROKE_YEARS), *YEARS) - YOUNG_YEARS)
    ventricles, sulci, disease = rng.normal(0, (VENTRICLE_SPREAD * variety, SULCI_SPREAD * variety, DISEASE_SCATTER))
    older = years - YOUNG_YEARS
    log_disease = DISEASE_PER_YEAR * (years - STROKE_YEARS[0]) + disease
    return Ageing(
        years,
        float(np.clip(np.exp(VENTRICLES_PER_YEAR * older + ventricles), *VENTRICLE_FACTORS)),
        max(share * SULCI_YOUNG + SULCI_PER_YEAR * older + sulci, 0.0),
        share * min(DISEASE_CM3 * np.exp(log_disease), MOST_DISEASE_CM3),
        rng.poisson(0.012 * share * max(older, 0)),
        rng.poisson(share * (2 + 0.15 * max(older, 0))),
    )


def paint_ageing(signal: np.ndarray, head: Head, modality: str, levels: dict, ageing: Ageing, rng) -> None:
    """Paint disease of white matter and spaces of fluid over the brain's intensities (H, W, D), in place."""
    share = disease_share(head, ageing.disease_cm3, rng)
    level = levels["white"] * rng.uniform(*DISEASE[modality])
    signal += share * (level - signal)
    dark, rim = levels["fluid"], levels["white"] * rng.uniform(*RIM[modality])
    for _ in range(ageing.spaces):
        paint_ball(signal, head, _place(SPACE_PLACES, rng), rng.uniform(*SPACES_MM), dark)
    for _ in range(ageing.lacunes):
        place, radius, has_rim = _place(LACUNE_PLACES, rng), rng.uniform(*LACUNES_MM), rng.random() < 0.7
        if modality != "t1w":
            paint_ball(signal, head, place, radius, dark, (0.6 * radius, rim) if has_rim else None)


def disease_share(head: Head, volume_cm3: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, D) float32 share of diseased white matter: bands and caps along the ventricles, patches further out.

    The scan holds `volume_cm3` of voxels above 0.5.
    """
    share = np.zeros(head.brain.shape, np.float32)
    inside = (head.white > 0.5) & (head.template_mm[2] > ORIGIN_MM[2] - 12)  # above the brain stem and cerebellum
    points = head.template_mm[:, inside]
    folded = points.copy()
    folded[0] = np.abs(folded[0] - MIDLINE_MM)  # disease is much the same on both sides
    both, patches, fine = Field.draw(32, rng).at(folded), Field.draw(22, rng).at(points), Field.draw(9, rng).at(points)
    ventricles = load_ventricles()
    score = 2.2 * np.exp(-np.maximum(ventricles.distance_at(points), 0) / 6.5)
    score -= np.exp(-((folded[0] / 12) ** 2))  # the corpus callosum
    for place in HORNS_MM:
        score += 0.8 * np.exp(-square_distance(points, place) / 10**2)
    deep = map_coordinates(_deep_white(), ventricles.lattice(points), order=1, mode="nearest")
    score += 2.5 * deep + 0.45 * both + 0.35 * patches + 0.13 * fine  # the fibres under the cortex are spared
    n = min(round(1150 * volume_cm3 / float(np.prod(head.grid.spacing_mm))), len(score) - 1)
    level = np.partition(score, len(score) - 1 - n)[len(score) - 1 - n]
    uneven = np.clip(0.85 + 0.15 * fine, 0.5, 1)
    share[inside] = uneven * expit((score - level) / 0.15) * np.clip(2 * head.white[inside] - 1, 0, 1) ** 0.5
    return share


@lru_cache(maxsize=1)
def _deep_white() -> np.ndarray:
    """(h, w, d) float32 on the lattice of the ventricles: the share of white matter and ventricles around a place."""
    return gaussian_filter(np.maximum(load_templates()["wm"][LATTICE_BOX], load_ventricles().distance < 0), 3.0)


def _place(places, rng: np.random.Generator) -> np.ndarray:
    """A random place on either side, in template mm."""
    centre, spread = places[rng.integers(len(places))]
    x, y, z = rng.normal(centre, spread)
    return np.add(ORIGIN_MM, (x * rng.choice((-1, 1)), y, z))


def paint_ball(
    signal: np.ndarray,
    head: Head,
    place_mm: np.ndarray,
    radius: float,
    level: float,
    rim: tuple[float, float] | None = None,
    rough: Field | None = None,
    strength: float = 1.0,
) -> None:
    """Paint a ball, and perhaps a rim (mm, level), in the tissue of one side over intensities (H, W, D), in place."""
    box = head.box(place_mm, 1.9 * radius + (rim[0] if rim else 0))
    points = head.template_mm[(slice(None), *box)]
    surface = radius - np.sqrt(((points - place_mm.astype(np.float32)[:, None, None, None]) ** 2).sum(0))
    if rough:
        surface += 0.3 * radius * rough.at(points)
    inside = strength * head.tissue[box] * ((points[0] - MIDLINE_MM) * (place_mm[0] - MIDLINE_MM) > 0)
    edge, part = 0.3 * max(1.0, float(np.mean(head.grid.spacing_mm))), signal[box]
    for width, shade in (*((rim,) if rim else ()), (0.0, level)):
        part += inside * expit((surface + width) / edge) * (shade - part)


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
