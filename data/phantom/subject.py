"""From a cohort's settings to the arrays of one subject."""

from dataclasses import dataclass

import numpy as np

from data.phantom.contrast import MODALITIES, draw_bias, draw_levels, measure, paint_brain
from data.phantom.fields import Field, Grid
from data.phantom.heads import warp_head
from data.phantom.lesions import PATTERNS, draw_lesions, paint_distractors
from data.phantom.skull import paint_outside

# One random stream for each part, so that a voxel more or less in one does not change the others, nor a skull the
# brain. 3 is that of `healthy_subjects`.
STREAMS = {"anatomy": 0, "lesions": 1, "noise": 2, "outside": 4, "contrast": 5}


@dataclass(frozen=True)
class Settings:
    """What fixes the files of a cohort, and so is kept beside them in ``phantom.json``.

    spacing, mask_spacing: of a voxel along (D, H, W) in mm; a `mask_spacing` of None is the scan's.
    """

    n_subjects: int = 30
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    seed: int = 0
    ext: str = ".npy"
    healthy_fraction: float = 0.1
    lesion_contrast: float = 1.0
    warp_mm: float = 3.0
    stripped: bool = False
    modality: str = "t1w"
    mask_spacing: tuple[float, float, float] | None = None
    oblique: bool = False

    def as_json(self) -> dict:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Subject:
    """One synthetic scan.

    scan: (1, D, H, W) float32, white matter near 80. mask: (1, D, H, W) uint8, on a grid of its own if the settings
    say so. brain: (D, H, W) bool on the scan's grid, the true brain with its sulci and ventricles.
    """

    scan: np.ndarray
    mask: np.ndarray
    brain: np.ndarray


def make_subject(settings: Settings, index: int) -> Subject:
    """Draw a subject of a cohort."""
    streams = {name: np.random.default_rng([settings.seed, index, part]) for name, part in STREAMS.items()}
    modality = MODALITIES[settings.modality]
    head = warp_head(Grid(settings.spacing), settings.warp_mm, streams["anatomy"])
    levels = draw_levels(modality, streams["contrast"], streams["outside"])
    signal = paint_brain(head, modality, levels, streams["contrast"])
    paint_distractors(signal, head, modality.distractor, streams["anatomy"])
    mask = np.zeros(signal.shape, bool)
    if index not in healthy_subjects(settings):
        opacity = draw_lesions(head, PATTERNS[settings.modality], streams["lesions"])
        texture = 1 + 0.15 * Field.draw(12, streams["lesions"]).on(head.grid)
        signal += settings.lesion_contrast * opacity * (levels["lesion"] * texture - signal)
        mask = opacity > 0.5
    removed = ~head.brain
    if not settings.stripped:
        signal[removed], removed[removed] = paint_outside(head, levels, streams["outside"])
    signal *= draw_bias(head, modality, streams["contrast"])
    scan = measure(signal, head, modality, levels, streams["noise"])
    scan[removed] = 0
    if settings.mask_spacing is not None:
        mask = _mask_on_own_grid(settings, index)
    return Subject(_d_first(scan)[None], _d_first(mask)[None].astype(np.uint8), _d_first(head.brain))


def _mask_on_own_grid(settings: Settings, index: int) -> np.ndarray:
    """The same lesions, drawn on the grid of the mask. (H, W, D) bool."""
    if index in healthy_subjects(settings):
        return np.zeros(Grid(settings.mask_spacing).shape, bool)
    anatomy, lesions = (np.random.default_rng([settings.seed, index, STREAMS[name]]) for name in ("anatomy", "lesions"))
    head = warp_head(Grid(settings.mask_spacing), settings.warp_mm, anatomy)
    return draw_lesions(head, PATTERNS[settings.modality], lesions) > 0.5


def _d_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def healthy_subjects(settings: Settings) -> set[int]:
    """Indices of the subjects without lesion: just the wanted fraction, anywhere in the cohort."""
    n_healthy = round(settings.healthy_fraction * settings.n_subjects)
    shuffled = np.random.default_rng([settings.seed, 0, 3]).permutation(settings.n_subjects)
    return set(shuffled[:n_healthy].tolist())
