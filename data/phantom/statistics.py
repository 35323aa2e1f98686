"""How many, how large and where the lesions of strokes are: the numbers by which the synthetic cohort draws them.

Unless a comment names another source they were measured for this file on 1,208 expert masks of acute infarcts in MNI152
at 1 mm (Stroke Outcome Optimization Project, OpenNeuro ds004889), of which only these numbers are kept. Lesions are
components of 26 neighbours; arteries are those of ArterialAtlas136 (Liu et al., 2023, 10.1038/s41597-022-01923-0).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

EVEN_STREAM = 20  # random stream beside those of `data.phantom.cohort`
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Place = tuple[float, float, float]


@dataclass(frozen=True)
class Law:
    """How many lesions the scans of a data set have, and how large they are."""

    volume_cm3: tuple[float, ...]  # of all lesions of a scan, at `QUANTILES`
    # The logarithm of the number is normal before it is rounded: mean at 1 cm3, slope per log volume, deviation.
    number: tuple[float, float, float]
    number_deep: tuple[float, float, float]  # the same where the largest lesion is a perforating artery's
    # The log volume of each but the largest: mean at 1 cm3 and two lesions, slopes per log volume and per log number.
    others: tuple[float, float, float, float]


ACUTE = Law((0.30, 2.0, 12.7, 52.0, 197.0), (0.76, 0.12, 1.02), (-0.1, 0.28, 1.02), (-1.5, 0.2, -0.43, 1.95))
# ATLAS v2.0 (Liew et al., 2022, 10.1038/s41597-022-01401-7): median and 5 to 95 % of the volume, the quartiles of a
# log-normal in between; median of 2 and 95 % of 8 lesions, 28 % of them under 0.03 cm3. Slopes are those of `ACUTE`.
CHRONIC = Law((0.14, 1.05, 4.3, 17.6, 136.0), (0.6, 0.12, 0.85), (-0.1, 0.28, 0.85), (-2.8, 0.2, -0.43, 2.15))
LAWS = {"t1w": CHRONIC, "flair": ACUTE, "dwi": ACUTE}
LARGEST_CM3, MOST_LESIONS = 497.0, 48  # ATLAS's largest, the most of a scan
LARGEST_SHARE = 0.25  # the least share of the volume that the largest lesion has
# 77 % of the scans have 97 % of the volume on one side. The rest lie on both, or cross the midline.
BOTH_SIDES, OTHER_SIDE = 0.4, (0.05, 0.5)  # scans with lesions on both; the share of lesions opposite to the largest
NEAR_SHARE, SCATTER_MM = 0.5, 32.0  # lesions that lie about the largest, and how far in each direction
CHAIN_SHARE = 0.1  # of scans with several lesions: along the border of two arteries, as after a fall of pressure


class Artery(NamedTuple):
    """A territory as a Gaussian in |x|, y, z of MNI, and the strokes whose largest part lies there."""

    centre_mm: Place  # mean and standard deviations of the territory's voxels
    spread_mm: Place
    weight: float  # about the share of scans; fitted so that the shares of drawn scans are those of real ones
    median_cm3: float  # of these scans' volumes
    log_spread: float
    trunk: str  # arteries of one trunk are occluded together
    crossing: float  # probability that a lesion may cross the midline
    # A cortical or cerebellar wedge opens from this place in |x|, y, z; without it a lesion is long along `axis`.
    apex_mm: Place | None = None
    axis: Place = (0.0, 0.0, 1.0)


VENTRICLE, ATRIUM, TEMPORAL_HORN, DENTATE = (18, 5, 20), (22, -42, 16), (34, -18, -12), (8, -52, -30)
ARTERIES = {
    "ACA": Artery((12, 3, 34), (7, 42, 27), 0.08, 6.5, 2.1, "ACA", 0.5, VENTRICLE),
    "MCA frontal": Artery((39, 21, 18), (11, 21, 23), 0.255, 20.0, 2.1, "MCA", 0.08, VENTRICLE),
    "MCA parietal": Artery((46, -40, 40), (12, 17, 14), 0.13, 18.0, 1.85, "MCA", 0.08, ATRIUM),
    "MCA temporal": Artery((49, -21, -13), (14, 22, 18), 0.07, 30.0, 1.8, "MCA", 0.08, TEMPORAL_HORN),
    "MCA occipital": Artery((40, -76, 15), (9, 9, 12), 0.016, 20.0, 1.2, "MCA", 0.05, ATRIUM),
    "MCA insular": Artery((37, 1, -1), (5, 12, 9), 0.016, 2.0, 1.5, "MCA", 0.0, None, (0, 0.9, 0.4)),
    "lenticulostriate": Artery((22, -2, 7), (7, 12, 10), 0.16, 3.0, 1.4, "MCA", 0.0, None, (0.2, -0.5, 0.8)),
    "PCA occipital": Artery((18, -76, 7), (12, 16, 18), 0.075, 29.0, 1.2, "PCA", 0.3, ATRIUM),
    "PCA temporal": Artery((40, -41, -19), (8, 12, 7), 0.003, 16.0, 0.7, "PCA", 0.0, ATRIUM),
    "thalamoperforating": Artery((12, -23, 0), (7, 9, 9), 0.042, 1.0, 1.1, "thalamus", 0.4, None, (0.2, 0.6, 0.8)),
    "choroidal": Artery((28, -26, -13), (6, 7, 8), 0.005, 3.0, 0.8, "choroidal", 0.0, None, (0.2, -0.8, 0.6)),
    "basilar": Artery((8, -31, -33), (5, 9, 8), 0.045, 0.9, 1.1, "brain stem", 0.8, None, (0, 0.95, 0.3)),
    "superior cerebellar": Artery((20, -56, -23), (11, 13, 8), 0.042, 12.0, 1.5, "cerebellum", 0.7, DENTATE),
    "inferior cerebellar": Artery((25, -68, -39), (15, 15, 7), 0.07, 9.0, 1.9, "cerebellum", 0.7, DENTATE),
}
NAMES = tuple(ARTERIES)
CENTRES_MM, SPREADS_MM = (np.array([getattr(artery, of) for artery in ARTERIES.values()], np.float32)
                          for of in ("centre_mm", "spread_mm"))  # fmt: skip


def territory_scores(places_mm: np.ndarray) -> np.ndarray:
    """(14, N) log density of each artery's territory at (3, N) places in MNI mm, in the order of `NAMES`."""
    x, y, z = np.abs(places_mm[0]), places_mm[1], places_mm[2]
    scores = np.empty((len(NAMES), places_mm.shape[1]), np.float32)
    for score, centre, spread in zip(scores, CENTRES_MM, SPREADS_MM, strict=True):
        square = sum(((p - c) / s) ** 2 for p, c, s in zip((x, y, z), centre, spread, strict=True))
        score[:] = -0.5 * square - np.log(spread).sum()
    return scores


def even_numbers(seed: int, index: int) -> np.ndarray:
    """(3,) numbers in (0, 1) that fill the cube evenly over the indices of a cohort: a few scans have all sizes.

    The additive recurrence of M. Roberts (2018, "The unreasonable effectiveness of quasirandom sequences"), from a
    random start for each seed.
    """
    golden = 1.5
    for _ in range(60):
        golden = (1 + golden) ** (1 / 4)
    start = np.random.default_rng([seed, 0, EVEN_STREAM]).random(3)
    return np.clip((start + (index + 1) * golden ** -np.arange(1.0, 4.0)) % 1, 1e-3, 1 - 1e-3)


def draw_volumes(law: Law, evenly: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Volumes in cm3 of a scan's lesions, the largest first, and the artery of the largest.

    `evenly` are three numbers in (0, 1) that decide on the whole volume, the artery and the number of lesions.
    """
    total = float(np.exp(_log_quantile(law.volume_cm3, evenly[0])))
    total = min(total, LARGEST_CM3)
    log = np.log(total)
    fit = [-0.5 * ((log - np.log(a.median_cm3)) / a.log_spread) ** 2 - np.log(a.log_spread) for a in ARTERIES.values()]
    weights = np.array([artery.weight for artery in ARTERIES.values()]) * np.exp(fit)
    name = NAMES[int(np.searchsorted(np.cumsum(weights) / weights.sum(), evenly[1]))]
    mean, slope, deviation = law.number_deep if ARTERIES[name].apex_mm is None else law.number
    n = round(float(np.exp(mean + slope * log + deviation * ndtri(evenly[2]))))
    n = int(np.clip(n, 1, min(MOST_LESIONS, max(total / 0.004, 1))))
    mean, by_volume, by_number, deviation = law.others
    others = np.exp(mean + by_volume * log + by_number * np.log(n) + deviation * rng.normal(size=n - 1))
    others = np.clip(others, 0.001, total / 2)
    others *= min(1.0, (1 - LARGEST_SHARE) * total / max(others.sum(), 1e-6))
    return np.sort(np.append(others, total - others.sum()))[::-1], name


def _log_quantile(values: tuple[float, ...], share: float) -> float:
    """The quantile of a law with `values` at `QUANTILES`: between and beyond them it is log-normal."""
    at, logs = ndtri(QUANTILES), np.log(values)
    i = int(np.clip(np.searchsorted(QUANTILES, share) - 1, 0, len(at) - 2))
    return logs[i] + (ndtri(share) - at[i]) * (logs[i + 1] - logs[i]) / (at[i + 1] - at[i])
