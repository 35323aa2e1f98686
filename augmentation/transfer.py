"""One augmented scan: lesions of other subjects' scans moved into it by Poisson image editing."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from augmentation.cohort import Cohort, Scan
from augmentation.lesions import Lesion, allowed_region, cut_lesion, place, place_anywhere, vary
from augmentation.pairs import Criteria, Pair, find_pairs
from augmentation.poisson import blend, soft_rim
from data.batches.cutting import EIGHT_CONNECTED
from utils.scores.components import TWENTY_SIX_CONNECTED

# Where lesions go unless told otherwise. A slice is like its partner, so the donor's place is a likely one; whole
# lesions helped most in places of their own.
PLACES = {"slice": "donor", "volume": "anywhere"}
TRIES = 20  # healthy slices in which a place for one more 3D lesion is sought


@dataclass(frozen=True)
class Settings:
    """How lesions are moved.

    mode: ``slice``, each healthy slice by itself, or ``volume``, whole 3D lesions.
    donors: scans that lesions are drawn from for one augmented scan.
    slices: share of the healthy slices that get a lesion (``slice``).
    lesions: new lesions of a scan (``volume``).
    place: of a lesion in its new head, ``donor``, where it was in its own, or ``anywhere`` that is allowed.
    """

    mode: str
    criteria: Criteria
    donors: int
    slices: float
    lesions: int
    max_angle: float
    min_scale: float
    max_erosion: int
    mixed: bool
    rim: float
    place: str
    seed: int


@dataclass(frozen=True)
class Augmented:
    """A recipient that gets lesions: image (C, D, H, W) float32, all its lesions (D, H, W) bool, and where from."""

    image: np.ndarray
    lesions: np.ndarray
    origins: list[dict]


def augment(cohort: Cohort, recipient: int, copy: int, settings: Settings) -> Augmented:
    """The recipient's `copy`-th augmented scan; without origins where no lesion found a place.

    Lesions come from scans of other subjects alone. The result depends on the seed, the recipient and the copy only.
    """
    rng = np.random.default_rng([settings.seed, recipient, copy])
    scan, index = cohort.load(recipient), cohort.index
    donors = _draw_donors(cohort, recipient, settings.donors, rng)
    rows = index.of_volume(recipient)
    healthy = rng.permutation(rows[~index.sick[rows]])
    result = Augmented(scan.image.copy(), scan.lesions.copy(), [])
    if settings.mode == "slice":
        healthy = healthy[: round(settings.slices * len(healthy))]
        for pair in _one_partner(find_pairs(index, healthy, donors, cohort.slice_of, rng, settings.criteria), rng):
            _into_slice(cohort, scan, result, pair, rng, settings)
        return result
    allowed = allowed_region(scan.image[0], scan.brain, scan.inner, scan.lesions)
    for row in healthy[: TRIES * settings.lesions]:
        for pair in _one_partner(find_pairs(index, [row], donors, cohort.slice_of, rng, settings.criteria), rng):
            _into_volume(cohort, scan, result, allowed, pair, rng, settings)
        if len(result.origins) == settings.lesions:
            break
    return result


def _draw_donors(cohort: Cohort, recipient: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, the rows of the scans that may lend: `n` scans of other subjects that have lesions."""
    own = cohort.cases[recipient].subject
    lenders = [v for v in np.unique(cohort.index.volume[cohort.index.sick]) if cohort.cases[v].subject != own]
    return np.isin(cohort.index.volume, rng.permutation(lenders)[:n])


def _one_partner(pairs: list[Pair], rng: np.random.Generator) -> list[Pair]:
    """One pair for each healthy slice."""
    by_slice: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_slice.setdefault(pair.healthy, []).append(pair)
    return [options[rng.integers(len(options))] for options in by_slice.values()]


def _into_slice(cohort: Cohort, scan: Scan, result: Augmented, pair: Pair, rng, settings: Settings) -> None:
    """Add one lesion of the sick slice to the healthy one of the result."""
    donor, z, sick_z = cohort.load(cohort.index.volume[pair.sick]), *cohort.index.z[[pair.healthy, pair.sick]]
    lesion = _draw_lesion(donor.lesions[sick_z], rng)
    cut = _cut(donor, donor.image[:, sick_z], lesion, donor.healthy[sick_z], scan)
    allowed = allowed_region(scan.image[0, z], scan.brain[z], scan.inner[z], scan.lesions[z])
    shift = _middle(scan.brain[z]) - _middle(donor.brain[sick_z])
    if (fitted := _fit(cut, shift, allowed, rng, settings)) is None:
        return
    lesion, window, how = fitted
    _blend_into(result.image[:, z], lesion, window, scan.usual_step, settings)
    result.lesions[z][window] |= lesion.mask
    result.origins.append(_origin(donor, (z, sick_z), pair, lesion, how))


def _into_volume(cohort: Cohort, scan: Scan, result: Augmented, allowed, pair: Pair, rng, settings: Settings) -> None:
    """Add a 3D lesion that crosses the sick slice to the result, and keep further ones off it in `allowed`."""
    donor, z, sick_z = cohort.load(cohort.index.volume[pair.sick]), *cohort.index.z[[pair.healthy, pair.sick]]
    labels, _ = ndimage.label(donor.lesions, TWENTY_SIX_CONNECTED)
    lesion = labels == rng.choice(np.unique(labels[sick_z][labels[sick_z] > 0]))
    shift = np.array([z - sick_z, *(_middle(scan.brain[z]) - _middle(donor.brain[sick_z]))])
    cut = _cut(donor, donor.image, lesion, donor.healthy, scan)
    if (fitted := _fit(cut, shift, allowed, rng, settings)) is None:
        return
    lesion, window, how = fitted
    _blend_into(result.image, lesion, window, scan.usual_step, settings)
    result.lesions[window] |= lesion.mask
    widest = window[0].start + lesion.mask.sum((1, 2)).argmax()
    result.origins.append(_origin(donor, (widest, widest - how["moved"][0]), pair, lesion, how))
    allowed &= ~ndimage.binary_dilation(result.lesions)


def _draw_lesion(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    labels, n = ndimage.label(mask, EIGHT_CONNECTED)
    return labels == 1 + rng.integers(n)


def _cut(donor: Scan, image: np.ndarray, lesion: np.ndarray, healthy: np.ndarray, recipient: Scan) -> Lesion:
    """The lesion with intensities on the recipient's scale; only their differences will count."""
    gain = (recipient.contrast / np.maximum(donor.contrast, 1e-12)).reshape(-1, *[1] * lesion.ndim)
    cut = cut_lesion(image, lesion, healthy)
    return replace(cut, patch=cut.patch * gain, tissue=cut.tissue * gain)


def _middle(brain: np.ndarray) -> np.ndarray:
    """The middle of a slice's brain, by which two are laid upon each other."""
    (rows, columns) = ndimage.find_objects(brain.astype(np.uint8))[0]
    return np.array([rows.start + rows.stop, columns.start + columns.stop]) / 2


def _fit(lesion: Lesion, shift: np.ndarray, allowed: np.ndarray, rng: np.random.Generator, settings: Settings):
    """The lesion varied and placed, the window of the recipient it belongs to and what was done; None without room."""
    varied, how = vary(lesion, rng, settings.max_angle, settings.min_scale, settings.max_erosion)
    if settings.place == "anywhere":
        placed = place_anywhere(varied, allowed, rng)
    else:
        placed = place(varied, tuple(np.add(lesion.centre, shift)), allowed)
    if placed is None:
        return None
    fitted, window = placed
    return fitted, window, {**how, "moved": np.subtract(fitted.centre, lesion.centre).astype(int).tolist()}


def _blend_into(image: np.ndarray, lesion: Lesion, window: tuple[slice, ...], max_step: np.ndarray, settings: Settings):
    """Blend a fitted lesion into its window of the image (C, ...), in place.

    `max_step` (C,) keeps the rim from showing, but for a hard edge that was asked for.
    """
    limits = max_step if settings.rim else np.full(len(max_step), np.inf)
    for channel, patch, tissue, limit in zip(image, lesion.patch, lesion.tissue, limits, strict=True):
        donor = soft_rim(patch, tissue, lesion.mask, settings.rim, limit)
        channel[window] = blend(channel[window], donor, lesion.mask, settings.mixed)


def _origin(donor: Scan, slices: tuple[int, int], pair: Pair, lesion: Lesion, how: dict) -> dict:
    """What the provenance says of a lesion; `slices` of recipient and donor show it."""
    return {
        "donor": donor.case.subject,
        "scan": donor.case.name,
        "slice": int(slices[0]),
        "donor_slice": int(slices[1]),
        "iou": round(pair.iou, 3),
        "ssim": round(pair.ssim, 3),
        "voxels": int(lesion.mask.sum()),
        **how,
    }
