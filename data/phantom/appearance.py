"""What lesions look like: their core, the rim about it, and what old ones leave of the brain around them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label, map_coordinates
from scipy.special import expit

from data.phantom.ages import load_ventricles, paint_ball
from data.phantom.heads import MIDLINE_MM, Field, Head
from data.phantom.lesions import radius_mm, tissue_places
from utils.scores.masks import TWENTY_SIX_CONNECTED

TEXTURE, TEXTURE_MM = 0.15, 12.0  # of a lesion's level, and its wavelength, at variety 0
TEXTURE_FACTOR = 3.0  # between its wavelength and the longest or shortest
# Lesions of one scan and their parts, at variety 1; at 0 a lesion is all core, of full contrast. Estimates off
# published pictures: a chronic infarct is a cavity within a rim of gliosis, which small or partial ones are all of; an
# acute one is uneven and faint where it is not yet complete.
UNEVEN = {"t1w": 0.0, "flair": 0.3, "dwi": 0.5}  # added to the texture at most: networks which know uneven lesions
# alone leave out the middle of even ones
RIM_MM = {"t1w": 6.0, "flair": 4.0, "dwi": 4.0}  # at most
RIM_SHARE = (0.2, 0.7)  # of the contrast
DIM = {"t1w": 0.5, "flair": 0.4, "dwi": 0.5}  # probability that a part of a lesion is as its rim is
LEAST_CONTRAST = 0.08  # of the faintest lesions, from variety 0.5 on
# Radius of a chronic infarct that has a cavity in every second case. A large one is a cavity for the most part, and
# never faint.
CAVITY_MM = 5.0
# Ex vacuo: from this volume on the ventricle of that side widens, and the sulci about the lesion.
VACUO_CM3, VACUO_REACH_MM, VACUO_FACTOR, VACUO_SULCI = 4.0, 32.0, 2.5, 1.2
# Old infarcts beside acute ones, not in the mask: 0 to 3, in a third of stroke patients' scans at variety 0.5.
PAST_MEAN, PAST_MM = 0.8, (2.0, 18.0)
PAST_RIM = {"flair": (1.35, 1.9), "dwi": (0.85, 1.1)}  # levels, shares of white matter's
# Experts mark what they see. By how much the mean of a lesion exceeds the median around it in the scan, at least, in
# standard deviations of that, drawn for each lesion. Of real ones it is 1.4 at least and 3.5 in the median (DWI, 101
# lesions of four patients, one of 0.3), and 0.8 and 2.3 (FLAIR, 13 of one); a scan's noise and slices left half of the
# drawn ones under 0.1 cm3 invisible. Chronic ones on T1w lie beside fluid: nothing is known of them.
STAND_OUT = {"flair": (0.7, 2.4), "dwi": (1.6, 4.0)}
AROUND_MM, MOST_GAIN = (3.0, 9.0), 5.0


class Part(NamedTuple):
    """A lesion: its box of the grid, what is its own there (H, W, D), and its depth in mm."""

    box: tuple[slice, ...]
    own: np.ndarray
    depth_mm: np.ndarray
    volume_cm3: float


def paint_lesions(
    signal: np.ndarray, head: Head, opacity: np.ndarray, modality: str, levels: dict, variety: float, rng
) -> np.ndarray:
    """The brain's intensities (H, W, D) with lesions of this `opacity` (0 to 1, 0.5 at their edge), float32.

    Chronic on T1w, acute on FLAIR and DWI. `levels` are those of `data.phantom.contrast.draw_levels`.
    """
    level, full = levels["lesion"], min(2 * variety, 1)
    wavelength = TEXTURE_MM * TEXTURE_FACTOR ** rng.spawn(1)[0].uniform(-full, full)  # the rest stays as it is
    texture = 1 + (TEXTURE + variety * UNEVEN[modality]) * Field.draw(wavelength, rng).on(head.grid)
    if modality == "t1w":  # a cavity holds CSF
        level += full * (rng.uniform(1, 1.25) * levels["fluid"] - level)
    target = level * np.clip(texture, 0.4, 1.8)
    painted, share = signal, opacity.copy()
    if variety:
        patches, fainter = Field.draw(18, rng).on(head.grid), full * (1 - LEAST_CONTRAST)
        scan, key = 1 - fainter * rng.random() ** 5, int(rng.integers(2**32))
        for number, part in enumerate(_parts(opacity, head.grid.spacing_hwd)):
            own = np.random.default_rng([key, number])  # so that a part more does not change the looks of the others
            radius = radius_mm(part.volume_cm3) if modality == "t1w" else 0.0
            cavity = radius / (radius + CAVITY_MM)  # how far an old infarct is one, from 0 to 1
            contrast = max(scan * (1 - 0.6 * fainter * own.random() ** 4), LEAST_CONTRAST, cavity)
            core = _core(part, patches[part.box], modality, variety, cavity, own)
            share[part.box] *= np.where(part.own, contrast * core, 1)
            if modality == "t1w" and part.volume_cm3 > VACUO_CM3:
                painted = _widen(painted, head, part, levels["fluid"], variety * own.uniform(0.3, 1.5))
            evenness = full * own.random()
            target[part.box] += np.where(part.own, evenness * (level - target[part.box]), 0)
    return (painted + share * (target - painted)).astype(np.float32)


def _parts(opacity: np.ndarray, spacing_hwd: tuple[float, float, float]):
    """The lesions (26-connected), each with the voxels about it that belong to no other."""
    labels, _ = label(opacity > 0.5, TWENTY_SIX_CONNECTED)
    for number, box in _boxes(labels, [int(np.ceil(6 / size)) + 1 for size in spacing_hwd]):
        inside = labels[box] == number
        depth = distance_transform_edt(np.pad(inside, 1), spacing_hwd)[1:-1, 1:-1, 1:-1].astype(np.float32)
        volume = np.count_nonzero(inside) * float(np.prod(spacing_hwd)) / 1000
        yield Part(box, inside | (labels[box] == 0), depth - np.float32(min(spacing_hwd) / 2), volume)


def _boxes(labels: np.ndarray, margins: Sequence[int]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each lesion's label, and the box around it with margins in voxels."""
    for number, found in enumerate(find_objects(labels), start=1):
        yield number, tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(found, margins, strict=True))


def _core(
    part: Part, patches: np.ndarray, modality: str, variety: float, cavity: float, rng: np.random.Generator
) -> np.ndarray:
    """(H, W, D) share of the contrast: 1 in the core, less in the rim and where a part of the lesion is dim."""
    rim_mm = variety * rng.uniform(0, RIM_MM[modality])
    rim = 1 - min(1.5 * variety, 1) * (1 - rng.uniform(*RIM_SHARE))
    if modality == "t1w" and rng.random() < variety * (1 - cavity) ** 2:  # a scar without a cavity
        rim_mm = 99.0
    core = expit((part.depth_mm - rim_mm * (1 + 0.4 * patches)) / 0.7) if rim_mm > 0.5 else np.ones_like(patches)
    if rng.random() < variety * DIM[modality]:
        core *= expit((patches - rng.uniform(-1.5, 0.2 - cavity)) / 0.15)
    return rim + (1 - rim) * core


def _widen(signal: np.ndarray, head: Head, part: Part, fluid: float, strength: float) -> np.ndarray:
    """Widen the ventricle and the sulci near an old lesion: the brain fills what it has lost."""
    strength *= min(part.volume_cm3 / 40, 1) ** 0.5
    place = head.template_mm[(slice(None), *part.box)][:, part.depth_mm > 0].mean(1)
    near = np.zeros(signal.shape, bool)
    near[head.box(place.tolist(), 2 * VACUO_REACH_MM)] = True
    near &= head.brain & ((head.template_mm[0] - MIDLINE_MM) * np.sign(place[0] - MIDLINE_MM) > -2)
    points = head.template_mm[:, near]
    nearness = np.exp(-((points - place[:, None]) ** 2).sum(0) / (2 * VACUO_REACH_MM**2)).astype(np.float32)
    push = load_ventricles().push_at(points, 1 + (VACUO_FACTOR - 1) * strength)
    directions, spacing = head.directions[:, None], np.array(head.grid.spacing_hwd)[:, None]
    source = np.argwhere(near).T + nearness * push * directions / spacing
    widened = signal.copy()
    widened[near] = map_coordinates(signal, source, order=1, mode="nearest")
    sulci = 1 - head.grey[near] - head.white[near]
    sulci = np.clip(VACUO_SULCI * strength * nearness * sulci, 0, 1)
    widened[near] += sulci * (fluid - widened[near])
    return widened


def paint_past(signal: np.ndarray, head: Head, modality: str, levels: dict, variety: float, rng) -> None:
    """Paint old infarcts, which are no lesions of an acute cohort, in place: dark, with a rim bright on FLAIR."""
    if modality not in PAST_RIM:
        return
    places = tissue_places()
    for _ in range(min(rng.poisson(PAST_MEAN * variety), 3)):
        place, radius = places[rng.integers(len(places))], np.exp(rng.uniform(*np.log(PAST_MM)))
        rim = min(rng.uniform(0.5, 4), 0.4 * radius), levels["white"] * rng.uniform(*PAST_RIM[modality])
        rough, strength = Field.draw(1.6 * radius + 4, rng), rng.uniform(0.6, 1)
        paint_ball(signal, head, place, radius, levels["fluid"], rim, rough, strength)


def stand_out(
    scan: np.ndarray, without: np.ndarray, head: Head, lesions: np.ndarray, modality: str, strength: float, rng
) -> None:
    """Make lesions that nobody would see in a scan (H, W, D) brighter, in place.

    `without` is the same scan without `lesions`, their mask; `strength` is a factor on `STAND_OUT`.
    """
    for seen in surroundings(lesions, head.brain, head.grid.spacing_hwd):
        least, before = strength * rng.uniform(*STAND_OUT[modality]), without[seen.box]
        brightening = (scan[seen.box] - before) * seen.nearest
        mean, median, deviation = contrast(before, seen)
        brighter = brightening[seen.inside].mean()
        if brighter > 0:  # else it is darker than what it lies in
            gain = (median + least * deviation - mean) / brighter
            scan[seen.box] += np.float32(np.clip(gain, 1, MOST_GAIN) - 1) * brightening


class Surroundings(NamedTuple):
    """A lesion, and what lies around it; arrays (H, W, D) bool of its box of the grid."""

    box: tuple[slice, ...]
    inside: np.ndarray
    nearest: np.ndarray  # brain nearer to it than to other lesions
    around: np.ndarray  # brain `AROUND_MM` from any lesion


def surroundings(lesions: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, ...]) -> Iterator[Surroundings]:
    """Those of each lesion (26-connected) of a mask that has brain around it."""
    labels, _ = label(lesions, TWENTY_SIX_CONNECTED)
    for number, box in _boxes(labels, [int(np.ceil(AROUND_MM[1] / size)) for size in spacing_mm]):
        own = labels[box]
        distance, places = distance_transform_edt(own == 0, spacing_mm, return_indices=True)
        around = (distance > AROUND_MM[0]) & (distance < AROUND_MM[1]) & brain[box]
        if around.any():
            yield Surroundings(box, own == number, brain[box] & (own[tuple(places)] == number), around)


def contrast(scan: np.ndarray, seen: Surroundings) -> tuple[float, float, float]:
    """A lesion's mean in the box of a scan, the median around it, and the standard deviation of that."""
    around = scan[seen.around]
    median = np.median(around)
    return scan[seen.inside].mean(), median, 1.48 * np.median(np.abs(around - median))
