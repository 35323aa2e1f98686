"""Whether augmented scans help stage 1 that has few subjects to learn from: none, ``slice`` and ``volume`` compared.

    python benchmarks/augmentation_gain.py --out_dir runs/gain --seeds 42 1 2

Eight training subjects, five validation and thirty test subjects of synthetic cohorts at 2 mm, each of its own seed.
All arms see the same subjects and take about the same number of optimiser steps. ``gain.csv`` in the folder gets a
row for each arm and seed: the test scores at the calibrated threshold, and the largest lesion recall at which at most
25 and 35 % of the brain are proposed. What is there already is not repeated.
"""

import argparse
import sys
from pathlib import Path

from proposals import FULL, GRID, ROI, add_rows, draw, run, summarise, test

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.datamodules import StackedScans
from data.slices import read_slice_table
from models.calibration import coverage_curve
from models.checkpoints import load_rpn

COHORTS = {"train": (41, 8), "val": (42, 5), "test": (43, 30)}  # seed and subjects
ARMS, COPIES = ("none", "slice", "volume"), 2
BUDGETS = (0.25, 0.35)
BATCH_SIZE = int(FULL["--batch_size"])


def prepare(out_dir: Path) -> None:
    """The cohorts, the augmented training scans, and the slices of all."""
    for part, (seed, n) in COHORTS.items():
        draw(out_dir / part, seed, n)
    for mode in ARMS[1:]:
        folders = ["--scans_dir", out_dir / "train/Scans", "--masks_dir", out_dir / "train/Masks"]
        run("-m", "augmentation", *folders, "--out_dir", out_dir / mode, "--mode", mode, "--copies", COPIES)
    for part in (*COHORTS, *ARMS[1:]):
        if not (out_dir / part / "slices/slices.csv").exists():
            folders = ["--scans_dir", out_dir / part / "Scans", "--masks_dir", out_dir / part / "Masks"]
            run("-m", "data.slices", *folders, *GRID, "--out_dir", out_dir / part / "slices")


def training_slices(out_dir: Path, arm: str) -> Path:
    """A folder with links to the training slices of an arm."""
    folder = out_dir / f"train-{arm}"
    for part in ["train"] if arm == "none" else ["train", arm]:
        for path in (out_dir / part / "slices").glob("*/*.npy"):
            link = folder / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.absolute())
    return folder


def train(out_dir: Path, arm: str, seed: int, steps: int) -> Path:
    """The best checkpoint of an arm after about so many steps."""
    slices, val = training_slices(out_dir, arm), out_dir / "val/slices"
    sick = (read_slice_table(slices / "Scans", slices / "Masks").lesion_voxels > 0).sum()
    max_epochs = max(1, round(steps / (2 * sick / BATCH_SIZE)))
    name = f"{arm}_seed-{seed}"
    run(
        *["train_rpn.py", "--train_scans", slices / "Scans", "--train_masks", slices / "Masks"],
        *["--val_scans", val / "Scans", "--val_masks", val / "Masks", *ROI],
        *[word for argument, value in FULL.items() for word in (argument, *value.split())],
        *["--seed", seed, "--max_epochs", max_epochs, "--patience", max_epochs, "--num_samples", 0, "--offline"],
        *["--model_prefix", name, "--default_root_dir", out_dir / "RPN"],
    )
    return out_dir / "RPN" / name / "checkpoints/best.ckpt"


def recall_within_budgets(out_dir: Path, checkpoint: Path) -> dict[str, float]:
    slices = out_dir / "test/slices"
    scans = StackedScans(read_slice_table(slices / "Scans", slices / "Masks"))
    curve = coverage_curve(load_rpn(checkpoint), scans, tuple(map(int, ROI[1:])))
    return {f"recall_at_{b}": curve.lesion_recall[curve.proposed_fraction <= b].max() for b in BUDGETS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=ARMS)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    out_dir = args.out_dir.absolute()
    prepare(out_dir)
    for seed in args.seeds:
        for arm in args.arms:
            checkpoint = train(out_dir, arm, seed, args.steps)
            row = {"variant": arm, "seed": seed, "cohort": "test", **test(out_dir, checkpoint, "test")}
            table = add_rows(out_dir / "gain.csv", [{**row, **recall_within_budgets(out_dir, checkpoint)}])
    print(summarise(table, *(f"recall_at_{b}" for b in BUDGETS)))


if __name__ == "__main__":
    main()
