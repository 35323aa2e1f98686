"""Heads to learn from: the phantom's, of all its contrasts, with and without a face, and their true brains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.files.space import Spacing
from data.phantom.cohort import make_subject
from data.phantom.contrast import MODALITIES
from data.settings import PhantomSettings
from utils.progress import progress

SPACINGS_MM: Sequence[Spacing] = ((2, 2, 2), (3, 3, 3), (1.5, 2, 2), (4, 2, 2), (6, 1.5, 1.5))
DEFACED = 0.3  # share of the heads without a face


@dataclass(frozen=True)
class Head:
    """A scan (D, H, W) float16 in units of the phantom, its true brain bool, and its lesions."""

    scan: np.ndarray
    brain: np.ndarray
    lesions: np.ndarray
    spacing_mm: Spacing


def draw_heads(n: int, seed: int) -> list[Head]:
    """Synthetic heads of a seed, their contrasts in turn."""
    return [_draw(seed, index) for index in progress(range(n), "Drawing heads", unit="head")]


def _draw(seed: int, index: int) -> Head:
    rng = np.random.default_rng([seed, index])
    spacing_mm = SPACINGS_MM[int(rng.integers(len(SPACINGS_MM)))]
    modality = list(MODALITIES)[index % len(MODALITIES)]
    settings = replace(PhantomSettings(), modality=modality, spacing=spacing_mm, seed=seed, variety=rng.random())
    subject = make_subject(settings, index, defaced=rng.random() < DEFACED)
    return Head(subject.scan[0].astype(np.float16), subject.brain, subject.mask[0] > 0, spacing_mm)
