"""From a cohort's settings to the arrays of one subject."""

from dataclasses import dataclass

import numpy as np

from data.phantom.contrast import MODALITIES, draw_bias, draw_levels, measure, paint_brain
from data.phantom.fields import Field, Grid
from data.phantom.heads import warp_head
from data.phantom.lesions import PATTERNS, draw_lesions, paint_distractors
from data.phantom.settings import PhantomSettings
from data.phantom.skull import paint_outside

# One random stream for each part, so that a voxel more or less in one does not change the others, nor a skull the
# brain. 3 is that of `healthy_subjects`.
STREAMS = {"anatomy": 0, "lesions": 1, "noise": 2, "outside": 4, "contrast": 5}


@dataclass(frozen=True)
class Subject:
    """One synthetic scan."""

    scan: np.ndarray  # (1, D, H, W) float32, white matter near 80
    mask: np.ndarray  # (1, D, H, W) uint8, on the grid of ``mask_spacing``
    brain: np.ndarray  # (D, H, W) bool on the scan's grid, the true brain with its sulci and ventricles


def make_subject(settings: PhantomSettings, index: int) -> Subject:
    streams = {name: np.random.default_rng([settings.seed, index, part]) for name, part in STREAMS.items()}
    modality, pattern = MODALITIES[settings.modality], PATTERNS[settings.modality]
    head = warp_head(Grid(settings.spacing), settings.warp_mm, streams["anatomy"])
    levels = draw_levels(modality, streams["contrast"], streams["outside"])
    signal = paint_brain(head, modality, levels, streams["contrast"])
    paint_distractors(signal, head, modality.distractor, streams["anatomy"])
    mask = np.zeros(signal.shape, bool)
    is_healthy = index in healthy_subjects(settings)
    if not is_healthy:
        opacity = draw_lesions(head, pattern, streams["lesions"])
        texture = 1 + 0.15 * Field.draw(12, streams["lesions"]).on(head.grid)
        signal += settings.lesion_contrast * opacity * (levels["lesion"] * texture - signal)
        mask = opacity > 0.5
    removed = ~head.brain
    if not settings.stripped:
        signal[removed], removed[removed] = paint_outside(head, levels, streams["outside"])
    signal *= draw_bias(head, modality, streams["contrast"])
    scan = measure(signal, head, modality, levels, streams["noise"])
    scan[removed] = 0
    if settings.mask_spacing is not None:  # the same lesions, drawn on a grid of their own
        anatomy, lesions = (np.random.default_rng([settings.seed, index, STREAMS[n]]) for n in ("anatomy", "lesions"))
        own = warp_head(Grid(settings.mask_spacing), settings.warp_mm, anatomy)
        mask = np.zeros(own.brain.shape, bool) if is_healthy else draw_lesions(own, pattern, lesions) > 0.5
    scan, mask, brain = (np.ascontiguousarray(array.transpose(2, 0, 1)) for array in (scan, mask, head.brain))
    return Subject(scan[None], mask[None].astype(np.uint8), brain)


def healthy_subjects(settings: PhantomSettings) -> set[int]:
    """Indices of the subjects without lesion, anywhere in the cohort."""
    n_healthy = round(settings.healthy_fraction * settings.n_subjects)
    shuffled = np.random.default_rng([settings.seed, 0, 3]).permutation(settings.n_subjects)
    return set(shuffled[:n_healthy].tolist())
