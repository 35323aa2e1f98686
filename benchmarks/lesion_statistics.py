"""How the lesions of the synthetic cohort compare with real ones: their number, volume, side and artery.

    python benchmarks/lesion_statistics.py --lesions ../shared/lesions

`--lesions` holds `masks/` in MNI152 and `ArterialAtlas136.nii.gz`. Lesions are drawn at 1 mm on the template itself, by
the laws alone. Those for T1w are compared with what is published of ATLAS v2.0.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from common import ROOT, print_markdown
from scipy.ndimage import label

from data.phantom.heads import ORIGIN_MM, Grid, Head, load_templates
from data.phantom.lesions import draw_lesions
from data.phantom.statistics import ACUTE, CHRONIC, QUANTILES, Law, even_numbers
from utils.progress import progress
from utils.scores.masks import TWENTY_SIX_CONNECTED

N_SCANS, SEED = 500, 0
ONE_SIDED, SMALL_CM3 = 0.97, 0.03  # share of a scan's volume; of ATLAS's lesions 28 % are smaller
ATLAS = {"volume": (0.14, np.nan, 4.3, np.nan, 136), "number": (np.nan, np.nan, 2, np.nan, 8), "small": (0.28,)}
# The atlas has a label for each on each side: cerebral arteries and their parts, perforators, hindbrain, ventricle.
ARTERIES = ["ACA", "MLS", "LLS", *(f"MCA {part}" for part in "FPTOI"), "PCA T", "PCA O", "PCTP", "ACTP"]
ARTERIES += ["basilar", "SCA", "ICA", "ventricle"]


def measure(mask: np.ndarray, affine: np.ndarray, atlas: nib.Nifti1Image) -> tuple[np.ndarray, bool, int]:
    """Of a (H, W, D) mask: the volumes of its lesions in cm3, whether it is one-sided, and its main artery."""
    volumes = np.bincount(label(mask, TWENTY_SIX_CONNECTED)[0].ravel())[1:] * abs(np.linalg.det(affine)) / 1000
    places = nib.affines.apply_affine(affine, np.argwhere(mask))
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(atlas.affine), places)).astype(int)
    voxels = voxels[((voxels >= 0) & (voxels < atlas.shape)).all(1)]
    counts = np.bincount((np.asarray(atlas.dataobj)[tuple(voxels.T)].astype(int) + 1) // 2, minlength=17)
    right = np.mean(places[:, 0] > 0)
    return volumes, bool(max(right, 1 - right) >= ONE_SIDED), int(counts[1:].argmax())


def draw(index: int, law: Law, atlas: nib.Nifti1Image) -> tuple[np.ndarray, bool, int]:
    tissue = sum(load_templates()[name] for name in ("gm", "wm")) > 0.5
    head = Head(Grid((1.0, 1.0, 1.0)), np.indices(tissue.shape, np.float32), *[tissue] * 5)
    opacity = draw_lesions(head, law, even_numbers(SEED, index), 0.5, np.random.default_rng([SEED, index, 1]))
    return measure(opacity > 0.5, nib.affines.from_matvec(np.eye(3), -np.array(ORIGIN_MM)), atlas)


def summary(scans: list[tuple]) -> dict[str, np.ndarray]:
    """Quantiles of volume, number and volumes of lesions; shares of small ones, one-sided scans and arteries."""
    volumes, one_sided, arteries = zip(*scans, strict=True)
    lesions, shares = np.concatenate(volumes), np.bincount(arteries, minlength=len(ARTERIES)) / len(scans)
    values = {"volume": [v.sum() for v in volumes], "number": [len(v) for v in volumes], "lesion": lesions}
    means = {"small": [np.mean(lesions < SMALL_CM3)], "one-sided": [np.mean(one_sided)]}
    quantiles = {name: np.quantile(of, QUANTILES) for name, of in values.items()}
    return quantiles | means | dict(zip(ARTERIES, shares[:, None], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=Path, default=ROOT.parent / "shared/lesions")
    folder, rows = parser.parse_args().lesions, []
    atlas = nib.load(folder / "ArterialAtlas136.nii.gz")
    images = map(nib.load, progress(sorted((folder / "masks").glob("*.nii.gz")), "Real masks"))
    real = summary([measure(np.asarray(image.dataobj) > 0, image.affine, atlas) for image in images])
    for name, law, known in (("acute", ACUTE, real), ("ATLAS", CHRONIC, ATLAS)):
        drawn = summary([draw(i, law, atlas) for i in progress(range(N_SCANS), "Drawn scans")])
        for what, values in known.items():
            pair = np.array([values, drawn[what]])
            against = pair[1] - pair[0] if len(values) == 1 else pair[1] / pair[0]  # of shares, of quantiles
            cells = [" / ".join(f"{value:.3g}" for value in each) for each in (*pair, against)]
            rows.append(dict(zip(["", "real", "drawn", "against"], [f"{name}, {what}", *cells], strict=True)))
    print_markdown(rows)


if __name__ == "__main__":
    main()
