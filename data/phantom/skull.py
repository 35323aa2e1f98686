"""What is outside the brain, painted about the skull-stripped templates; it is no anatomy to measure on."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import distance_transform_edt as distance
from scipy.ndimage import map_coordinates

from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Field, Head, draw_fine, load_templates, square_distance

COARSE_MM = 3  # the hull is smooth: its distance map needs no more
PADDING_MM = 39  # about the template, for corners of a tilted field of view
VAULT_CLOSING_MM, BASE_CLOSING_MM = 14, 4  # the vault bridges fissures; at the base bone fills them
BASE_MM = (60.0, 85.0)  # height, along D, over which the base becomes the vault
CORD_MM = {"canal": 9.0, "cord": 5.5}  # radii below the template, which ends in the brain stem

# Thickness of CSF, skull and scalp in mm: mean, standard deviation of its smooth variation over the head, and minimum.
LAYERS_MM = ((2.5, 0.6, 1.0), (6.0, 0.8, 3.5), (5.0, 0.9, 2.5))
SKIN_MM = 1.8
DIPLOE = 0.2  # half the share of the skull that is marrow between the tables
TEMPORAL_MUSCLE_MM = 9.0  # at its thickest

COLUMN_MM = (98.0, 122.0, 68.0, 80.0)  # skull base and neck: an elliptic column, its centre and half-axes along H, W
COLUMN_TOP_MM, BLEND_MM = 52.0, 16.0
DEFACED_MM, DEFACED_SLOPE = 70.0, 0.55  # the removed front begins here at the height of the eyes, and leans back below
EYES_MM = -34.0


@dataclass(frozen=True)
class Part:
    """An ellipsoid: its centre in MNI mm (H is mirrored to both sides unless 0), half-axes in mm, and tissue."""

    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    tissue: str


# Painted in this order. Places are read off the MNI152 head with skull; sizes are those of adults.
PARTS = (
    Part((44, -24, -36), (20, 13, 12), "bone"),  # petrous bone
    Part((57, -34, -44), (11, 15, 18), "bone"),  # mastoid, full of air cells
    Part((0, 2, -38), (13, 17, 17), "marrow"),  # clivus and sphenoid
    Part((0, 16, -32), (13, 11, 10), "air"),  # sphenoid sinus
    Part((0, 42, -42), (13, 26, 20), "mucosa"),  # ethmoid and nasal cavity
    Part((6, 44, -44), (4, 22, 17), "air"),
    Part((31, 34, -62), (13, 16, 15), "air"),  # maxillary sinus
    Part((0, 0, -70), (14, 8, 16), "air"),  # pharynx
    Part((0, -22, -80), (12, 9, 18), "marrow"),  # first vertebrae
    Part((26, -38, -74), (12, 9, 8), "marrow"),
    Part((33, 50, -34), (18, 25, 17), "fat"),  # orbit
    Part((33, 61, -34), (12, 12, 12), "vitreous"),
    Part((33, 71.5, -34), (4.5, 2, 4.5), "muscle"),  # lens
    Part((25, 36, -32), (3, 15, 3), "muscle"),  # optic nerve
    Part((43, 46, -34), (2.5, 16, 6), "muscle"),
)


def paint_outside(head: Head, levels: dict[str, float], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free intensities (N,) float32 of the voxels of ``~head.brain``, and which of them defacing removed.

    `levels` are the intensities of csf and of the tissues `OUTSIDE` (`data.phantom.contrast`).
    """
    outside = ~head.brain
    points = head.template_mm[:, outside]
    layers = []
    for mean, spread, thinnest in LAYERS_MM:
        thickness = rng.normal(mean, spread / 2) + spread * Field.draw(110, rng).on(head.grid)
        layers.append(np.maximum(thickness, thinnest)[outside])
    csf, skull, scalp = layers
    layers += [draw_fine(wavelength, rng, head.grid)[outside] for wavelength in (22, 9)]
    hull = map_coordinates(_hull_distance(), (points + PADDING_MM) / COARSE_MM, order=1, mode="nearest")
    front = ORIGIN_MM[1] + DEFACED_MM + rng.uniform(-7, 7)
    slope = DEFACED_SLOPE * rng.uniform(0.7, 1.3)
    in_front = points[1] > front + slope * (points[2] - ORIGIN_MM[2] - EYES_MM)
    surface = _head_surface(points, hull - csf - skull - scalp)
    width = np.float32(max(1.0, float(np.mean(head.grid.spacing_mm))))  # of an edge, for partial volume
    near = surface < width
    values = np.full(len(surface), levels["air"], np.float32)
    values[near] = _paint(points[:, near], hull[near], surface[near], [a[near] for a in layers], levels, width)
    return values, in_front & (hull > csf + skull + 2)


@lru_cache(maxsize=1)
def _hull_distance() -> np.ndarray:
    """Signed distance in mm to the hull of the template's brain, positive outside, on a coarse padded grid."""
    pad = PADDING_MM // COARSE_MM
    brain = np.pad(load_templates()["brain"][::COARSE_MM, ::COARSE_MM, ::COARSE_MM] > 0, pad)
    h, w, d = np.meshgrid(*(np.arange(n) * COARSE_MM - PADDING_MM for n in brain.shape), indexing="ij", sparse=True)
    stem = np.argwhere(brain[:, :, pad]).mean(0) * COARSE_MM - PADDING_MM
    brain |= (d < 4) & ((h - stem[0]) ** 2 + (w - stem[1]) ** 2 < CORD_MM["canal"] ** 2)
    from_brain = distance(~brain)
    closed = [distance(from_brain <= mm / COARSE_MM) > mm / COARSE_MM for mm in (VAULT_CLOSING_MM, BASE_CLOSING_MM)]
    vault, base = (distance(~hull) - 0.5 for hull in closed)
    base -= np.maximum(distance(closed[1]) - 1, 0)  # the spinal canal goes by the distance inside
    share = np.clip((d - BASE_MM[0]) / (BASE_MM[1] - BASE_MM[0]), 0, 1)
    return (COARSE_MM * (base + share * (vault - base))).astype(np.float32)


def _head_surface(points: np.ndarray, vault: np.ndarray) -> np.ndarray:
    """Signed distance in mm to the skin, about: the vault with its temporal muscles, and the column below it."""
    h, w, d = points
    away = ((np.abs(h - MIDLINE_MM) - 72) / 22) ** 2 + ((w - 142) / 34) ** 2 + ((d - 58) / 26) ** 2
    vault = vault - TEMPORAL_MUSCLE_MM * np.exp(-away)
    centre_h, centre_w, half_h, half_w = COLUMN_MM
    radius = np.sqrt(((h - centre_h) / half_h) ** 2 + ((w - centre_w) / half_w) ** 2)
    column = np.maximum((radius - 1) * half_h, d - COLUMN_TOP_MM)
    overlap = np.maximum(BLEND_MM - np.abs(vault - column), 0) / BLEND_MM  # a smooth minimum, without a crease
    return np.minimum(vault, column) - overlap**2 * (BLEND_MM / 4)


def _paint(points, hull, surface, layers, levels, width) -> np.ndarray:
    """Intensities (N,) in and about the head, from the deep to the superficial and then what lies before it.

    Points are (3, N) in template mm, hull and surface their distances in mm to the brain's hull and to the skin.
    """
    csf, skull, scalp, coarse, fine = layers
    depth = -surface
    values = levels["muscle"] * (1 + 0.12 * coarse + 0.08 * fine)
    values += np.clip(1 - 4 * np.abs(coarse), 0, 1) * (0.6 * levels["fat"] - values)  # fat between muscles

    def over(inside_mm: np.ndarray, level) -> None:
        share = np.clip(0.5 + inside_mm / width, 0, 1)
        values[:] += share * (level - values)

    over(scalp - depth, levels["fat"] * (1 + 0.1 * fine))
    for part in PARTS:
        # The signed distance to the surface in mm, about.
        inside = (1 - np.sqrt(square_distance(points, part.centre_mm, part.half_mm))) * min(part.half_mm)
        level = levels[part.tissue]
        over(inside + 0.8 * fine, level * (1 + 0.25 * fine) if part.tissue == "marrow" else level)
    over(np.minimum(hull - csf, csf + skull - hull), levels["bone"])
    from_middle = np.abs(hull - csf - skull / 2)
    over(DIPLOE * skull * (1 + 0.25 * coarse) - from_middle, levels["marrow"] * (1 + 0.2 * fine))
    over(csf - hull, levels["csf"])
    over(CORD_MM["cord"] - CORD_MM["canal"] - hull - np.where(points[2] < 3, 0, 99), levels["cord"])
    over(SKIN_MM - depth, levels["skin"])
    over(surface, levels["air"])
    return values.astype(np.float32)
