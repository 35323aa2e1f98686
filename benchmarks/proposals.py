"""Train and test stage 1 on synthetic cohorts at 2 mm, as rows of an ablation.

    python benchmarks/proposals.py --out_dir runs/proposals [--variants no_ema native_size] [--table]

Three cohorts of their own seeds: 40 training and 10 validation subjects; 30 test subjects drawn alike; 30 shifted ones,
with stronger warps and fainter lesions. ``rows/`` in the folder gets a table for each variant, seed and test cohort;
what is there already is not repeated, so that calls may run beside each other (with ``OMP_NUM_THREADS=1`` each). At the
end mean and standard deviation over the seeds are printed.
"""

import argparse
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pandas as pd
from common import ROI, ROI_SIZE, SHIFT, cut, draw, draw_development, link, print_markdown, run, training_data

from data.batches.slices import read_slice_table
from data.batches.sources import stacked_scans
from models.checkpoints import load_rpn
from models.training.rpn import coverage_curve
from utils.files import read_json, write_csv
from utils.scores.proposals import COVERED_SHARE

N_TEST, TRAIN_SEED = 30, 21
BUDGETS = (0.25, 0.35)
SMALL_RECALL = "lesion_recall, under 1 cm3"
SCORES = ["lesion_coverage", "lesion_recall", SMALL_RECALL, "proposed_fraction"]
COLUMNS = [*SCORES, *(f"recall_at_{budget}" for budget in BUDGETS), "minutes"]
BATCH_SIZE = 16
TRANSFORMS = ["flip", "affine", "contrast", "lesion_contrast"]
BASE = {"--dataset_anchors": ["auto"], "--transforms": TRANSFORMS, "--lr": ["1e-3"]}
ANYWHERE = ["--mode", "volume", "--lesions", 3]
CRISP = [*ANYWHERE, "--rim", 0]
SMALL = [*CRISP, "--min_scale", 0.3]


@dataclass(frozen=True)
class Variant:
    """What a variant changes.

    arguments: of train_rpn.py, in the place of those of `BASE`; None leaves one out.
    transfer: arguments of ``python -m augmentation`` for new scans to train on; None for the scans as they are.
    copies: new scans of each training scan.
    times: as many steps as asked for.
    """

    arguments: dict[str, list[str] | None] = field(default_factory=dict)
    transfer: list | None = None
    copies: int = 1
    times: int = 1


# regime, rationed, no_copies and full_small lead from the published rule to ours; those below change one thing in
# rationed.
VARIANTS = {
    "regime": Variant({"--consistency": ["grouped"]}),
    "rationed": Variant(),
    "no_copies": Variant(times=6),
    "full_anywhere": Variant(transfer=ANYWHERE, times=6),
    "full_small": Variant(transfer=SMALL, copies=3, times=6),
    "anywhere_transfer": Variant(transfer=ANYWHERE),
    "crisp_transfer": Variant(transfer=CRISP),
    "small_transfer": Variant(transfer=SMALL),
    "atlas_anchors": Variant({"--dataset_anchors": ["ATLAS"]}),
    "no_transforms": Variant({"--transforms": None}),
    "no_lesion_contrast": Variant({"--transforms": ["flip", "affine", "contrast"]}),
    "no_ema": Variant({"--ema_decay": ["0"]}),
    "native_size": Variant({"--image_size": ["98"]}),
}


def slices_of(folder: Path) -> pd.DataFrame:
    return read_slice_table(folder / "Scans", folder / "Masks")


# --- training ------------------------------------------------------------------------------------------


def training_slices(out_dir: Path, name: str) -> Path:
    """The folder of the slices that a variant trains on: those of ``train`` and of the new scans, if any."""
    own, variant = cut(out_dir / "train"), VARIANTS[name]
    if variant.transfer is None:
        return own
    cohort = ["--scans_dir", out_dir / "train/Scans", "--masks_dir", out_dir / "train/Masks"]
    new, together = out_dir / f"augmented-{name}", out_dir / f"train-{name}/slices"
    run("-m", "augmentation", *cohort, "--out_dir", new, "--copies", variant.copies, *variant.transfer)
    for path in [*own.glob("*/*.npy"), *cut(new).glob("*/*.npy")]:
        link(path, together / path.parent.name / path.name)
    return together


def train(out_dir: Path, variant: str, seed: int, steps: int) -> Path:
    """The checkpoint of a variant, calibrated on ``val``; `steps` of the optimiser are rounded to whole epochs."""
    slices, name = training_slices(out_dir, variant), f"{variant}_seed-{seed}"
    n_sick = int((slices_of(slices).lesion_voxels > 0).sum())
    epochs = max(1, round(VARIANTS[variant].times * steps * BATCH_SIZE / (2 * n_sick)))
    arguments = {**BASE, **VARIANTS[variant].arguments}
    chosen = [word for argument, words in arguments.items() if words is not None for word in (argument, *words)]
    run(
        *["train_rpn.py", *training_data(slices, cut(out_dir / "val")), *ROI, *chosen, "--batch_size", BATCH_SIZE],
        *["--offline", "--num_samples", 0, "--seed", seed, "--max_epochs", epochs, "--patience", epochs],
        *["--model_prefix", name, "--default_root_dir", out_dir / "RPN"],
    )
    return out_dir / "RPN" / name / "checkpoints/best.ckpt"


def minutes_of(checkpoint: Path) -> float:
    """From the start of a training that was not interrupted to its end."""
    folder = checkpoint.parent.parent
    started = datetime.fromisoformat(read_json(folder / "run.json")["started"]).timestamp()
    return ((folder / "finished.json").stat().st_mtime - started) / 60


# --- testing -------------------------------------------------------------------------------------------


def test(checkpoint: Path, cohort: Path, name: str) -> dict[str, float]:
    """Scores of ``test_rpn.py``, and the largest lesion recall within each of `BUDGETS`."""
    slices, folder = cut(cohort), cohort / "scores" / name  # its own, since others may write at the same time
    run(
        *["test_rpn.py", "--scans", slices / "Scans", "--masks", slices / "Masks", "--ckpt_path", checkpoint, *ROI],
        *["--scores_dir", folder, "--model_name", name, "--n_predictions", 0],
    )
    scores = pd.read_csv(folder / "rpn_scores_intervals.csv")
    means = scores[scores["size"].isna()].set_index("score")["mean"]
    lesions = pd.read_csv(folder / "rpn_per_lesion_scores.csv")
    small = (lesions.covered[lesions.volume_cm3 < 1] >= COVERED_SHARE).mean()
    curve = coverage_curve(load_rpn(checkpoint), stacked_scans(slices_of(slices)), ROI_SIZE)
    within = {f"recall_at_{b}": curve.lesion_recall[curve.proposed_fraction <= b].max() for b in BUDGETS}
    return {**means.to_dict(), SMALL_RECALL: small, **within}


def add_rows(out_dir: Path, variant: str, seed: int, steps: int, cohorts: dict[str, list]) -> None:
    name = f"{variant}_seed-{seed}"
    paths = {cohort: out_dir / "rows" / f"{name}_{cohort}.csv" for cohort in cohorts}
    missing = {cohort: path for cohort, path in paths.items() if not path.exists()}
    if not missing:
        return
    checkpoint = train(out_dir, variant, seed, steps)
    row = {"variant": variant, "seed": seed, "minutes": minutes_of(checkpoint)}
    for cohort, path in missing.items():
        table = pd.DataFrame([{**row, "cohort": cohort, **test(checkpoint, out_dir / cohort, name)}])
        write_csv(path, table)


def print_tables(folder: Path) -> None:
    """Of each cohort the rows in a folder: for each variant, mean and deviation over the seeds."""
    table = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*.csv"))], ignore_index=True)
    for cohort, rows in table.groupby("cohort"):
        by_variant = {name: rows[rows.variant == name] for name in VARIANTS if name in set(rows.variant)}
        print()
        print_markdown([{cohort: name, "seeds": len(own), **_cells(own)} for name, own in by_variant.items()])


def _cells(rows: pd.DataFrame) -> dict[str, str]:
    deviation = {column: f" ± {rows[column].std():.3f}" if len(rows) > 1 else "" for column in COLUMNS}
    return {column: f"{rows[column].mean():.3f}{deviation[column]}" for column in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=["full_small"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--steps", type=int, default=650, help="optimiser steps, rounded to whole epochs")
    parser.add_argument("--test_seeds", type=int, nargs="+", default=[92, 93], help="of cohorts alike and shifted")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    out_dir, (alike, *shifted) = args.out_dir.absolute(), args.test_seeds
    cohorts = {f"alike-{alike}": [alike, N_TEST], **{f"shifted-{s}": [s, N_TEST, *SHIFT] for s in shifted}}
    if not args.table:
        draw_development(out_dir, TRAIN_SEED)
        for name, arguments in cohorts.items():
            draw(out_dir / name, *arguments)
        for seed in args.seeds:
            for variant in args.variants:
                add_rows(out_dir, variant, seed, args.steps, cohorts)
    print_tables(out_dir / "rows")


if __name__ == "__main__":
    main()
