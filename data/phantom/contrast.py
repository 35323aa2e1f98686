"""How bright tissues are on each modality, and what the scanner adds: bias, susceptibility, noise, ringing."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from data.phantom.heads import Field, Head, draw_fine, square_distance

Range = tuple[float, float]
WHITE = (70, 90)  # intensity of white matter, about ATLAS's raw T1w
BIAS_MM = 220  # wavelength of the receive field
TEXTURE_MM = (6.0, 40.0)  # wavelengths of what makes tissue uneven: fibres and vessels, and its regions
# Places in MNI mm (mirrored), where air in the skull disturbs the field, and the reach of its effects in mm.
AIR_MM, PILE_UP_MM, DROPOUT_MM = ((8, 36, -32), (50, -22, -34)), 20.0, 13.0
RINGING_VOXELS = 0.8  # width of the blur whose difference to the scan an interpolating spline overshoots by


@dataclass(frozen=True)
class Modality:
    """A contrast. Levels are shares of white matter's intensity, ranges from which each head draws."""

    brain: dict[str, Range]  # levels of the tissues in the brain
    outside: dict[str, Range]  # and outside of it
    lesion: Range  # level of a lesion's core
    detail: float  # how much of the template's own T1w detail shows
    texture: tuple[float, float]  # standard deviation of the unevenness of tissue, for each of `TEXTURE_MM`
    bias: float  # log standard deviation of the receive field, little where scans are corrected for it as in ATLAS
    noise: Range  # of the standard deviation of the complex noise, as a share of white matter
    pile_up: float = 0.0  # gain beside air
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
        outside=T1W,
        lesion=(0.15, 0.4),
        detail=0.3,
        texture=(0.01, 0.03),
        bias=0.06,
        noise=(0.01, 0.03),
    ),
    # An inversion nulls fluid; scalp fat is bright, the eye dark as CSF.
    "flair": Modality(
        brain={"grey": (1.2, 1.45), "fluid": (0.08, 0.25)},
        outside=FLAIR,
        lesion=(1.4, 2.0),
        detail=0.15,
        texture=(0.025, 0.1),
        bias=0.08,
        noise=(0.012, 0.03),
        ringing=0.4,
    ),
    # Echo-planar with suppressed fat: the scalp is dark, and the air in the skull distorts much.
    "dwi": Modality(
        brain={"grey": (1.2, 1.45), "fluid": (0.15, 0.35)},
        outside=DWI,
        lesion=(1.5, 2.6),
        detail=0.1,
        texture=(0.03, 0.1),
        bias=0.08,
        noise=(0.015, 0.04),
        pile_up=0.8,
        ringing=0.4,
    ),
}


def draw_levels(modality: Modality, brain: np.random.Generator, outside: np.random.Generator) -> dict[str, float]:
    """Intensity of tissues and noise; two streams, so that the brain is the same with and without a skull."""
    white = brain.uniform(*WHITE)
    levels = {"white": white}
    for tissue, span in {**modality.brain, "lesion": modality.lesion}.items():
        levels[tissue] = white * brain.uniform(*span)
    for tissue, span in modality.outside.items():
        levels[tissue] = white * outside.uniform(*span)
    return {**levels, "csf": levels["fluid"], "noise": white * brain.uniform(*modality.noise)}


def paint_brain(head: Head, modality: Modality, levels: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """(H, W, D) float32 intensities of the brain's tissues with detail and texture, 0 outside of the brain."""
    fluid = head.brain - head.grey - head.white
    scan = levels["white"] * head.white + levels["grey"] * head.grey + levels["fluid"] * fluid
    scan = np.clip(scan + modality.detail * levels["white"] * head.detail, 0, None).astype(np.float32)
    for wavelength, strength in zip(TEXTURE_MM, modality.texture, strict=True):
        scan *= 1 + strength * draw_fine(wavelength, rng, head.grid)
    return scan


def draw_bias(head: Head, modality: Modality, rng: np.random.Generator) -> np.ndarray:
    """The factor (H, W, D) of the receive field, and of pile-up and dropout beside air."""
    bias = np.exp(modality.bias * Field.draw(BIAS_MM, rng).on(head.grid))
    if modality.pile_up:
        strength = np.clip(1 + 0.8 * Field.draw(30, rng).on(head.grid), 0, None)
        for place in AIR_MM:
            square = square_distance(head.template_mm, place)
            bias *= 1 + modality.pile_up * strength * np.exp(-square / PILE_UP_MM**2)
            bias *= 1 - np.exp(-square / DROPOUT_MM**2)
    return bias


def measure(signal: np.ndarray, head: Head, modality: Modality, levels: dict, rng: np.random.Generator) -> np.ndarray:
    """The scan of a noise-free signal; the brain's voxels do not depend on the signal outside of it."""
    # The magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, 1995, 10.1002/mrm.1910340618).
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * np.float32(levels["noise"])
    scan = np.hypot(signal + real, imaginary).astype(np.float32)
    if modality.ringing:
        brain_alone = np.where(head.brain, scan, 0)
        overshoot = modality.ringing * (brain_alone - gaussian_filter(brain_alone, RINGING_VOXELS))
        scan[head.brain] += overshoot[head.brain]
    return scan
