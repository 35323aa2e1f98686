"""What the skull and the grid cost: measured on synthetic heads, whose brain and lesions are known.

    python benchmarks/heads.py brain   --out_dir runs/heads    # the brain found, against the true one
    python benchmarks/heads.py lesions --out_dir runs/heads    # where moved lesions go
    python benchmarks/heads.py skull   --out_dir runs/heads    # `make demo` with and without skull, three cohorts
    python benchmarks/heads.py grids   --out_dir runs/heads    # the demo's networks on other grids of the same heads

``grids`` uses the networks of ``skull``. What is there already is not repeated, so that calls may run beside each other
(with ``OMP_NUM_THREADS=1`` each).
"""

import argparse
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.files.names import brain_name
from data.files.space import Space
from data.files.volumes import read_volume
from data.scans.brain import find_brain
from data.scans.checks import read_mask, space_of
from data.scans.cohort import pair_cases
from data.scans.head import head_mask
from utils.scores.components import TWENTY_SIX_CONNECTED

SEEDS = {"brain": 9, "lesions": 31, "grids": 5}
HEADS = {"brain": 20, "lesions": 20, "grids": 10}
COHORTS = (7, 8, 9)  # of ``skull``; 7 is the demo's
SPACINGS = {"brain": (1, 2, 3), "lesions": (2,)}
GRIDS = {  # versions of the same heads: arguments of data.phantom
    "3 mm (training)": ["--spacing", "3"],
    "2 mm": ["--spacing", "2"],
    "1.5 mm": ["--spacing", "1.5"],
    "1 mm": ["--spacing", "1"],
    "3 x 1 x 1 mm (D H W)": ["--spacing", "3", "1", "1"],
    "3 mm, LPS": ["--spacing", "3"],
    "3 mm, oblique": ["--spacing", "3", "--oblique"],
}
DEMO = {"head": [], "stripped": ["--stripped"]}
SCORES = ["dice", "lesion_f1", "lesion_recall", "lesion_coverage", "proposed_fraction"]


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def draw(folder: Path, seed: int, n_subjects: int, *more: str) -> list:
    """The cases of a synthetic cohort, drawn unless it is there; all with lesions."""
    size = ["--n_subjects", n_subjects, "--seed", seed, "--healthy_fraction", 0, "--ext", ".nii.gz"]
    run("-m", "data.phantom", "--out_dir", folder, *size, *more)
    return pair_cases([folder / "Scans"], [folder / "Masks"])


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / max(np.count_nonzero(one) + np.count_nonzero(other), 1)


def true_brain(case) -> np.ndarray:
    folder = case.scan.parent.parent / "TrueBrains"
    return read_volume(folder / brain_name(case.scan)).array[0] > 0


# --- the brain -----------------------------------------------------------------------------------------


def measure_brain(out_dir: Path) -> None:
    rows = []
    for spacing in SPACINGS["brain"]:
        cases = draw(out_dir / f"brain-{spacing}mm", SEEDS["brain"], HEADS["brain"], "--spacing", str(spacing))
        rows += [{"spacing_mm": spacing, **_brain_row(case)} for case in cases]
    table = pd.DataFrame(rows)
    table.to_csv(out_dir / "brain.csv", index=False)
    print(table.groupby("spacing_mm")[["dice", "lesion_inside"]].agg(["count", "mean", "min"]).round(4).to_string())


def _brain_row(case) -> dict:
    scan, lesion, own = read_volume(case.scan).array[0], read_mask(case), space_of(case)
    brain = find_brain(scan, head_mask(scan), "T1w", own)
    inside = np.count_nonzero(lesion & brain) / np.count_nonzero(lesion)
    return {"scan": case.name, "dice": dice(brain, true_brain(case)), "lesion_inside": inside}


# --- moved lesions -------------------------------------------------------------------------------------


def measure_lesions(out_dir: Path) -> None:
    """The share of the voxels of moved lesions in the true brain of their new head, by mode."""
    rows, cohort = [], out_dir / "lesions"
    cases = draw(cohort, SEEDS["lesions"], HEADS["lesions"], "--spacing", str(SPACINGS["lesions"][0]))
    for mode in ("volume", "slice"):
        folders = ["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--ext", ".nii.gz"]
        run("-m", "augmentation", *folders, "--mode", mode, "--out_dir", out_dir / f"moved-{mode}")
        for case in cases:
            rows += [{"mode": mode, **row} for row in _moved(case, out_dir / f"moved-{mode}")]
    table = pd.DataFrame(rows)
    table.to_csv(out_dir / "lesions.csv", index=False)
    table["mostly_outside"] = table.inside < 0.5 * table.voxels
    sums = table.groupby("mode")[["voxels", "inside", "mostly_outside"]].sum()
    sums.insert(0, "lesions", table.groupby("mode").size())
    print(sums.assign(share_inside=(sums.inside / sums.voxels).round(4)).to_string())


def _moved(case, folder: Path) -> list[dict]:
    """Voxels of each new lesion of a case's copy, all of them and those in its true brain."""
    from scipy.ndimage import label

    masks = list((folder / "Masks").glob(f"{case.mask.name.removesuffix('.nii.gz')}_augmented-*"))
    new = [(read_volume(path).array[0] > 0) & ~read_mask(case) for path in masks]
    labelled = [label(mask, TWENTY_SIX_CONNECTED)[0] for mask in new]
    brain = true_brain(case)
    return [
        {"scan": case.name, "voxels": np.count_nonzero(one), "inside": np.count_nonzero(one & brain)}
        for labels in labelled
        for one in (labels == n for n in range(1, labels.max() + 1))
    ]


# --- with and without skull ----------------------------------------------------------------------------


def measure_skull(out_dir: Path, seeds: list[int]) -> None:
    for seed in seeds:
        for kind, more in DEMO.items():
            cross_validate(out_dir / f"{kind}-{seed}", seed, more)
    table = pd.concat(scores_of(out_dir / f"{kind}-{seed}", kind, seed) for seed in seeds for kind in DEMO)
    table.to_csv(out_dir / "skull.csv", index=False)
    means = table.pivot_table(index=["seed", "kind"], columns="score", values="value")[SCORES]
    print(means.round(3).to_string())
    print((means.xs("head", level="kind") - means.xs("stripped", level="kind")).round(3).to_string())
    print(means.groupby("kind").mean().round(3).to_string())


def cross_validate(folder: Path, seed: int, more: list[str]) -> None:
    """What ``make demo`` does, on a cohort of another seed."""
    if (folder / "sc/demo_summary.csv").exists():
        return
    size = ["--n_subjects", 96, "--spacing", 3, "--seed", seed, *more]
    run("-m", "data.phantom", "--out_dir", folder / "c", *size)
    cohort = ["--scans_dir", folder / "c/Scans", "--masks_dir", folder / "c/Masks"]
    names = ["--model_prefix", "demo", "--rpn_model_prefix", "demo"]
    places = ["--default_root_dir", folder / "S", "--rpn_default_root_dir", folder / "R"]
    scores = ["--scores_dir", folder / "sc", "--rpn_scores_dir", folder / "rsc"]
    run("cross_validation.py", "@recipes/demo.args", *cohort, *names, *places, *scores)


def scores_of(folder: Path, kind: str, seed: int) -> pd.DataFrame:
    table = pd.read_csv(folder / "sc/demo_summary.csv")
    return table.rename(columns={"mean": "value"}).assign(kind=kind, seed=seed)


# --- other grids ---------------------------------------------------------------------------------------


def measure_grids(out_dir: Path) -> None:
    """Dice of the demo's networks on versions of heads that they have never seen."""
    trained = out_dir / f"head-{COHORTS[0]}"
    networks = ["--ckpt_path", trained / "S/demo_fold-0/checkpoints/best.ckpt"]
    networks += ["--rpn_ckpt_path", trained / "R/demo_fold-0/checkpoints/best.ckpt"]
    table = {}
    for name, arguments in GRIDS.items():
        folder = out_dir / f"grids-{name.split(' (')[0].replace(' ', '').replace(',', '-')}"
        cases = draw(folder, SEEDS["grids"], HEADS["grids"], *arguments)
        if "LPS" in name:
            for path in [path for case in cases for path in (case.scan, case.mask)]:
                _turn(path, "LPS")
        paths = ["--scans", folder / "Scans", "--masks", folder / "Masks", "--scores_dir", folder / "scores"]
        run("test_strokeformer.py", *paths, *networks, "--model_name", "demo", "--n_predictions", 0)
        _require_own_grid(cases, folder / "scores/demo/predictions")
        table[name] = pd.read_csv(folder / "scores/per_scan_scores.csv").set_index("scan").dice
    table = pd.DataFrame(table)
    table.to_csv(out_dir / "grids.csv")
    means = table.mean().round(3)
    print(pd.DataFrame({"dice": means, "difference": means - means.iloc[0]}).to_string())


def _turn(path: Path, axes: str) -> None:
    image = nib.load(path)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    turned = type(image)(np.asarray(turned.dataobj), turned.affine, turned.header)  # read before it is overwritten
    nib.save(turned, path)


def _require_own_grid(cases: list, predictions: Path) -> None:
    for case in cases:
        scan, found = nib.load(case.scan), nib.load(predictions / f"{case.stem}_prediction.nii.gz")
        if not Space(scan.shape, scan.affine).is_close(Space(found.shape, found.affine)):
            raise SystemExit(f"the prediction of {case.name} does not lie on its scan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["brain", "lesions", "skull", "grids"])
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(COHORTS), help="cohorts of skull")
    args = parser.parse_args()
    out_dir = args.out_dir.absolute()
    if args.what == "skull":
        measure_skull(out_dir, args.seeds)
    else:
        {"brain": measure_brain, "lesions": measure_lesions, "grids": measure_grids}[args.what](out_dir)


if __name__ == "__main__":
    main()
