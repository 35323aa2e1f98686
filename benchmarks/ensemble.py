"""Is the ensemble of a cross-validation's folds better than its members, on heads that none of them has seen?

    python benchmarks/ensemble.py --out_dir runs/ensemble                                      # trains the demo's folds
    python benchmarks/ensemble.py --out_dir runs/ensemble --cross_validation demo/StrokeFormer/demo   # trains nothing

Draws a synthetic cohort of each of ``--seeds`` at the networks' voxel size, and tests both stages of each fold and of
all folds together on it, with the true brains. Prints Dice and lesion F1 of each member, their mean and the ensemble's.
What is there already is not repeated. The program exits with 1 if the mean of the ensemble over the cohorts lies below
that of its members.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.heads import COHORTS, cross_validate, run
from models.checkpoints import read_grid
from models.cross_validation.results import fold_checkpoints

SCORES = ["dice", "lesion_f1"]
TRAINED = COHORTS[0]  # seed of the cohort that is trained on where no cross-validation is given, the demo's


def draw(folder: Path, seed: int, n_subjects: int, spacing_mm: tuple[float, float, float]) -> None:
    size = ["--n_subjects", n_subjects, "--spacing", *spacing_mm, "--seed", seed, "--num_workers", 2]
    run("-m", "data.phantom", "--out_dir", folder, *size)


def test(cohort: Path, name: str, ckpt_path: Path | str, rpn_ckpt_path: Path | str) -> None:
    """Score networks on a cohort under a name, unless that has been done."""
    scores_dir = cohort / "scores"
    if (scores_dir / "scores.csv").exists() and name in set(pd.read_csv(scores_dir / "scores.csv").model_name):
        return
    paths = ["--scans", cohort / "Scans", "--masks", cohort / "Masks", "--brains_dir", cohort / "TrueBrains"]
    networks = ["--ckpt_path", ckpt_path, "--rpn_ckpt_path", rpn_ckpt_path]
    results = ["--scores_dir", scores_dir, "--model_name", name, "--n_predictions", 0]
    run("test_strokeformer.py", *paths, *networks, *results)


def compare(cohort: Path, validation: Path) -> pd.DataFrame:
    """Scores on a cohort, a row each: of the members, by the number of their fold, and of the ensemble."""
    segmenters, proposers = (fold_checkpoints(validation, prefix) for prefix in ("", "rpn_"))
    for number, networks in enumerate(zip(segmenters, proposers, strict=True)):
        test(cohort, f"member {number}", *networks)
    test(cohort, "ensemble", validation, validation)
    return pd.read_csv(cohort / "scores/scores.csv").set_index("model_name")[SCORES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--cross_validation", type=Path, default=None, help="its folder, StrokeFormer/<model_prefix>")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="a cohort each")
    parser.add_argument("--n_subjects", type=int, default=30, help="of each cohort")
    args = parser.parse_args()
    out_dir = args.out_dir.absolute()
    if args.cross_validation is None:
        cross_validate(out_dir, TRAINED, [])
    validation = (args.cross_validation or out_dir / "S/demo").absolute()
    spacing_mm = read_grid(fold_checkpoints(validation, "")[0]).spacing_mm
    rows = {}
    for seed in args.seeds:
        cohort = out_dir / f"cohort-{seed}"
        draw(cohort, seed, args.n_subjects, spacing_mm)
        table = compare(cohort, validation)
        members = table.drop(index="ensemble")
        table.loc["mean of members"] = members.mean()
        rows[seed] = table.loc[[*members.index, "mean of members", "ensemble"]]
    by_cohort = pd.concat(rows, names=["cohort"])
    by_cohort.to_csv(out_dir / "ensemble.csv")
    means = by_cohort.groupby("model_name", sort=False).mean()
    print(by_cohort.round(3).to_string())
    print(f"\nmean of {len(rows)} cohorts of {args.n_subjects} subjects\n{means.round(3).to_string()}")
    gain = means.loc["ensemble"] - means.loc["mean of members"]
    print(f"ensemble - mean of members: {', '.join(f'{score} {gain[score]:+.3f}' for score in SCORES)}")
    sys.exit(bool((gain < 0).any()))


if __name__ == "__main__":
    main()
