"""Hold the synthetic cohort against a few real scans, contrast by contrast.

    python benchmarks/likeness.py --real ../shared/real --out_dir runs/likeness

Prints a table for each contrast whose real scan is there: the intensities of the brain, noise, edges, and how lesions
stand out; and draws both beside each other. The pictures show a real scan: they are for the eye, not for publication.
What networks trained on synthetic scans make of the real ones is the matter of ``benchmarks/real.py``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage
from scipy.stats import wasserstein_distance

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.files.space import Space, resample
from data.files.volumes import read_volume
from data.phantom.cohort import Settings, make_subject
from data.phantom.fields import Grid
from data.phantom.place import affine_of
from data.scans.brain import find_brain
from data.scans.head import head_mask
from utils.plots import save_figure
from utils.scores.lesions import TWENTY_SIX_CONNECTED

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
EDGE_QUANTILES = (50, 90, 99)
FLAT_SHARE = 10  # percentile of the local spread: in the flattest tenth of the brain there is little but noise
AROUND_MM = 6.0  # tissue this near a lesion is what it is seen against
BINS = np.linspace(-0.2, 2.5, 109)


@dataclass(frozen=True)
class Sample:
    """A scan with what it is compared by.

    scan: (D, H, W) in units of the brain's median. head, brain, lesion: (D, H, W) bool; no head if it was stripped.
    """

    name: str
    scan: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    head: np.ndarray | None
    spacing_mm: tuple[float, float, float]


def make_sample(name: str, scan, brain, lesion, head, spacing_mm) -> Sample:
    return Sample(name, scan / np.median(scan[brain]), brain, lesion, head, spacing_mm)


# --- measures ------------------------------------------------------------------------------------------


def measure(sample: Sample) -> dict[str, float]:
    """Each measure by its name; intensities are shares of the brain's median."""
    inside = sample.scan[sample.brain]
    row = {
        f"brain, percentile {q}": value for q, value in zip(QUANTILES, np.percentile(inside, QUANTILES), strict=True)
    }
    row["brain, cm3"] = np.count_nonzero(sample.brain) * np.prod(sample.spacing_mm) / 1000
    row["brain voxels below 0, per million"] = 1e6 * np.mean(inside < 0)
    deep = ndimage.binary_erosion(sample.brain, iterations=2)
    row["noise in flat tissue"] = np.percentile(_local_spread(sample.scan)[deep], FLAT_SHARE)
    slope = _slope(sample)[deep]
    row |= {f"slope per mm, percentile {q}": np.percentile(slope, q) for q in EDGE_QUANTILES}
    if sample.head is not None:
        row |= _outside(sample)
    if sample.lesion.any():
        row |= _lesions(sample)
    return row


def _local_spread(scan: np.ndarray) -> np.ndarray:
    """Standard deviation over 3 x 3 voxels of a slice: slices may be thick."""
    size = (1, 3, 3)
    mean, square = (ndimage.uniform_filter(a.astype(np.float64), size) for a in (scan, scan.astype(np.float64) ** 2))
    return np.sqrt(np.maximum(square - mean**2, 0))


def _slope(sample: Sample) -> np.ndarray:
    """Magnitude of the in-plane gradient per mm, after a Gaussian of 1 mm that noise and voxel size matter less."""
    _, h, w = sample.spacing_mm
    smooth = ndimage.gaussian_filter(sample.scan, (0, 1 / h, 1 / w))
    return np.hypot(*np.gradient(smooth, h, w, axis=(1, 2)))


def _outside(sample: Sample) -> dict[str, float]:
    values = sample.scan[sample.head & ~sample.brain]
    row = {f"outside, percentile {q}": np.percentile(values, q) for q in (5, 25, 50, 75, 95)}
    row["head, cm3"] = np.count_nonzero(sample.head) * np.prod(sample.spacing_mm) / 1000
    air = sample.scan[~ndimage.binary_dilation(sample.head, iterations=5)]
    return {**row, "noise in air": air.std()}


def _lesions(sample: Sample) -> dict[str, float]:
    """Contrast of all lesions to the tissue around them, in units of its spread (robust: 1.48 MAD)."""
    distance = ndimage.distance_transform_edt(~sample.lesion, sampling=sample.spacing_mm)
    around = sample.scan[sample.brain & ~sample.lesion & (distance <= AROUND_MM)]
    middle = np.median(around)
    spread = 1.48 * np.median(np.abs(around - middle))
    values = sample.scan[sample.lesion]
    sizes = np.bincount(ndimage.label(sample.lesion, TWENTY_SIX_CONNECTED)[0].ravel())[1:]
    return {
        "lesions": len(sizes),
        "lesions, cm3": sizes.sum() * np.prod(sample.spacing_mm) / 1000,
        "lesion's median": np.median(values),
        "lesion's contrast, in spreads around it": (np.median(values) - middle) / spread,
    }


# --- contrasts -----------------------------------------------------------------------------------------


def synthetic(modality: str, seed: int, spacing: tuple, mask_spacing: tuple | None, stripped: bool) -> Sample:
    settings = Settings(
        seed=seed, modality=modality, spacing=spacing, mask_spacing=mask_spacing, stripped=stripped, healthy_fraction=0
    )
    subject = make_subject(settings, 0)
    scan, lesion = subject.scan[0], subject.mask > 0
    if mask_spacing:
        places = (
            Space(a.shape[1:], affine_of(Grid(s), False)) for a, s in ((lesion, mask_spacing), (subject.scan, spacing))
        )
        lesion = resample(lesion, *places)
    head = None if stripped else head_mask(scan)
    return make_sample(f"synthetic, seed {seed}", scan, subject.brain, lesion[0], head, spacing)


def t1w_head(real: Path) -> tuple[Sample, Callable[[int], Sample]] | None:
    """The real T1w head, and what draws a synthetic one by its seed."""
    path = real / "t1w/sub-head_T1w.nii.gz"
    if not path.exists():
        return None
    volume = read_volume(path)
    scan, space = volume.array[0], Space(volume.array.shape[1:], volume.affine)
    sample = make_sample(
        "real",
        scan,
        find_brain(scan, head_mask(scan), "T1w", space),
        np.zeros(scan.shape, bool),
        head_mask(scan),
        (1.0,) * 3,
    )
    return sample, lambda seed: synthetic("t1w", seed, (1.0,) * 3, None, False)


def dwi(real: Path) -> tuple[Sample, Callable[[int], Sample]] | None:
    return _isles(real, "dwi", (2.0,) * 3, None)


def flair(real: Path) -> tuple[Sample, Callable[[int], Sample]] | None:
    return _isles(real, "flair", (5.0, 0.45, 0.45), (2.0,) * 3)


def _isles(real: Path, modality: str, spacing: tuple, mask_spacing: tuple | None):
    """A stripped scan of ISLES 2022 with its mask, and what draws a synthetic one by its seed."""
    scans, masks = (sorted((real / "isles22").rglob(f"*_{name}.nii.gz")) for name in (modality, "msk"))
    if not scans or not masks:
        return None
    scan, mask = read_volume(scans[0]), read_volume(masks[0])
    places = (Space(volume.array.shape[1:], volume.affine) for volume in (mask, scan))
    lesion = resample(mask.array > 0, *places)[0]
    brain = head_mask(scan.array[0])
    sample = make_sample("real", scan.array[0], brain, lesion, None, scan.spacing_mm)
    return sample, lambda seed: synthetic(modality, seed, spacing, mask_spacing, True)


PARTS = {"t1w": t1w_head, "dwi": dwi, "flair": flair}


# --- results -------------------------------------------------------------------------------------------


def print_table(title: str, real: dict, drawn: list[dict]) -> None:
    print(f"\n{title}: real, synthetic mean, lowest and highest of {len(drawn)}")
    for name in {**drawn[0], **real}:
        values = [row[name] for row in drawn if name in row]
        columns = [real.get(name, np.nan), np.mean(values), min(values), max(values)] if values else [real[name]]
        print(f"{name:42s}" + "".join(f"{value:10.3g}" for value in columns))


def draw(samples: list[Sample], path: Path) -> None:
    """Three slices of each sample, and the histograms of their brains."""
    figure = Figure(figsize=(16, 3.6 * len(samples)), layout="constrained")
    axes = figure.subplots(len(samples), 4, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        depths = np.flatnonzero(sample.brain.any((1, 2)))
        for axis, share in zip(row, (0.3, 0.5, 0.7), strict=False):
            z = depths[int(share * len(depths))]
            aspect = sample.spacing_mm[2] / sample.spacing_mm[1]
            axis.imshow(sample.scan[z].T, origin="lower", cmap="gray", vmin=0, vmax=1.8, aspect=aspect)
            axis.set(title=f"{sample.name}, slice {z}", xticks=[], yticks=[])
        row[3].hist(samples[0].scan[samples[0].brain], BINS, density=True, color="0.8", label=samples[0].name)
        row[3].hist(sample.scan[sample.brain], BINS, density=True, histtype="step", label=sample.name)
        row[3].legend()
    save_figure(figure, path)


def compare(name: str, real: Sample, drawn: list[Sample], out_dir: Path) -> None:
    rows = [{"Wasserstein distance of the brains": _distance(real, s), **measure(s)} for s in drawn]
    print_table(name, measure(real), rows)
    draw([real, *drawn[:3]], out_dir / f"{name}.png")


def _distance(real: Sample, sample: Sample) -> float:
    points = np.linspace(0.5, 99.5, 200)  # of both distributions, instead of millions of voxels
    return wasserstein_distance(*(np.percentile(s.scan[s.brain], points) for s in (real, sample)))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared/real", help="folder of the real scans")
    parser.add_argument("--out_dir", type=Path, default=ROOT / "scores/likeness", help="folder for the pictures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="contrasts to compare")
    parser.add_argument("--n_seeds", type=int, default=5, help="synthetic scans of each contrast")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for name in args.parts:
        found = PARTS[name](args.real)
        if found is None:
            print(f"{name}: skipped, its real scan is not in {args.real}")
            continue
        real, draw_seed = found
        compare(name, real, [draw_seed(seed) for seed in range(args.n_seeds)], args.out_dir)


if __name__ == "__main__":
    main(parse_args())
