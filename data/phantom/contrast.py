"""How bright tissues are on each modality, and what the scanner adds: bias, noise."""

import numpy as np

from data.phantom.heads import Head

MODALITIES = ("t1w", "flair", "dwi")
WHITE = (70, 90)  # intensity of white matter, about ATLAS's raw T1w
NOISE = 0.025  # of white matter

# Intensity as a share of white matter's: ranges from which each head draws. Outside the brain as well as inside.
LEVELS = {
    "t1w": {
        "grey": (0.65, 0.78),
        "fluid": (0.2, 0.35),
        "bone": (0.05, 0.12),
        "marrow": (0.45, 0.8),
        "fat": (1.05, 1.4),
        "skin": (0.5, 0.7),
        "muscle": (0.42, 0.55),
        "mucosa": (0.35, 0.5),
        "vitreous": (0.18, 0.25),
        "cord": (0.75, 0.85),
        "air": (0.0, 0.0),
    },
}
BRAIN = ("grey", "fluid")


def draw_levels(modality: str, brain: np.random.Generator, outside: np.random.Generator) -> dict[str, float]:
    """Intensity of each tissue; two streams, so that the brain is the same with and without what is outside."""
    white = brain.uniform(*WHITE)
    levels = {"white": white}
    for tissue, span in LEVELS[modality].items():
        levels[tissue] = white * (brain if tissue in BRAIN else outside).uniform(*span)
    return {**levels, "csf": levels["fluid"]}


def paint_brain(head: Head, levels: dict[str, float]) -> np.ndarray:
    """T1w intensities of the tissues, with a share of the template's own detail. (H, W, D) float32."""
    fluid = np.clip(1 - head.grey - head.white, 0, None)
    painted = levels["white"] * head.white + levels["grey"] * head.grey + levels["fluid"] * fluid
    template = 0.85 * head.white + 0.62 * head.grey + 0.25 * fluid
    return np.clip(painted + 0.3 * levels["white"] * (head.t1 - template) * head.brain, 0, None)


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, 1995, 10.1002/mrm.1910340618)."""
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * np.float32(sigma)
    return np.hypot(signal + real, imaginary).astype(np.float32)
