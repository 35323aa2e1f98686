"""What networks trained on synthetic scans alone make of a real one.

    python benchmarks/real.py --real ../shared/real --out_dir runs/real    # ISLES 2022, DWI

Trains both stages on a synthetic cohort by the recipe of the contrast, tests them on synthetic scans that they never
saw, and then on the real case. Nothing may be chosen by the real case: every look at it is written into ``looks.csv``
of the folder. What is there already is not repeated.
"""

import argparse
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from common import ROI, ROOT, draw, print_markdown, run

from data.scans.folds import Fold, write_folds

N_TRAIN, N_VAL, N_TEST = 50, 10, 24
SEED = 61
GRID = ["--scan_dim", 1, 73, 112, 112, "--spacing", 2, 2, 2]  # of recipes/isles_*.args, as data.prepare leaves ISLES
MINUTES = ["--rpn_max_epochs", 4, "--max_epochs", 60]  # in place of a GPU's hours
SPACINGS_MM = {"dwi": (2, 2, 2), "flair": (5, 1, 1)}  # of the synthetic scans; FLAIR has thick slices


def train(folder: Path, contrast: str, num_workers: int) -> None:
    """Both stages on one fold of a synthetic cohort, tested on its remaining subjects."""
    if (folder / "scores/synthetic_summary.csv").exists():
        return
    look = ["--modality", contrast, "--stripped", "--oblique", "--ext", ".nii.gz"]
    n_subjects, spacing_mm = N_TRAIN + N_VAL + N_TEST, SPACINGS_MM[contrast]
    cases = draw(folder / "synthetic", SEED, n_subjects, *look, spacing_mm=spacing_mm)
    parts = np.split(np.array([case.subject for case in cases]), [N_TRAIN, N_TRAIN + N_VAL])
    write_folds(folder / "folds.json", [Fold(*(part.tolist() for part in parts))])
    run(
        *["cross_validation.py", f"@recipes/isles_{contrast}.args", *GRID, *MINUTES, "--num_workers", num_workers],
        *[*folders(folder / "synthetic"), "--folds", folder / "folds.json", "--offline"],
        *["--model_prefix", "synthetic", "--default_root_dir", folder / "StrokeFormer"],
        *["--rpn_model_prefix", "synthetic", "--rpn_default_root_dir", folder / "RPN"],
        *["--scores_dir", folder / "scores", "--rpn_scores_dir", folder / "rpn_scores"],
    )


def folders(cohort: Path) -> list:
    return ["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--ext", ".nii.gz"]


def test(folder: Path, contrast: str, real: Path) -> None:
    """Test both stages on the real case, and note that it was looked at."""
    rpn, network = (folder / f"{stage}/synthetic_fold-0/checkpoints/best.ckpt" for stage in ("RPN", "StrokeFormer"))
    cohort, slices, name = folder / "isles22", folder / "slices", ["--model_name", "real"]
    isles = ["--dataset", f"isles-{contrast}", "--root", real / "isles22"]
    run("-m", "data.prepare", *isles, "--ext", ".nii.gz", "--out_dir", cohort)
    run("-m", "data.slices", *folders(cohort), *GRID, "--out_dir", slices)
    run(
        *["test_rpn.py", "--scans", slices / "Scans", "--masks", slices / "Masks", "--ckpt_path", rpn, *ROI],
        *["--scores_dir", folder / "real_rpn", *name, "--n_predictions", 10],
    )
    run(
        *["test_strokeformer.py", "--scans", cohort / "Scans", "--masks", cohort / "Masks", "--ckpt_path", network],
        *["--rpn_ckpt_path", rpn, "--scores_dir", folder / "real", *name, "--n_predictions", 1],
    )
    looks = folder.parent / "looks.csv"
    dice = pd.read_csv(folder / "real/scores.csv").dice[0]
    new = pd.DataFrame([{"at": f"{datetime.now():%Y-%m-%d %H:%M}", "contrast": folder.name, "dice": dice}])
    new.to_csv(looks, mode="a", header=not looks.exists(), index=False)


def print_tables(folder: Path) -> None:
    """Scores of the synthetic test scans; then what was detected of the real case's lesions, the largest first."""
    print_markdown(pd.read_csv(folder / "scores/synthetic_summary.csv").round(3).to_dict("records"))
    covered = pd.read_csv(folder / "real_rpn/rpn_per_lesion_scores.csv").sort_values("voxels", ascending=False)
    lesions = pd.read_csv(folder / "real/per_lesion_scores.csv").sort_values("voxels", ascending=False)
    true, false = (lesions[lesions.kind == kind] for kind in ("lesion", "false_lesion"))
    table = true[["slice", "volume_cm3", "found", "dice"]].reset_index(drop=True)
    print()
    print_markdown(table.assign(covered=covered.covered.to_numpy()).round(3).to_dict("records"))
    scores, proposed = (pd.read_csv(folder / name).iloc[0] for name in ("real/scores.csv", "real_rpn/rpn_scores.csv"))
    share = proposed.proposed_fraction
    print(f"\nStage 1 covers {proposed.lesion_coverage:.2f} of the lesion voxels and proposes {share:.2f} of the brain")
    found = f"{true.found.astype(bool).sum()} of {len(true)} lesions found"
    print(f"Dice {scores.dice:.3f}; {found}, {len(false)} false ones of {false.volume_cm3.sum():.2f} cm3")
    n_looks = len(pd.read_csv(folder.parent / "looks.csv"))
    print(f"The real case has been looked at {n_looks} times; pictures are in {folder / 'real/real/predictions'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared/real", help="folder that holds isles22/")
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--contrast", choices=SPACINGS_MM, default="dwi")
    parser.add_argument("--num_workers", type=int, default=0)
    args = parser.parse_args()
    folder = args.out_dir.absolute() / args.contrast
    train(folder, args.contrast, args.num_workers)
    test(folder, args.contrast, args.real.absolute())
    print_tables(folder)


if __name__ == "__main__":
    main()
