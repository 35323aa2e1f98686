"""What networks trained on synthetic scans alone make of real ones.

    python benchmarks/real.py lesions --real ../shared/real --out_dir runs/real               # ISLES 2022, DWI
    python benchmarks/real.py healthy --real ../shared/real --out_dir runs/real \\
        --ckpt_path .../best.ckpt --rpn_ckpt_path .../best.ckpt                               # a T1w head

``lesions`` trains both stages on a synthetic cohort by the recipe of the contrast, tests them on synthetic scans that
they never saw, and then on the real case. Nothing may be chosen by the real case: every look at it is written into
``looks.csv`` of the folder. What is there already is not repeated.
"""

import argparse
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.files.volumes import read_volume
from data.scans.cohort import pair_cases
from data.scans.folds import Fold, write_folds
from utils.scores.components import voxel_cm3

N_TRAIN, N_VAL, N_TEST = 50, 10, 24
SEED = 61
GRID = ["--scan_dim", "1", "73", "112", "112"]  # that of recipes/isles_*.args
ROI = ["--roi_size", "32", "32", "32"]  # theirs, too
SPACING = ["--spacing", "2", "2", "2"]  # of the networks, as data.prepare leaves ISLES 2022
MINUTES = ["--rpn_max_epochs", "4", "--max_epochs", "60"]  # in place of a GPU's hours
ISLES = ["--stripped", "--oblique", "--ext", ".nii.gz"]
COHORTS = {  # arguments of data.phantom; FLAIR has thick slices
    "dwi": ["--modality", "dwi", "--spacing", "2", *ISLES],
    "flair": ["--modality", "flair", "--spacing", "5", "1", "1", *ISLES],
}


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


# --- lesions -------------------------------------------------------------------------------------------


def segment_lesions(args: argparse.Namespace) -> None:
    folder = args.out_dir / args.contrast
    train(folder, args.contrast, args.num_workers)
    print(pd.read_csv(folder / "scores/synthetic_summary.csv").round(3).to_string(index=False))
    prepared = folder / "isles22"
    isles = ["--dataset", f"isles-{args.contrast}", "--root", args.real / "isles22"]
    run("-m", "data.prepare", *isles, "--ext", ".nii.gz", "--out_dir", prepared)
    report(look(folder, prepared), folder)


def train(folder: Path, contrast: str, num_workers: int) -> None:
    """Both stages on one fold of a synthetic cohort, tested on its remaining subjects."""
    if (folder / "scores/synthetic_summary.csv").exists():
        return
    size = ["--n_subjects", N_TRAIN + N_VAL + N_TEST, "--seed", SEED, "--num_workers", max(num_workers, 1)]
    run("-m", "data.phantom", "--out_dir", folder / "synthetic", *size, *COHORTS[contrast])
    scans, masks = folder / "synthetic/Scans", folder / "synthetic/Masks"
    subjects = [case.subject for case in pair_cases([scans], [masks])]
    parts = np.split(np.array(subjects), [N_TRAIN, N_TRAIN + N_VAL])
    write_folds(folder / "folds.json", [Fold(*(part.tolist() for part in parts))])
    cohort = ["--scans_dir", scans, "--masks_dir", masks, "--ext", ".nii.gz", "--folds", folder / "folds.json"]
    names = ["--model_prefix", "synthetic", "--rpn_model_prefix", "synthetic", "--offline"]
    places = ["--default_root_dir", folder / "StrokeFormer", "--rpn_default_root_dir", folder / "RPN"]
    scores = ["--scores_dir", folder / "scores", "--rpn_scores_dir", folder / "rpn_scores"]
    recipe = [f"@recipes/isles_{contrast}.args", *SPACING, *MINUTES, "--num_workers", num_workers]
    run("cross_validation.py", *recipe, *cohort, *names, *places, *scores)


def look(folder: Path, prepared: Path) -> int:
    """Test both stages on the real case and note it; how often that has been done by now."""
    cohort = ["--scans_dir", prepared / "Scans", "--masks_dir", prepared / "Masks", "--ext", ".nii.gz"]
    networks = [folder / f"{stage}/synthetic_fold-0/checkpoints/best.ckpt" for stage in ("StrokeFormer", "RPN")]
    slices, results = folder / "slices", ["--model_name", "real", "--n_predictions"]
    run("-m", "data.slices", *cohort, *GRID, *SPACING, "--out_dir", slices)
    run(
        *["test_rpn.py", "--scans", slices / "Scans", "--masks", slices / "Masks", "--ckpt_path", networks[1]],
        *[*ROI, "--scores_dir", folder / "real_rpn", *results, 10],
    )
    run(
        *["test_strokeformer.py", "--scans", prepared / "Scans", "--masks", prepared / "Masks"],
        *["--ckpt_path", networks[0], "--rpn_ckpt_path", networks[1], "--scores_dir", folder / "real", *results, 1],
    )
    looks = folder.parent / "looks.csv"
    earlier = pd.read_csv(looks) if looks.exists() else pd.DataFrame()
    scores = pd.read_csv(folder / "real/scores.csv").iloc[0]
    new = {"at": f"{datetime.now():%Y-%m-%d %H:%M}", "contrast": folder.name, "dice": scores.dice}
    pd.concat([earlier, pd.DataFrame([new])]).to_csv(looks, index=False)
    return len(earlier) + 1


def report(n_looks: int, folder: Path) -> None:
    """What was found of the real case's lesions, the largest first."""
    covered = pd.read_csv(folder / "real_rpn/rpn_per_lesion_scores.csv").sort_values("voxels", ascending=False)
    lesions = pd.read_csv(folder / "real/per_lesion_scores.csv").sort_values("voxels", ascending=False)
    true, false = (lesions[lesions.kind == kind] for kind in ("lesion", "false_lesion"))
    table = true[["slice", "volume_cm3", "found", "dice"]].reset_index(drop=True)
    table["covered"] = covered.covered.to_numpy()
    scores, proposed = (pd.read_csv(folder / name).iloc[0] for name in ("real/scores.csv", "real_rpn/rpn_scores.csv"))
    print(table.round(3).to_string(index=False))
    found = f"{true.found.astype(bool).sum()} of {len(true)} lesions found"
    share = proposed.proposed_fraction
    print(f"Stage 1 covers {proposed.lesion_coverage:.2f} of the lesion voxels and proposes {share:.2f} of the brain")
    print(f"Dice {scores.dice:.3f}; {found}, {len(false)} false ones of {false.volume_cm3.sum():.2f} cm3")
    print(f"The real case has been looked at {n_looks} times; pictures are in {folder / 'real/real/predictions'}")


# --- the healthy head ----------------------------------------------------------------------------------


def segment_head(args: argparse.Namespace) -> None:
    """What trained networks take for lesion in a head without any, and how much of it lies outside the brain."""
    path, scores = args.real / "t1w/sub-head_T1w.nii.gz", args.out_dir / "healthy"
    networks = ["--ckpt_path", args.ckpt_path, "--rpn_ckpt_path", args.rpn_ckpt_path]
    run("test_strokeformer.py", "--scans", path, *networks, "--scores_dir", scores, "--model_name", "real")
    prediction = read_volume(scores / "real/predictions/sub-head_T1w_prediction.nii.gz")
    brain = read_volume(next((scores / "real/brains").glob("sub-head_T1w_*"))).array[0] > 0
    found, one_cm3 = prediction.array[0] > 0, voxel_cm3(prediction.spacing_mm)
    print(
        f"healthy head: {found.sum() * one_cm3:.2f} cm3 predicted, {(found & ~brain).sum() * one_cm3:.2f} cm3 "
        f"outside its brain of {brain.sum() * one_cm3:.0f} cm3"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lesions", "healthy"])
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared/real", help="folder of the real scans")
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--contrast", choices=COHORTS, default="dwi", help="of lesions")
    parser.add_argument("--num_workers", type=int, default=0, help="of lesions")
    parser.add_argument("--ckpt_path", type=Path, default=None, help="of healthy: stage 2, trained on T1w heads")
    parser.add_argument("--rpn_ckpt_path", type=Path, default=None, help="of healthy: its stage 1")
    args = parser.parse_args()
    if args.what == "healthy" and not (args.ckpt_path and args.rpn_ckpt_path):
        parser.error("healthy needs --ckpt_path and --rpn_ckpt_path")
    args.real, args.out_dir = args.real.absolute(), args.out_dir.absolute()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = parse_args()
    {"lesions": segment_lesions, "healthy": segment_head}[args.what](args)


if __name__ == "__main__":
    main()
