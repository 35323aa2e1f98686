"""Do real scans look like drawn ones? Field, noise, edges and contrasts of both, by the same code on voxels of 2 mm.

    python benchmarks/likeness.py --real ../shared/real --out_dir runs/likeness

A real scan is in where it lies within the 2.5 to 97.5 % range of 100 drawn ones, which are kept on disk. Nothing may be
fitted to single real scans: each run is a look at them, and is counted in ``looks.txt`` of the folder.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from common import ROOT, argument_parser, print_looks, print_markdown
from real import SCANS, true_lesions
from scipy.ndimage import binary_dilation, binary_erosion, convolve, find_objects

from data.files.space import Space, coarse_space, resample
from data.files.volumes import read_volume
from data.phantom.appearance import contrast, surroundings
from data.phantom.cohort import make_subject
from data.scans.brain import find_brain
from data.scans.head import head_mask
from data.settings import PhantomSettings
from utils.progress import progress

N_DRAWN, RANGE, VARIETY, SPACING_MM = 100, (0.025, 0.975), 0.5, 2
POWERS = np.array([p for p in np.ndindex(4, 4, 4) if sum(p) <= 3])  # of the field's polynomial
LAPLACIAN = np.outer([1, -2, 1], [1, -2, 1])[None] / 6  # leaves noise alone (Immerkaer, 1996, 10.1006/cviu.1996.0060)
MASKS = {"t1w": ["Chronic_mask"], "flair": ["msk"], "dwi": ["msk", "Acute_mask"]}  # of what is seen in them


def fit_field(log: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """(D, H, W) log of the receive field: a polynomial, fitted to every eighth voxel of tissue that is not far off."""
    chosen = np.argwhere(tissue)[::8]
    terms = ((2 * chosen / (np.array(log.shape) - 1) - 1)[:, None] ** POWERS).prod(2)
    values, used = log[tuple(chosen.T)], np.ones(len(chosen), bool)
    for _ in range(8):
        weights = np.linalg.lstsq(terms[used], values[used], rcond=None)[0]
        off = np.abs(values - terms @ weights)
        used = off < 2.5 * 1.48 * np.median(off[used])
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in log.shape)]
    return sum(w * x**i * y**j * z**k for w, (i, j, k) in zip(weights, POWERS, strict=True))


def measures(scan: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> dict[str, float]:
    """Of a scan (D, H, W) with axes towards superior, right and anterior; the brain is eroded by a voxel."""
    box = find_objects(brain.astype(int))[0]
    scan, lesion, brain = scan[box], lesion[box], binary_erosion(brain[box])
    normal = brain & ~binary_dilation(lesion, iterations=2) & (scan > 0)
    share = scan / np.median(scan[normal])
    tissue = normal & (share > 0.4) & (share < 2.5)
    field = fit_field(np.log(np.clip(share, 0.01, None)), tissue)
    field -= field[brain].mean()
    flat, deep = share * np.exp(-field), binary_erosion(tissue)
    flat /= np.median(flat[tissue])
    steps = [np.abs(np.diff(flat, axis=axis, append=0))[deep].mean() for axis in range(3)]
    up, right, front = (np.sign(axis) for axis in np.ogrid[tuple(slice(-1, 1, n * 1j) for n in brain.shape)])
    low_behind, around = (up < 0) & (front < 0) & brain, binary_dilation(lesion, iterations=3) & ~lesion & brain
    each = [contrast(flat[seen.box], seen) for seen in surroundings(lesion, brain, (SPACING_MM,) * 3)]
    return {
        "field: spread": field[brain].std(),
        "field: brightest": np.percentile(field[brain], 99),
        "field: right minus left": 2 * (field * right)[brain].mean(),
        "field: right minus left, low behind": 2 * (field * right)[low_behind].mean(),
        "field: front minus back": 2 * (field * front)[brain].mean(),
        "field: vertex": field[-10:][brain[-10:]].mean(),  # 20 mm
        "noise": 1.48 * np.median(np.abs(convolve(flat, LAPLACIAN))[deep]),
        "edges: in plane": (steps[1] + steps[2]) / 2,
        "edges: across slices, relative": 2 * steps[0] / (steps[1] + steps[2]),
        **{f"tissue: {percent} %": np.percentile(flat[normal], percent) for percent in (5, 25, 75, 99)},
        "lesion: against around": np.median(flat[lesion]) / np.median(flat[around]) if lesion.any() else np.nan,
        "lesion: spread": np.subtract(*np.percentile(flat[lesion], (75, 25))) if lesion.any() else np.nan,
        "lesions: a quarter stands out by less": np.percentile([abs(m - n) / d for m, n, d in each] or np.nan, 25),
    }


def measure_drawn(index: int, modality: str) -> dict[str, float]:
    settings = PhantomSettings(modality=modality, variety=VARIETY, spacing=(SPACING_MM,) * 3, stripped=True, seed=1)
    subject = make_subject(settings, index)
    return measures(subject.scan[0], subject.brain, (subject.mask[0] > 0) & subject.brain)


def measure_real(path: Path, real: Path, modality: str) -> dict[str, float]:
    volume = read_volume(path)
    scan, own = volume.array, Space(volume.array.shape[1:], volume.affine)
    space, brain = coarse_space(own, SPACING_MM), find_brain(scan[0], head_mask(scan[0]), own)
    brain = resample(brain[None], own, space)[0]
    return measures(resample(scan, own, space)[0], brain, true_lesions(path, real, MASKS[modality], space) & brain)


def compare(modality: str, real: Path, out_dir: Path) -> Iterator[dict]:
    """Rows of the table of a contrast; values that lie outside are bold."""
    stored = out_dir / f"{modality}.csv"
    if not stored.exists():
        drawn = [measure_drawn(index, modality) for index in progress(range(N_DRAWN), f"Drawing {modality}")]
        pd.DataFrame(drawn).to_csv(stored, index=False)
    found = pd.DataFrame([measure_real(path, real, modality) for path in sorted(real.rglob(SCANS[modality]))])
    for measure, (low, high) in pd.read_csv(stored).quantile(RANGE).items():
        values = found[measure].dropna()
        cells = ", ".join(f"{value:.3f}" if low <= value <= high else f"**{value:.3f}**" for value in values)
        within = f"{values.between(low, high).sum()} of {len(values)}"
        yield {modality: measure, "drawn": f"{low:.3f} to {high:.3f}", "real": cells, "in": within}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared/real")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for modality in SCANS:
        print_markdown(list(compare(modality, args.real, args.out_dir)))
    print_looks(args.out_dir / "looks.txt")


if __name__ == "__main__":
    main()
