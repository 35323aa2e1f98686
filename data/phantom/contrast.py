"""How bright tissues are on each modality, and what the scanner adds: bias, susceptibility, noise, ringing."""

from dataclasses import dataclass

import numpy as np

from data.phantom.fields import Field
from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Head

WHITE = (70, 90)  # intensity of white matter, about ATLAS's raw T1w
BIAS, BIAS_MM = 0.12, 220  # log standard deviation and wavelength of the receive field
# The templates are means over 152 heads: their tissue maps are blurred, and their sulci all but closed. The share of a
# tissue in a voxel is its map's power, with a weight for the fluid.
SHARPNESS, FLUID_WEIGHT = 2.0, 1.5
# Places in MNI mm (mirrored), where air in the skull disturbs the field, and the reach of its effects in mm.
AIR_MM, PILE_UP_MM, DROPOUT_MM = ((8, 34, -26), (50, -22, -28)), 17.0, 9.0
RINGING_VOXELS = 0.8  # width of the blur whose difference to the scan an interpolating spline overshoots by


@dataclass(frozen=True)
class Modality:
    """A contrast. Levels are shares of white matter's intensity, ranges from which each head draws.

    brain, outside: levels of the tissues in the brain and outside of it.
    lesion: level of a lesion's core.
    detail: how much of the template's own T1w detail shows.
    distractor: by how much spots that are no lesions are brighter, in units of their depth.
    noise: standard deviation of the complex noise as a share of white matter. pile_up: gain beside air.
    ringing: share of the overshoot of resampling at edges, which makes dark voxels negative.
    """

    brain: dict[str, tuple[float, float]]
    outside: dict[str, tuple[float, float]]
    lesion: tuple[float, float]
    detail: float
    distractor: float
    noise: float
    pile_up: float = 0.0
    ringing: float = 0.0


OUTSIDE = ("bone", "marrow", "fat", "skin", "muscle", "mucosa", "vitreous", "cord", "air")


def _outside(*spans: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return dict(zip(OUTSIDE, (*spans, (0.0, 0.0)), strict=True))


MODALITIES = {
    "t1w": Modality(
        brain={"grey": (0.65, 0.78), "fluid": (0.2, 0.35)},
        outside=_outside(
            *[(0.05, 0.12), (0.45, 0.8), (1.05, 1.4), (0.5, 0.7)],
            *[(0.42, 0.55), (0.35, 0.5), (0.18, 0.25), (0.75, 0.85)],
        ),
        lesion=(0.2, 0.35),
        detail=0.3,
        distractor=-1.0,
        noise=0.025,
    ),
    # An inversion nulls fluid; scalp fat is bright, the eye dark as CSF.
    "flair": Modality(
        brain={"grey": (1.12, 1.28), "fluid": (0.1, 0.2)},
        outside=_outside(
            *[(0.05, 0.1), (0.5, 0.8), (1.0, 1.4), (0.5, 0.7)],
            *[(0.4, 0.55), (0.7, 1.0), (0.1, 0.2), (0.9, 1.0)],
        ),
        lesion=(1.4, 2.0),
        detail=0.15,
        distractor=1.5,
        noise=0.03,
        ringing=0.25,
    ),
    # Echo-planar with suppressed fat: little is seen of the scalp, much of the air in the skull.
    "dwi": Modality(
        brain={"grey": (1.05, 1.2), "fluid": (0.3, 0.5)},
        outside=_outside(
            *[(0.02, 0.06), (0.04, 0.1), (0.08, 0.18), (0.1, 0.2)],
            *[(0.15, 0.3), (0.2, 0.35), (0.15, 0.3), (0.8, 1.0)],
        ),
        lesion=(1.6, 2.8),
        detail=0.1,
        distractor=0.5,
        noise=0.03,
        pile_up=0.6,
        ringing=0.25,
    ),
}


def draw_levels(modality: Modality, brain: np.random.Generator, outside: np.random.Generator) -> dict[str, float]:
    """Intensity of each tissue; two streams, so that the brain is the same with and without what is outside."""
    white = brain.uniform(*WHITE)
    levels = {"white": white}
    for tissue, span in {**modality.brain, "lesion": modality.lesion}.items():
        levels[tissue] = white * brain.uniform(*span)
    for tissue, span in modality.outside.items():
        levels[tissue] = white * outside.uniform(*span)
    return {**levels, "csf": levels["fluid"]}


def paint_brain(head: Head, levels: dict[str, float], detail: float) -> np.ndarray:
    """Intensities of the brain's tissues, with a share of the template's own detail. (H, W, D) float32, 0 outside."""
    grey, white, t1 = (a[head.brain] for a in (head.grey, head.white, head.t1))
    fluid = np.clip(1 - grey - white, 0, None)
    template = 0.85 * white + 0.62 * grey + 0.25 * fluid
    grey, white, fluid = grey**SHARPNESS, white**SHARPNESS, FLUID_WEIGHT * fluid**SHARPNESS
    painted = (levels["white"] * white + levels["grey"] * grey + levels["fluid"] * fluid) / (grey + white + fluid)
    scan = np.zeros(head.brain.shape, np.float32)
    scan[head.brain] = np.clip(painted + detail * levels["white"] * (t1 - template), 0, None)
    return scan


def draw_bias(head: Head, modality: Modality, rng: np.random.Generator) -> np.ndarray:
    """What the scanner multiplies the signal by: the receive field, and pile-up and dropout beside air."""
    bias = np.exp(BIAS * Field.draw(BIAS_MM, rng).on(head.grid))
    if modality.pile_up:
        strength = np.clip(1 + 0.8 * Field.draw(30, rng).on(head.grid), 0, None)
        for place in AIR_MM:
            square = _square_distance(head.template_mm, place)
            bias *= 1 + modality.pile_up * strength * np.exp(-square / PILE_UP_MM**2)
            bias *= 1 - np.exp(-square / DROPOUT_MM**2)
    return bias


def _square_distance(template_mm: np.ndarray, place: tuple[float, float, float]) -> np.ndarray:
    """(H, W, D) mm2 to a place in MNI mm and its mirror image."""
    square = (np.abs(template_mm[0] - MIDLINE_MM) - place[0]) ** 2
    for axis in (1, 2):
        square += (template_mm[axis] - ORIGIN_MM[axis] - place[axis]) ** 2
    return square


def measure(signal: np.ndarray, head: Head, modality: Modality, levels: dict, rng: np.random.Generator) -> np.ndarray:
    """The scan of a noise-free signal; the brain's voxels do not depend on the signal outside of it."""
    scan = rician(signal, modality.noise * levels["white"], rng)
    if modality.ringing:
        from scipy.ndimage import gaussian_filter

        brain_alone = np.where(head.brain, scan, 0)
        overshoot = modality.ringing * (brain_alone - gaussian_filter(brain_alone, RINGING_VOXELS))
        scan[head.brain] += overshoot[head.brain]
    return scan


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, 1995, 10.1002/mrm.1910340618)."""
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * np.float32(sigma)
    return np.hypot(signal + real, imaginary).astype(np.float32)
