"""How bright tissues are on each modality, and how far its scanners spoil it."""

from dataclasses import dataclass

import numpy as np

from data.phantom.heads import Head, draw_fine

Range = tuple[float, float]
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
