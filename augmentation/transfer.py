"""One augmented scan: lesions of other subjects' scans moved into it by Poisson image editing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from augmentation.cohort import Criteria, IndexedCohort, Pair, Scan, find_pairs
from augmentation.lesions import Lesion, allowed_region, cut_lesion, place, place_anywhere, vary
from augmentation.poisson import blend, soft_rim
from data.batches.cutting import EIGHT_CONNECTED
from data.settings import seed_option
from utils.regions.region import bounding_box
from utils.scores.masks import TWENTY_SIX_CONNECTED
from utils.settings import option
from utils.validators import non_negative_float, positive_fraction, positive_int

DONORS = 8  # scans that lesions are drawn from for one augmented scan: few enough to stay in memory (`load_scan`)
SLICES = 0.5  # share of the healthy slices that get a lesion (``slice``), so that a scan keeps as many without
TRIES = 20  # healthy slices in which a place for one more 3D lesion is sought
# Degrees to either side by which a lesion is turned at most, and voxels that are taken off its border.
MAX_ANGLE, MAX_EROSION = 15.0, 2
Rng = np.random.Generator


@dataclass(frozen=True)
class TransferSettings:
    """Lesions and their transfer."""

    seed: int = seed_option()
    mode: str = option(
        str,
        "lesions of single slices, each at the place it had in its own head, or whole 3D lesions anywhere in the brain "
        "off ventricles and lesions",
        "volume",
        choices=("slice", "volume"),
    )
    lesions: int = option(positive_int, "new lesions of a scan (volume)", 2)
    min_scale: float = option(
        positive_fraction, "least diameter of a moved lesion, as a share of its own; 1 to leave its size", 1.0
    )
    rim: float = option(
        non_negative_float,
        "voxels over which tissue becomes lesion, one too thin for it made fainter; 0 for a hard edge",
        3.0,
    )
    criteria: Criteria = Criteria()


@dataclass(frozen=True)
class Augmented:
    """A recipient that gets lesions: image (C, D, H, W) float32, all its lesions (D, H, W) bool, and where from."""

    recipient: Scan
    image: np.ndarray
    lesions: np.ndarray
    origins: list[dict]


def augment(cohort: IndexedCohort, recipient: int, copy: int, settings: TransferSettings) -> Augmented:
    """The recipient's `copy`-th augmented scan; without origins where no lesion found a place.

    Lesions come from scans of other subjects alone. The result depends on the seed, the recipient and the copy only.
    """
    rng = np.random.default_rng([settings.seed, recipient, copy])
    scan, index, subject = cohort.load(recipient), cohort.index, cohort.cases[recipient].subject
    lenders = [v for v in index.volume[index.sick].unique() if cohort.cases[v].subject != subject]
    donors = np.isin(index.volume, rng.permutation(lenders)[:DONORS])
    healthy = rng.permutation(np.flatnonzero((index.volume == recipient) & ~index.sick))
    result = Augmented(scan, scan.image.copy(), scan.lesions.copy(), [])

    def partners(rows: np.ndarray) -> Iterator[Pair]:
        """One pair for each healthy slice that has any."""
        for row in rows:
            if pairs := find_pairs(index, row, donors, cohort.slice_of, rng, settings.criteria):
                yield pairs[rng.integers(len(pairs))]

    if settings.mode == "slice":
        for pair in partners(healthy[: round(SLICES * len(healthy))]):
            _into_slice(cohort, result, pair, rng, settings)
        return result
    allowed = allowed_region(scan.image[0], scan.brain, scan.inner, scan.lesions)
    for pair in partners(healthy[: TRIES * settings.lesions]):
        _into_volume(cohort, result, allowed, pair, rng, settings)
        if len(result.origins) == settings.lesions:
            break
    return result


def _into_slice(cohort: IndexedCohort, result: Augmented, pair: Pair, rng: Rng, settings: TransferSettings) -> None:
    """Add one lesion of the sick slice to the healthy one of the result."""
    donor, z, sick_z = cohort.load(cohort.index.volume[pair.sick]), *cohort.index.z[[pair.healthy, pair.sick]]
    labels, n = ndimage.label(donor.lesions[sick_z], EIGHT_CONNECTED)
    scan, lesion = result.recipient, labels == 1 + rng.integers(n)
    varied, how = _vary(donor, donor.image[:, sick_z], lesion, donor.healthy[sick_z], scan, rng, settings.min_scale)
    allowed = allowed_region(scan.image[0, z], scan.brain[z], scan.inner[z], scan.lesions[z])
    shift = _middle(scan.brain[z]) - _middle(donor.brain[sick_z])
    if (placed := place(varied, tuple(np.add(varied.centre, shift)), allowed)) is not None:
        _blend_into(result.image[:, z], result.lesions[z], *placed, scan.usual_step, settings.rim)
        result.origins.append(_origin(donor, z, sick_z, pair, varied, placed[0], how))


def _into_volume(
    cohort: IndexedCohort, result: Augmented, allowed: np.ndarray, pair: Pair, rng: Rng, settings: TransferSettings
) -> None:
    """Add a 3D lesion that crosses the sick slice to the result, and keep further ones off it in `allowed`."""
    donor, sick_z = cohort.load(cohort.index.volume[pair.sick]), cohort.index.z[pair.sick]
    labels, _ = ndimage.label(donor.lesions, TWENTY_SIX_CONNECTED)
    scan, crossing = result.recipient, rng.choice(np.unique(labels[sick_z][labels[sick_z] > 0]))
    varied, how = _vary(donor, donor.image, labels == crossing, donor.healthy, scan, rng, settings.min_scale)
    if (placed := place_anywhere(varied, allowed, rng)) is not None:
        lesion, window = placed
        _blend_into(result.image, result.lesions, lesion, window, scan.usual_step, settings.rim)
        widest = window[0].start + lesion.mask.sum((1, 2)).argmax()
        donor_z = widest - int(lesion.centre[0] - varied.centre[0])
        result.origins.append(_origin(donor, widest, donor_z, pair, varied, lesion, how))
        allowed &= ~ndimage.binary_dilation(result.lesions)


def _vary(
    donor: Scan, image: np.ndarray, mask: np.ndarray, healthy: np.ndarray, recipient: Scan, rng: Rng, min_scale: float
) -> tuple[Lesion, dict]:
    """`vary` the lesion, with intensities on the recipient's scale; only their differences will count."""
    gain = (recipient.contrast / np.maximum(donor.contrast, 1e-12)).reshape(-1, *[1] * mask.ndim)
    cut = cut_lesion(image, mask, healthy)
    on_scale = replace(cut, patch=cut.patch * gain, tissue=cut.tissue * gain)
    return vary(on_scale, rng, MAX_ANGLE, min_scale, MAX_EROSION)


def _middle(brain: np.ndarray) -> np.ndarray:
    """The middle of a slice's brain, by which two are laid upon each other."""
    return np.array([span.start + span.stop for span in bounding_box(brain)]) / 2


def _blend_into(
    image: np.ndarray, lesions: np.ndarray, lesion: Lesion, window: tuple[slice, ...], max_step: np.ndarray, rim: float
) -> None:
    """Blend a fitted lesion into its window of the image (C, ...), and add it to the lesions (...), in place.

    `max_step` (C,) keeps the rim from showing, but for a hard edge that was asked for.
    """
    limits = max_step if rim else np.full(len(max_step), np.inf)
    for channel, patch, tissue, limit in zip(image, lesion.patch, lesion.tissue, limits, strict=True):
        donor = soft_rim(patch, tissue, lesion.mask, rim, limit)
        channel[window] = blend(channel[window], donor, lesion.mask)
    lesions[window] |= lesion.mask


def _origin(donor: Scan, z: int, donor_z: int, pair: Pair, lesion: Lesion, placed: Lesion, how: dict) -> dict:
    """What the provenance says of a lesion, which the slices `z` of the recipient and `donor_z` show."""
    return {
        "donor": donor.case.subject,
        "scan": donor.case.name,
        "slice": int(z),
        "donor_slice": int(donor_z),
        "iou": round(pair.iou, 3),
        "ssim": round(pair.ssim, 3),
        "voxels": int(placed.mask.sum()),
        **how,
        "moved": np.subtract(placed.centre, lesion.centre).astype(int).tolist(),  # by so many voxels
    }
