"""Train and test stage 1 on synthetic cohorts at 2 mm, as rows of an ablation.

    python benchmarks/proposals.py --out_dir runs/proposals [--variants no_ema native_size] [--table]

Cohorts of their own seeds: 40 training and 10 validation subjects; 30 test subjects drawn alike; 30 shifted ones, with
stronger warps and fainter lesions. ``rows/`` in the folder gets a table for each variant, seed and test cohort; what is
there already is not repeated, so that calls may run beside each other (with ``OMP_NUM_THREADS=1`` each). At the end
mean and standard deviation over the seeds are printed.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from common import SHIFT, argument_parser, draw, link, print_markdown, processor_seconds, run

from data.batches.slices import read_slice_table
from data.batches.sources import stacked_scans
from models.checkpoints import load_rpn
from models.training.rpn import coverage_curve
from utils.files import write_csv
from utils.scores.proposals import COVERED_SHARE

N_TEST, DEVELOPMENT = 30, {"train": (21, 40), "val": (22, 10)}  # seeds and subjects
SCAN_DIM = ["--scan_dim", 1, 94, 98, 116]
ROI_SIZE = (32, 32, 32)
BUDGETS = (0.25, 0.35)
SMALL_RECALL = "lesion_recall, under 1 cm3"
SCORES = ["lesion_coverage", "lesion_recall", SMALL_RECALL, "proposed_fraction"]
COLUMNS = [*SCORES, *(f"recall_at_{budget}" for budget in BUDGETS), "minutes"]
BATCH_SIZE = 16
TRANSFORMS = ["flip", "affine", "contrast", "lesion_contrast"]
ANYWHERE = ["--mode", "volume", "--lesions", 3]
CRISP = [*ANYWHERE, "--rim", 0]
SMALL = [*CRISP, "--min_scale", 0.3]


class Variant(NamedTuple):
    """What a variant changes."""

    more: tuple[str, ...] = ()  # arguments of train_rpn.py
    transforms: list[str] = TRANSFORMS
    transfer: list | None = None  # arguments of ``python -m augmentation`` for new scans to train on; None for none
    copies: int = 1  # new scans of each training scan
    times: int = 1  # as many steps as asked for


# regime, rationed, no_copies and full_small lead from the published rule to ours; those below change one thing in
# rationed.
VARIANTS = {
    "regime": Variant(("--consistency", "grouped")),
    "rationed": Variant(),
    "no_copies": Variant(times=6),
    "full_anywhere": Variant(transfer=ANYWHERE, times=6),
    "full_small": Variant(transfer=SMALL, copies=3, times=6),
    "anywhere_transfer": Variant(transfer=ANYWHERE),
    "crisp_transfer": Variant(transfer=CRISP),
    "small_transfer": Variant(transfer=SMALL),
    "atlas_anchors": Variant(("--dataset_anchors", "ATLAS")),
    "no_transforms": Variant(transforms=[]),
    "no_lesion_contrast": Variant(transforms=TRANSFORMS[:3]),
    "no_ema": Variant(("--ema_decay", "0")),
    "native_size": Variant(("--image_size", "98")),
}


# --- slices --------------------------------------------------------------------------------------------


def cut(folder: Path) -> Path:
    """The folder of the 2D slices of a cohort."""
    if not (folder / "slices/slices.csv").exists():
        cohort = ["--scans_dir", folder / "Scans", "--masks_dir", folder / "Masks"]
        run("-m", "data.slices", *cohort, *SCAN_DIM, "--out_dir", folder / "slices")
    return folder / "slices"


def table_of(slices: Path) -> pd.DataFrame:
    return read_slice_table(slices / "Scans", slices / "Masks")


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


# --- training and testing ------------------------------------------------------------------------------


def train(out_dir: Path, name: str, seed: int, steps: int) -> Path:
    """The checkpoint of a variant, calibrated on ``val``; `steps` of the optimiser are rounded to whole epochs."""
    slices, val, variant = training_slices(out_dir, name), cut(out_dir / "val"), VARIANTS[name]
    n_sick = int((table_of(slices).lesion_voxels > 0).sum())
    epochs = max(1, round(variant.times * steps * BATCH_SIZE / (2 * n_sick)))
    transforms = ["--transforms", *variant.transforms] if variant.transforms else []
    run(
        *["train_rpn.py", "--train_scans", slices / "Scans", "--train_masks", slices / "Masks"],
        *["--val_scans", val / "Scans", "--val_masks", val / "Masks", "--roi_size", *ROI_SIZE],
        *["--dataset_anchors", "auto", "--lr", "1e-3", "--batch_size", BATCH_SIZE, *transforms, *variant.more],
        *["--offline", "--num_samples", 0, "--seed", seed, "--max_epochs", epochs, "--patience", epochs],
        *["--model_prefix", f"{name}_seed-{seed}", "--default_root_dir", out_dir / "RPN"],
    )
    return out_dir / f"RPN/{name}_seed-{seed}/checkpoints/best.ckpt"


def test(checkpoint: Path, cohort: Path, name: str) -> dict[str, float]:
    """Scores of ``test_rpn.py``, and the largest lesion recall within each of `BUDGETS`."""
    slices, folder = cut(cohort), cohort / "scores" / name  # its own, since others may write at the same time
    run(
        *["test_rpn.py", "--scans", slices / "Scans", "--masks", slices / "Masks", "--ckpt_path", checkpoint],
        *["--roi_size", *ROI_SIZE, "--scores_dir", folder, "--model_name", name, "--n_predictions", 0],
    )
    scores = pd.read_csv(folder / "rpn_scores_intervals.csv")
    means = scores[scores["size"].isna()].set_index("score")["mean"]
    lesions = pd.read_csv(folder / "rpn_per_lesion_scores.csv")
    small = (lesions.covered[lesions.volume_cm3 < 1] >= COVERED_SHARE).mean()
    curve = coverage_curve(load_rpn(checkpoint), stacked_scans(table_of(slices)), ROI_SIZE)
    within = {f"recall_at_{b}": curve.lesion_recall[curve.proposed_fraction <= b].max() for b in BUDGETS}
    return {**means.to_dict(), SMALL_RECALL: small, **within}


def add_rows(out_dir: Path, variant: str, seed: int, steps: int, cohorts: dict[str, list]) -> None:
    name, before = f"{variant}_seed-{seed}", processor_seconds()
    paths = {cohort: out_dir / "rows" / f"{name}_{cohort}.csv" for cohort in cohorts}
    missing = {cohort: path for cohort, path in paths.items() if not path.exists()}
    if not missing:
        return
    checkpoint = train(out_dir, variant, seed, steps)
    row = {"variant": variant, "seed": seed, "minutes": (processor_seconds() - before) / 60}
    for cohort, path in missing.items():
        write_csv(path, pd.DataFrame([{**row, "cohort": cohort, **test(checkpoint, out_dir / cohort, name)}]))


def print_tables(folder: Path) -> None:
    """Of each cohort the rows in a folder: for each variant, mean and deviation over the seeds."""
    table = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*.csv"))], ignore_index=True)
    for cohort, rows in table.groupby("cohort"):
        of_variants = rows.groupby("variant")[COLUMNS]
        cells = of_variants.mean().map("{:.3f}".format) + of_variants.std().map(" ± {:.3f}".format)
        print_markdown(cells.rename_axis(cohort).reset_index().to_dict("records"))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=["full_small"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--steps", type=int, default=650, help="optimiser steps, rounded to whole epochs")
    parser.add_argument("--test_seeds", type=int, nargs="+", default=[92, 93], help="of cohorts alike and shifted")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    out_dir, (alike, *shifted) = args.out_dir, args.test_seeds
    cohorts = {f"alike-{alike}": [alike, N_TEST], **{f"shifted-{s}": [s, N_TEST, *SHIFT] for s in shifted}}
    if not args.table:
        for name, arguments in {**DEVELOPMENT, **cohorts}.items():
            draw(out_dir / name, *arguments)
        for seed in args.seeds:
            for variant in args.variants:
                add_rows(out_dir, variant, seed, args.steps, cohorts)
    print_tables(out_dir / "rows")


if __name__ == "__main__":
    main()
