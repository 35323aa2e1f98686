"""How bright tissues and healthy structures are on each modality, and how far its scanners spoil it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Field, Head, draw_fine

Range = tuple[float, float]
Place = tuple[float, float, float]
WHITE = (70, 90)  # intensity of white matter, about ATLAS's raw T1w
TEXTURE_MM = (6.0, 40.0)  # wavelengths of what makes tissue uneven: fibres and vessels, and its regions


@dataclass(frozen=True)
class Modality:
    """A contrast. Levels are shares of white matter's intensity, ranges from which each head draws."""

    brain: dict[str, Range]  # levels of the tissues in the brain
    varied: dict[str, Range]  # the same at variety 1: sequences, field strengths and ages differ. Widened
    # after a look at real scans, whose contrasts lay outside as a whole
    outside: dict[str, Range]  # and outside of it
    lesion: Range  # level of a lesion's core, as a share of `lesion_of`
    lesion_of: str  # the tissue beside which lesions are seen: cavities are dark, acute ones brighter than grey matter
    detail: float  # how much of the template's own T1w detail shows
    texture: tuple[float, float]  # standard deviation of the unevenness of tissue, for each of `TEXTURE_MM`
    bias: float  # log standard deviation of the receive field, little where scans are corrected for it as in ATLAS
    noise: Range  # of the standard deviation of the complex noise, as a share of white matter
    pile_up: float = 0.0  # gain beside air
    coil: float = 0.0  # log gain beside a near coil element, at most; DWI has a factor of two at variety 0.5
    vertex: float = 0.0  # log gain lost at the vertex, at most
    ghost: float = 0.0  # share of the signal in the ghost of half the field of view, at most
    ringing: float = 0.0  # share of the overshoot of resampling at edges, which makes dark voxels negative


# Levels outside the brain in T1w, FLAIR and DWI.
OUTSIDE = {
    "bone": ((0.05, 0.12), (0.05, 0.1), (0.02, 0.06)),
    "marrow": ((0.25, 0.6), (0.5, 0.8), (0.04, 0.1)),
    "fat": ((0.85, 1.2), (1.0, 1.4), (0.08, 0.18)),
    "skin": ((0.5, 0.7), (0.5, 0.7), (0.1, 0.2)),
    "muscle": ((0.48, 0.62), (0.4, 0.55), (0.15, 0.3)),
    "mucosa": ((0.35, 0.5), (0.7, 1.0), (0.2, 0.35)),
    "vitreous": ((0.18, 0.25), (0.1, 0.2), (0.15, 0.3)),
    "cord": ((0.75, 0.85), (0.9, 1.0), (0.8, 1.0)),
    "air": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
}
T1W, FLAIR, DWI = ({tissue: spans[i] for tissue, spans in OUTSIDE.items()} for i in range(3))
MODALITIES = {
    "t1w": Modality(
        brain={"grey": (0.7, 0.83), "fluid": (0.15, 0.3)},
        varied={"grey": (0.5, 0.9), "fluid": (0.05, 0.4)},
        outside=T1W,
        lesion=(0.15, 0.4),
        lesion_of="white",
        detail=0.3,
        texture=(0.01, 0.03),
        bias=0.06,
        noise=(0.01, 0.03),
        coil=0.9,
        vertex=1.0,
    ),
    # An inversion nulls fluid; scalp fat is bright, the eye dark as CSF.
    "flair": Modality(
        brain={"grey": (1.2, 1.45), "fluid": (0.08, 0.25)},
        varied={"grey": (0.85, 1.6), "fluid": (0.0, 0.6)},
        outside=FLAIR,
        lesion=(1.15, 1.7),
        lesion_of="grey",
        detail=0.15,
        texture=(0.025, 0.1),
        bias=0.08,
        noise=(0.012, 0.03),
        coil=0.8,
        vertex=0.5,
        ringing=0.4,
    ),
    # Echo-planar with suppressed fat: the scalp is dark, and the air in the skull distorts much. In three days infarcts
    # are 1.7 times as bright as the other side, faint parts too (92 patients, Eastwood et al., 2003, AJNR 24:680).
    "dwi": Modality(
        brain={"grey": (1.2, 1.45), "fluid": (0.15, 0.35)},
        varied={"grey": (0.8, 1.8), "fluid": (0.03, 0.6)},
        outside=DWI,
        lesion=(1.3, 2.3),
        lesion_of="grey",
        detail=0.1,
        texture=(0.03, 0.1),
        bias=0.08,
        noise=(0.015, 0.04),
        pile_up=0.8,
        coil=1.4,
        vertex=0.3,
        ghost=0.08,
        ringing=0.4,
    ),
}


def draw_levels(
    modality: Modality, variety: float, brain: np.random.Generator, outside: np.random.Generator
) -> dict[str, float]:
    """Intensity of tissues and noise; two streams, so that the brain is the same with and without a skull."""
    white = brain.uniform(*WHITE)
    levels = {"white": white}
    for tissue, (low, high) in modality.brain.items():
        lowest, highest = modality.varied[tissue]
        span = low + variety * (lowest - low), high + variety * (highest - high)
        levels[tissue] = white * brain.uniform(*span)
    levels["lesion"] = levels[modality.lesion_of] * brain.uniform(*modality.lesion)
    for tissue, span in modality.outside.items():
        levels[tissue] = white * outside.uniform(*span)
    return {**levels, "csf": levels["fluid"], "noise": white * brain.uniform(*modality.noise)}


def paint_brain(
    head: Head, modality: Modality, levels: dict[str, float], variety: float, rng: np.random.Generator
) -> np.ndarray:
    """(H, W, D) float32 intensities of the brain's tissues with detail and texture, 0 outside of the brain."""
    fluid = head.brain - head.grey - head.white
    scan = levels["white"] * head.white + levels["grey"] * head.grey + levels["fluid"] * fluid
    scan = np.clip(scan + modality.detail * levels["white"] * head.detail, 0, None).astype(np.float32)
    for wavelength, strength in zip(TEXTURE_MM, modality.texture, strict=True):
        unevenness = draw_fine(wavelength, rng, head.grid)
        scan *= 1 + strength * (1 - variety * rng.uniform(0, 0.9)) * unevenness
    return scan


# Healthy structures, brighter or darker than their tissue on FLAIR and DWI, as in every scan.
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
                signal[box] *= np.exp(drawn * uneven * share * getattr(head, structure.tissue)[box])
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
