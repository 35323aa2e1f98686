"""Do real scans look like drawn ones? Field, noise, edges and contrasts of both, by the same code.

    python benchmarks/likeness.py --real ../shared/real --out_dir runs/likeness

Measures every scan of a contrast in the folder, its lesion masked out, and 100 synthetic ones, all on voxels of 2 mm.
A real scan is in where it lies within the 2.5 to 97.5 % range of the drawn ones. Nothing may be fitted to single scans:
each run is a look at them, and is counted in ``looks.csv`` of the folder. The drawn ones are measured once.
"""

import argparse
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from common import ROOT, SPACING_MM, print_markdown
from scipy.ndimage import binary_dilation, binary_erosion, convolve, find_objects

from data.files.space import Space, coarse_space, resample
from data.phantom.cohort import make_subject
from data.scans.brain import find_brain
from data.scans.head import head_mask
from data.settings import PhantomSettings
from utils.progress import map_in_order

N_DRAWN, RANGE = 100, (0.025, 0.975)
DEGREE, ROUNDS, TISSUE = 3, 8, (0.4, 2.5)  # of the fitted field; intensities of tissue, as shares of their median
POWERS = np.array([p for p in np.ndindex(*[DEGREE + 1] * 3) if sum(p) <= DEGREE])
LAPLACIAN = np.outer([1, -2, 1], [1, -2, 1])[None] / 6  # of Immerkaer (1996, 10.1006/cviu.1996.0060): passes noise
SCANS = {"t1w": "*_T1w", "flair": "*_[Ff][Ll][Aa][Ii][Rr]", "dwi": "*_dwi"}
MASKS = {"t1w": ["*Chronic_mask"], "flair": ["*msk"], "dwi": ["*msk", "*Acute_mask"]}


def fit_field(log: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """(D, H, W) log of the receive field: a polynomial over the volume, fitted to tissue that is not far off it."""
    chosen = np.argwhere(tissue)[::8]
    terms = ((2 * chosen / (np.array(log.shape) - 1) - 1)[:, None] ** POWERS).prod(2)
    values, used = log[tuple(chosen.T)], np.ones(len(chosen), bool)
    for _ in range(ROUNDS):
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
    tissue = normal & (share > TISSUE[0]) & (share < TISSUE[1])
    field = fit_field(np.log(np.clip(share, 0.01, None)), tissue)
    field -= field[brain].mean()
    flat = share * np.exp(-field)
    flat /= np.median(flat[tissue])
    return field_measures(field, brain) | intensity_measures(flat, normal, binary_erosion(tissue), lesion, brain)


def field_measures(field: np.ndarray, brain: np.ndarray) -> dict[str, float]:
    z, right, front = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in brain.shape)]

    def across(part: np.ndarray, axis: np.ndarray) -> float:
        return field[part & (axis > 0)].mean() - field[part & (axis < 0)].mean()

    return {
        "field: spread": field[brain].std(),
        "field: brightest": np.percentile(field[brain], 99),
        "field: left against right": abs(across(brain, right)),
        "field: left against right, low behind": abs(across(brain & (front < 0) & (z < 0), right)),
        "field: front minus back": across(brain, front),
        "field: vertex": field[-10:][brain[-10:]].mean(),  # 20 mm
    }


def intensity_measures(flat, normal, deep, lesion, brain) -> dict[str, float]:
    """Of intensities without field, (D, H, W) as the masks of normal brain, tissue off its border, lesion and brain."""
    steps = [np.abs(np.diff(flat, axis=axis, append=0))[deep].mean() for axis in range(3)]
    values = {
        "noise": 1.48 * np.median(np.abs(convolve(flat, LAPLACIAN))[deep]),
        "edges: in plane": (steps[1] + steps[2]) / 2,
        "edges: across slices, relative": 2 * steps[0] / (steps[1] + steps[2]),
        **{f"tissue: {share} %": np.percentile(flat[normal], share) for share in (5, 25, 75, 99)},
    }
    if lesion.sum() > 20:
        around = binary_dilation(lesion, iterations=3) & ~binary_dilation(lesion) & brain
        values["lesion: median against around"] = np.median(flat[lesion]) / np.median(flat[around])
        values["lesion: spread"] = np.subtract(*np.percentile(flat[lesion], (75, 25)))
    return values


def measure_drawn(index: int, modality: str, variety: float) -> dict[str, float]:
    settings = PhantomSettings(modality=modality, variety=variety, spacing=(SPACING_MM,) * 3, stripped=True, seed=1)
    subject = make_subject(settings, index)
    return measures(subject.scan[0], subject.brain, (subject.mask[0] > 0) & subject.brain)


def read(path: Path) -> tuple[np.ndarray, Space]:
    """(1, D, H, W) float32 with axes towards superior, right and anterior."""
    image = nib.as_closest_canonical(nib.load(path))
    array = np.asarray(image.dataobj, np.float32).reshape(image.shape[:3]).transpose(2, 0, 1)
    return array[None], Space(array.shape, image.affine)


def measure_real(path: Path, real: Path, modality: str) -> dict[str, float]:
    scan, own = read(path)
    brain, space = find_brain(scan[0], head_mask(scan[0]), None, own), coarse_space(own, SPACING_MM)
    lesion, subject = np.zeros(space.shape, bool), path.name.split("_")[0]
    for mask in (mask for kind in MASKS[modality] for mask in real.rglob(f"{subject}_{kind}.nii.gz")):
        array, its = read(mask)
        lesion |= resample(array > 0.5, its, space)[0]
    brain = resample(brain[None], own, space)[0]
    return measures(resample(scan, own, space)[0], brain, lesion & brain)


def compare(modality: str, args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the table of a contrast."""
    stored = args.out_dir / f"{modality}_{args.variety:g}.csv"
    if not stored.exists():
        draw = partial(measure_drawn, modality=modality, variety=args.variety)
        pd.DataFrame(map_in_order(draw, range(N_DRAWN), 1, f"Drawing {modality}")).to_csv(stored, index=False)
    paths = sorted(path for path in args.real.rglob(f"{SCANS[modality]}.nii.gz") if "rec-ADC" not in path.name)
    real = pd.DataFrame([measure_real(path, args.real, modality) for path in paths])
    for measure, (low, high) in pd.read_csv(stored).quantile(RANGE).items():
        is_in = {f"{v:.3f}": bool(low <= v <= high) for v in real[measure].dropna()}
        cells = ", ".join(v if inside else f"**{v}**" for v, inside in is_in.items())
        drawn, within = f"{low:.3f} to {high:.3f}", f"{sum(is_in.values())} of {len(is_in)}"
        yield {"contrast": modality, "measure": measure, "drawn": drawn, "real": cells, "in": within}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared/real")
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--variety", type=float, default=0.5)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    print_markdown([row for modality in SCANS for row in compare(modality, args)])
    looks = args.out_dir / "looks.csv"
    new = pd.DataFrame([{"at": f"{datetime.now():%Y-%m-%d %H:%M}", "variety": args.variety}])
    new.to_csv(looks, mode="a", header=not looks.exists(), index=False)
    print(f"The real scans have been looked at {len(pd.read_csv(looks))} times; what lies outside is bold")


if __name__ == "__main__":
    main()
