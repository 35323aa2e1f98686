"""Train and test stage 1 on synthetic cohorts at 2 mm, alone or as a row of an ablation.

    python benchmarks/proposals.py --out_dir runs/proposals                    # the method as the README advises it
    python benchmarks/proposals.py --out_dir runs/proposals --variant grouped  # the same with one thing changed
    python benchmarks/proposals.py --out_dir runs/proposals --test_seeds 62 63 # the trained model on other cohorts

Three cohorts of their own seeds: 40 training and 10 validation subjects; 30 test subjects drawn alike; 30 shifted ones,
with stronger warps and fainter lesions. Everything runs through the scripts, and what is there already is not repeated.
``proposals.csv`` in the folder gets a row for each variant, seed and test cohort; mean and standard deviation over the
seeds are printed.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.cohort import Case, pair_cases

GRID = ["--scan_dim", "1", "94", "98", "116"]
ROI = ["--roi_size", "32", "32", "32"]
N_TRAIN, N_VAL, N_TEST = 40, 10, 30
TRAIN_SEED = 21
SCORES = ["lesion_coverage", "lesion_recall", "small_lesion_recall", "proposed_fraction"]
SHIFT = ["--warp_mm", "5", "--lesion_contrast", "0.8"]
FULL = {"--dataset_anchors": "auto", "--transforms": "flip affine contrast", "--lr": "1e-3", "--batch_size": "16"}
# What each variant changes in the full method; None leaves an argument out. From top to bottom of the first four, the
# published method becomes ours.
VARIANTS = {
    "published": {
        "--dataset_anchors": "ATLAS",
        "--transforms": None,
        "--ema_decay": "0",
        "--consistency": "grouped",
    },
    "anchors": {"--transforms": None, "--ema_decay": "0", "--consistency": "grouped"},
    "grouped": {"--consistency": "grouped"},
    "full": {},
    "atlas_anchors": {"--dataset_anchors": "ATLAS"},
    "no_transforms": {"--transforms": None},
    "no_ema": {"--ema_decay": "0"},
    "native_size": {"--image_size": "98"},
    "lesion_contrast": {"--transforms": "flip affine contrast lesion_contrast"},
    "context": {"--context": "neighbours mirror"},
    "hard_negatives": {"--hard_negatives": "0.5"},
    "focal": {"--focal": ""},
    "label_smoothing": {"--label_smoothing": "0.1"},
}


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def draw_cohorts(out_dir: Path, test_cohorts: dict[str, list]) -> None:
    """The cohorts, and the 2D slices of ``train``, ``val`` and each test cohort."""
    draw(out_dir / "development", TRAIN_SEED, N_TRAIN + N_VAL)
    cases = pair_cases([out_dir / "development/Scans"], [out_dir / "development/Masks"])
    link_cases(cases[:N_TRAIN], out_dir / "train")
    link_cases(cases[N_TRAIN:], out_dir / "val")
    for name, arguments in test_cohorts.items():
        draw(out_dir / name, *arguments)
    for part in ("train", "val", *test_cohorts):
        if not (out_dir / part / "slices/slices.csv").exists():
            folders = ["--scans_dir", out_dir / part / "Scans", "--masks_dir", out_dir / part / "Masks"]
            run("-m", "data.slices", *folders, *GRID, "--out_dir", out_dir / part / "slices")


def draw(folder: Path, seed: int, n_subjects: int, *more: str) -> None:
    command = ["-m", "data.phantom", "--out_dir", folder, "--n_subjects", n_subjects, "--spacing", 2, "--seed", seed]
    run(*command, "--num_workers", 2, *more)


def link_cases(cases: list[Case], folder: Path) -> None:
    for path in (path for case in cases for path in (case.scan, case.mask)):
        link = folder / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.absolute())
    (folder / "cohort.csv").write_bytes((cases[0].scan.parent.parent / "cohort.csv").read_bytes())


def train(out_dir: Path, variant: str, seed: int, max_epochs: int) -> tuple[Path, float | None]:
    """The trained checkpoint of a variant, and the minutes that its training took; None if it was there already."""
    arguments = {**FULL, **VARIANTS[variant]}
    chosen = [word for name, value in arguments.items() if value is not None for word in (name, *value.split())]
    parts = [
        word
        for part in ("train", "val")
        for kind in ("Scans", "Masks")
        for word in (f"--{part}_{kind.lower()}", out_dir / part / "slices" / kind)
    ]
    folder = out_dir / "RPN" / f"{variant}_seed-{seed}"
    trained, started = (folder / "finished.json").exists(), time.monotonic()
    run(
        *["train_rpn.py", *parts, *ROI, *chosen, "--seed", seed, "--max_epochs", max_epochs, "--patience", max_epochs],
        *["--model_prefix", folder.name, "--default_root_dir", folder.parent, "--offline", "--num_samples", 0],
    )
    return folder / "checkpoints/best.ckpt", None if trained else (time.monotonic() - started) / 60


def test(out_dir: Path, checkpoint: Path, cohort: str) -> pd.Series:
    """The row of ``rpn_scores.csv`` of a checkpoint on a test cohort, and its recall of lesions under 1 cm3."""
    slices, scores, name = out_dir / cohort / "slices", out_dir / "scores" / cohort, checkpoint.parent.parent.name
    run(
        *["test_rpn.py", "--scans", slices / "Scans", "--masks", slices / "Masks", "--ckpt_path", checkpoint, *ROI],
        *["--model_name", name, "--scores_dir", scores],
    )
    row = pd.read_csv(scores / "rpn_scores.csv").set_index("model_name").loc[name]
    lesions = pd.read_csv(scores / "rpn_per_lesion_scores.csv").query("model_name == @name and volume_cm3 < 1")
    return pd.concat([row, pd.Series({"small_lesion_recall": (lesions.covered >= 0.5).mean()})])


def add_rows(path: Path, rows: list[dict]) -> pd.DataFrame:
    """The table of all runs so far, with the rows in place of earlier ones of the same variant, seed and cohort."""
    earlier = [pd.read_csv(path)] if path.exists() else []
    table = pd.concat([*earlier, pd.DataFrame(rows)], ignore_index=True)
    table = table.drop_duplicates(["variant", "seed", "cohort"], keep="last")
    table.to_csv(path, index=False)
    return table


def summarise(table: pd.DataFrame, *more: str) -> str:
    """Mean and standard deviation over the seeds of the scores and further columns."""
    table = table.groupby(["cohort", "variant"], sort=False)[[*SCORES, *more]].agg(["mean", "std"])
    return table.round(3).to_string()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--variant", choices=list(VARIANTS), default="full")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--max_epochs", type=int, default=24)
    parser.add_argument("--test_seeds", type=int, nargs=2, default=[22, 23], metavar=("ALIKE", "SHIFTED"))
    args = parser.parse_args()
    out_dir, (alike, shifted) = args.out_dir.absolute(), args.test_seeds
    cohorts = {f"test-{alike}": [alike, N_TEST], f"shifted-{shifted}": [shifted, N_TEST, *SHIFT]}
    draw_cohorts(out_dir, cohorts)
    checkpoint, minutes = train(out_dir, args.variant, args.seed, args.max_epochs)
    run_of = {"variant": args.variant, "seed": args.seed, "minutes": minutes}
    rows = [{**run_of, "cohort": cohort, **test(out_dir, checkpoint, cohort)} for cohort in cohorts]
    print(summarise(add_rows(out_dir / "proposals.csv", rows), "minutes"))


if __name__ == "__main__":
    main()
