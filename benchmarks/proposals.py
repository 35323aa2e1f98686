"""Train and test stage 1 on synthetic cohorts at 2 mm, alone or as a row of an ablation.

    python benchmarks/proposals.py --out_dir runs/proposals                    # the full method
    python benchmarks/proposals.py --out_dir runs/proposals --variant grouped  # the same without one strategy

Three cohorts of their own seeds: 40 training and 10 validation subjects; 30 test subjects drawn alike; 30 shifted ones,
with stronger warps and fainter lesions. Everything runs through the scripts, and what is there already is not repeated.
``proposals.csv`` in the folder gets a row for each variant, seed and cohort.
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
N_TRAIN = 40
# Seed, subjects and further arguments of data.phantom.
COHORTS = {
    "development": (21, 50, []),
    "test": (22, 30, []),
    "shifted": (23, 30, ["--warp_mm", "5", "--lesion_contrast", "0.8"]),
}
FULL = {"--dataset_anchors": "auto", "--transforms": "flip affine contrast", "--lr": "1e-3", "--batch_size": "16"}
# What each row changes in the full method; None leaves an argument out.
VARIANTS = {
    "full": {},
    "grouped": {"--consistency": "grouped"},
    "atlas_anchors": {"--dataset_anchors": "ATLAS"},
    "no_transforms": {"--transforms": None},
    "no_ema": {"--ema_decay": "0"},
    "native_size": {"--image_size": "98"},
}


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def draw_cohorts(out_dir: Path) -> None:
    """The cohorts and the 2D slices of their parts: ``train``, ``val``, ``test`` and ``shifted``."""
    for name, (seed, n, more) in COHORTS.items():
        command = ["-m", "data.phantom", "--out_dir", out_dir / name, "--n_subjects", n, "--spacing", 2, "--seed", seed]
        run(*command, "--num_workers", 2, *more)
    cases = pair_cases([out_dir / "development/Scans"], [out_dir / "development/Masks"])
    link_cases(cases[:N_TRAIN], out_dir / "train")
    link_cases(cases[N_TRAIN:], out_dir / "val")
    for part in ("train", "val", "test", "shifted"):
        if not (out_dir / part / "slices/slices.csv").exists():
            folders = ["--scans_dir", out_dir / part / "Scans", "--masks_dir", out_dir / part / "Masks"]
            run("-m", "data.slices", *folders, *GRID, "--out_dir", out_dir / part / "slices")


def link_cases(cases: list[Case], folder: Path) -> None:
    for path in (path for case in cases for path in (case.scan, case.mask)):
        link = folder / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.absolute())
    (folder / "cohort.csv").write_bytes((cases[0].scan.parent.parent / "cohort.csv").read_bytes())


def train(out_dir: Path, variant: str, seed: int, max_epochs: int) -> tuple[Path, float]:
    """The trained checkpoint of a variant, and the minutes that its training took."""
    arguments = {**FULL, **VARIANTS[variant]}
    chosen = [word for name, value in arguments.items() if value is not None for word in (name, *value.split())]
    parts = [
        word
        for part in ("train", "val")
        for kind in ("Scans", "Masks")
        for word in (f"--{part}_{kind.lower()}", out_dir / part / "slices" / kind)
    ]
    name = f"{variant}_seed-{seed}"
    started = time.monotonic()
    run(
        *["train_rpn.py", *parts, *ROI, *chosen, "--seed", seed, "--max_epochs", max_epochs, "--patience", max_epochs],
        *["--model_prefix", name, "--default_root_dir", out_dir / "RPN", "--offline", "--num_samples", 0],
    )
    return out_dir / "RPN" / name / "checkpoints/best.ckpt", (time.monotonic() - started) / 60


def test(out_dir: Path, checkpoint: Path, cohort: str) -> pd.Series:
    """The row of ``rpn_scores.csv`` of a checkpoint on one of the test cohorts."""
    slices, name = out_dir / cohort / "slices", checkpoint.parent.parent.name
    run(
        *["test_rpn.py", "--scans", slices / "Scans", "--masks", slices / "Masks", "--ckpt_path", checkpoint, *ROI],
        *["--model_name", name, "--scores_dir", out_dir / "scores" / cohort],
    )
    return pd.read_csv(out_dir / "scores" / cohort / "rpn_scores.csv").set_index("model_name").loc[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--variant", choices=list(VARIANTS), default="full")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--max_epochs", type=int, default=24)
    args = parser.parse_args()
    out_dir = args.out_dir.absolute()
    draw_cohorts(out_dir)
    checkpoint, minutes = train(out_dir, args.variant, args.seed, args.max_epochs)
    rows = [
        {"variant": args.variant, "seed": args.seed, "cohort": c, "minutes": minutes, **test(out_dir, checkpoint, c)}
        for c in ("test", "shifted")
    ]
    table = out_dir / "proposals.csv"
    earlier = pd.read_csv(table) if table.exists() else pd.DataFrame()
    pd.concat([earlier, pd.DataFrame(rows)], ignore_index=True).to_csv(table, index=False)
    print(pd.read_csv(table).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
