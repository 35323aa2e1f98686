"""Healthy structures that are brighter or darker than their tissue on FLAIR and DWI, as in every scan."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Field, Head

Place = tuple[float, float, float]
UNEVEN, SIDES = 0.35, 0.15  # how much a gain varies from head to head, and between the sides, as a share of it
CORTEX_MM, CORTEX = 45.0, {"t1w": 0.02, "flair": 0.07, "dwi": 0.14}  # wavelength and strength of its unevenness


class Structure(NamedTuple):
    """Soft ellipsoids on both sides, in MNI mm off the MNI152 template, and their gain over the tissue around."""

    centres_mm: tuple[Place, ...]
    half_mm: Place
    tissue: str
    flair: float
    dwi: float
    t1w: float = 0.0


# Cingulate and hippocampal cortex have the longest T2 of all, then the insula (Georgiades et al., 2001, AJNR 22:1732);
# cingulate and insula are bright on DWI (Asao et al., 2008, 10.1007/s00234-007-0327-9), the corticospinal tract on
# FLAIR (40 healthy heads, 10.1007/s002340050402). Iron darkens pallidum, red nucleus, substantia nigra and dentate
# nucleus (Drayer et al., 1986, 10.2214/ajr.147.1.103). The gains are estimates.
STRUCTURES = {
    "amygdala": Structure(((23, -4, -19),), (10, 9, 9), "grey", 0.18, 0.12),
    "hippocampus": Structure(((27, -16, -19), (26, -30, -8)), (8, 11, 8), "grey", 0.18, 0.15),
    "insula": Structure(((38, 6, -2),), (6, 20, 14), "grey", 0.14, 0.18),
    "cingulate": Structure(((4, 36, 14), (4, 8, 38), (4, -28, 38)), (7, 20, 13), "grey", 0.16, 0.2),
    "subcallosal": Structure(((5, 18, -14),), (7, 12, 9), "grey", 0.15, 0.15),
    "splenium": Structure(((6, -38, 14),), (13, 7, 8), "white", 0.05, 0.22),
    "corticospinal": Structure(((25, -20, 26), (23, -18, 8), (15, -20, -10)), (5, 6, 12), "white", 0.16, 0.2),
    "pallidum": Structure(((19, -4, -1),), (6, 8, 6), "tissue", -0.25, -0.4, 0.08),
    "putamen": Structure(((26, 2, 0),), (6, 14, 8), "grey", -0.08, -0.15),
    "red nucleus": Structure(((5, -21, -9),), (4, 4, 5), "tissue", -0.22, -0.35),
    "nigra": Structure(((11, -18, -13),), (5, 5, 5), "tissue", -0.2, -0.3),
    "dentate": Structure(((16, -58, -36),), (8, 7, 5), "tissue", -0.2, -0.35),
}
# Choroid plexus in the atria and bodies: levels as shares of white matter's; cysts in it are bright on DWI.
PLEXUS_MM, PLEXUS_HALF_MM = ((24, -40, 10), (14, -24, 18)), (4, 8, 4)
PLEXUS = {"t1w": (0.4, 0.75), "flair": (0.7, 1.3), "dwi": (0.5, 2.0)}


def paint_structures(signal: np.ndarray, head: Head, modality: str, levels: dict, variety: float, rng) -> None:
    """Change the brain's intensities (H, W, D) in place, by what scans show at variety 2/3 and in proportion to it."""
    if not variety:
        return
    strength = 1.5 * variety
    signal *= 1 + strength * CORTEX[modality] * head.grey * Field.draw(CORTEX_MM, rng).on(head.grid)
    for structure in STRUCTURES.values():
        drawn = strength * getattr(structure, modality) * rng.normal(1, UNEVEN)
        for centre in structure.centres_mm:
            for side, uneven in zip((-1, 1), rng.normal(1, SIDES, 2), strict=True):
                box, share = _ellipsoid(head, centre, structure.half_mm, side)
                tissue = head.tissue if structure.tissue == "tissue" else getattr(head, structure.tissue)
                signal[box] *= np.exp(drawn * uneven * share * tissue[box])
    level = levels["white"] * rng.uniform(*PLEXUS[modality])
    for centre in PLEXUS_MM:
        for side in (-1, 1):
            box, share = _ellipsoid(head, centre, PLEXUS_HALF_MM, side)
            fluid = head.brain[box] - head.grey[box] - head.white[box]
            part, amount = signal[box], min(strength, 1) * rng.uniform(0.3, 1)
            part += amount * share * fluid * (level - part)


def _ellipsoid(head: Head, centre_mm: Place, half_mm: Place, side: int) -> tuple[tuple[slice, ...], np.ndarray]:
    """A box of the grid, and the share of an ellipsoid with soft edges in it."""
    place = np.array([MIDLINE_MM + side * centre_mm[0], *np.add(ORIGIN_MM, centre_mm)[1:]], np.float32)
    box = head.box(place.tolist(), 1.5 * max(half_mm))
    from_centre = (head.template_mm[(slice(None), *box)] - place[:, None, None, None]).T / np.array(half_mm, np.float32)
    return box, expit(6 * (1 - np.sqrt((from_centre**2).sum(-1)))).T
