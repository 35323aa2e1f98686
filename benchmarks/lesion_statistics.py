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

N_SCANS, SEED = 500, 0
ONE_SIDED, SMALL_CM3 = 0.97, 0.03  # share of a scan's volume; of ATLAS's lesions 28 % are smaller
ATLAS = {"volume": (0.14, np.nan, 4.3, np.nan, 136), "number": (np.nan, np.nan, 2, np.nan, 8), "small": (0.28,)}
# The atlas has a label for each on each side: cerebral arteries and their parts, perforators, hindbrain, ventricle.
ARTERIES = ["ACA", "MLS", "LLS", "MCA F", "MCA P", "MCA T", "MCA O", "MCA I", "PCA T", "PCA O", "PCTP", "ACTP"]
ARTERIES += ["basilar", "SCA", "ICA", "ventricle"]


def measure(mask: np.ndarray, affine: np.ndarray, atlas: nib.Nifti1Image) -> tuple[np.ndarray, bool, int]:
    """Of a (H, W, D) mask: the volumes of its lesions in cm3, whether it is one-sided, and its main artery."""
    volumes = np.bincount(label(mask, np.ones((3, 3, 3)))[0].ravel())[1:] * abs(np.linalg.det(affine)) / 1000
    places = nib.affines.apply_affine(affine, np.argwhere(mask))
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(atlas.affine), places)).astype(int)
    voxels = voxels[((voxels >= 0) & (voxels < atlas.shape)).all(1)]
    counts = np.bincount((np.asarray(atlas.dataobj)[tuple(voxels.T)].astype(int) + 1) // 2, minlength=17)
    right = np.mean(places[:, 0] > 0)
    return volumes, bool(max(right, 1 - right) >= ONE_SIDED), int(counts[1:].argmax())


def draw(index: int, law: Law) -> np.ndarray:
    """(H, W, D) bool mask of a scan's lesions on the template."""
    maps = load_templates()
    tissue = maps["gm"] + maps["wm"] > 0.5
    head = Head(Grid((1.0, 1.0, 1.0)), np.indices(tissue.shape, np.float32), *[tissue] * 5)
    return draw_lesions(head, law, even_numbers(SEED, index), 0.5, np.random.default_rng([SEED, index, 1])) > 0.5


def summary(scans: list[tuple]) -> dict[str, np.ndarray]:
    """Quantiles of volume, number and volumes of lesions; shares of small ones, one-sided scans and arteries."""
    volumes, one_sided, arteries = zip(*scans, strict=True)
    lesions, shares = np.concatenate(volumes), np.bincount(arteries, minlength=len(ARTERIES)) / len(scans)
    values = {"volume": [v.sum() for v in volumes], "number": [len(v) for v in volumes], "lesion": lesions}
    means = {"small": [np.mean(lesions < SMALL_CM3)], "one-sided": [np.mean(one_sided)]}
    return (
        {k: np.quantile(v, QUANTILES) for k, v in values.items()}
        | means
        | dict(zip(ARTERIES, shares[:, None], strict=True))
    )


def print_comparison(known: dict, drawn: dict) -> None:
    rows = []
    for name, values in known.items():
        real, ours = np.array(values), np.array(drawn[name])
        against = [f"{b - a:+.3f}" if len(real) == 1 else f"{b / a:.2f}" for a, b in zip(real, ours, strict=True)]
        cells = [" / ".join(f"{value:.3g}" for value in each) for each in (real, ours)]
        rows.append(dict(zip(["", "real", "drawn", "against"], [name, *cells, " / ".join(against)], strict=True)))
    print_markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=Path, default=ROOT.parent / "shared/lesions")
    folder = parser.parse_args().lesions
    atlas = nib.load(folder / "ArterialAtlas136.nii.gz")
    images = map(nib.load, progress(sorted((folder / "masks").glob("*.nii.gz")), "Real masks"))
    real = summary([measure(np.asarray(image.dataobj) > 0, image.affine, atlas) for image in images])
    to_mni = nib.affines.from_matvec(np.eye(3), -np.array(ORIGIN_MM))
    for law, known in ((ACUTE, real), (CHRONIC, ATLAS)):
        print_comparison(
            known, summary([measure(draw(i, law), to_mni, atlas) for i in progress(range(N_SCANS), "Drawn scans")])
        )


if __name__ == "__main__":
    main()
