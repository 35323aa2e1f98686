"""Train and test stage 1 on synthetic cohorts at 2 mm, alone or as rows of an ablation.

    python benchmarks/proposals.py --out_dir runs/proposals                          # the method as it is advised
    python benchmarks/proposals.py --out_dir runs/proposals --variants focal no_ema  # with one thing changed
    python benchmarks/proposals.py --out_dir runs/proposals --table                  # print what is there

Three cohorts of their own seeds: 40 training and 10 validation subjects; 30 test subjects drawn alike; 30 shifted ones,
with stronger warps and fainter lesions. ``rows/`` in the folder gets a table for each variant, seed and test cohort;
what is there already is not repeated, so that calls may run beside each other (with ``OMP_NUM_THREADS=1`` each). At the
end mean and standard deviation over the seeds are printed.
"""

import argparse
import functools
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.variants import RULES, TRANSFERS, VARIANTS, Variant
from data.batches.datamodules import StackedScans
from data.batches.slices import read_slice_table
from data.scans.cohort import Case, pair_cases
from models.checkpoints import load_rpn, store_hyperparameters
from models.evaluation.proposals import evaluate_rpn
from models.rpn.calibration import choose_threshold, coverage_curve
from models.rpn.module import DEFAULT_THRESHOLD, RPN
from utils.files import atomic_path, read_json

GRID = ["--scan_dim", "1", "94", "98", "116"]
ROI_SIZE = (32, 32, 32)  # 64 mm, as the default of 64 voxels at 1 mm
ROI = ["--roi_size", *map(str, ROI_SIZE)]
N_TRAIN, N_VAL, N_TEST = 40, 10, 30
TRAIN_SEED = 21
SHIFT = ["--warp_mm", "5", "--lesion_contrast", "0.8"]
TARGET_COVERAGE = 0.98
BUDGETS = (0.25, 0.35)
SCORES = ["lesion_coverage", "lesion_recall", "lesion_recall, under 1 cm3", "proposed_fraction"]
AT_BUDGETS = [f"recall_at_{budget}" for budget in BUDGETS]

FULL = {
    "--dataset_anchors": "auto",
    "--transforms": "flip affine contrast lesion_contrast",
    "--lr": "1e-3",
    "--batch_size": "16",
}


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


# --- cohorts -------------------------------------------------------------------------------------------


def draw_cohorts(out_dir: Path, test_cohorts: dict[str, list], more: list[str]) -> None:
    """The cohorts, drawn with `more` arguments, and the 2D slices of ``train``, ``val`` and each test cohort."""
    draw(out_dir / "development", TRAIN_SEED, N_TRAIN + N_VAL, *more)
    cases = pair_cases([out_dir / "development/Scans"], [out_dir / "development/Masks"])
    link_cases(cases[:N_TRAIN], out_dir / "train")
    link_cases(cases[N_TRAIN:], out_dir / "val")
    for name, arguments in test_cohorts.items():
        draw(out_dir / name, *arguments, *more)
    for part in ("train", "val", *test_cohorts):
        cut(out_dir / part)


def draw(folder: Path, seed: int, n_subjects: int, *more: str) -> None:
    command = ["-m", "data.phantom", "--out_dir", folder, "--n_subjects", n_subjects, "--spacing", 2, "--seed", seed]
    run(*command, "--num_workers", 2, *more)


def cut(folder: Path) -> None:
    """The 2D slices of a cohort, in its folder ``slices``."""
    if not (folder / "slices/slices.csv").exists():
        cohort = ["--scans_dir", folder / "Scans", "--masks_dir", folder / "Masks"]
        run("-m", "data.slices", *cohort, *GRID, "--out_dir", folder / "slices")


def training_slices(out_dir: Path, name: str | None, copies: int) -> Path:
    """The folder of the slices of ``train``; with those of scans that it gets as `TRANSFERS` says, unless None."""
    own = out_dir / "train/slices"
    if name is None:
        return own
    cohort = ["--scans_dir", out_dir / "train/Scans", "--masks_dir", out_dir / "train/Masks"]
    new, together = out_dir / f"augmented-{name}-{copies}", out_dir / f"train-{name}-{copies}/slices"
    run("-m", "augmentation", *cohort, "--out_dir", new, "--copies", copies, *TRANSFERS[name])
    cut(new)
    for path in [*own.glob("*/*.npy"), *(new / "slices").glob("*/*.npy")]:
        link(path, together / path.parent.name / path.name)
    return together


def link_cases(cases: list[Case], folder: Path) -> None:
    for path in (path for case in cases for path in (case.scan, case.mask)):
        link(path, folder / path.parent.name / path.name)
    (folder / "cohort.csv").write_bytes((cases[0].scan.parent.parent / "cohort.csv").read_bytes())


def link(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(path.absolute())


def slices_of(folder: Path) -> pd.DataFrame:
    return read_slice_table(folder / "slices/Scans", folder / "slices/Masks")


# --- training ------------------------------------------------------------------------------------------


def train(out_dir: Path, name: str, slices: Path, arguments: dict, steps: int, seed: int) -> Path:
    """The checkpoint of ``train_rpn.py`` after about so many steps; `arguments` by name, None to leave one out."""
    n_sick = int((read_slice_table(slices / "Scans", slices / "Masks").lesion_voxels > 0).sum())
    max_epochs = max(1, round(steps * int(FULL["--batch_size"]) / (2 * n_sick)))
    chosen = [word for argument, value in arguments.items() if value is not None for word in (argument, *value.split())]
    parts = [
        word
        for part, folder in (("train", slices), ("val", out_dir / "val/slices"))
        for kind in ("Scans", "Masks")
        for word in (f"--{part}_{kind.lower()}", folder / kind)
    ]
    run(
        *["train_rpn.py", *parts, *ROI, *chosen, "--offline", "--num_samples", 0, "--seed", seed],
        *["--max_epochs", max_epochs, "--patience", max_epochs],
        *["--model_prefix", name, "--default_root_dir", out_dir / "RPN"],
    )
    return out_dir / "RPN" / name / "checkpoints/best.ckpt"


def train_variant(out_dir: Path, variant: Variant, seed: int, steps: int) -> Path:
    """The checkpoint of a variant. Those that differ by the rule alone share the training."""
    trained_as = next(name for name, other in VARIANTS.items() if replace(other, rule=variant.rule) == variant)
    arguments, slices = {**FULL, **variant.arguments}, training_slices(out_dir, variant.transfer, variant.copies)
    checkpoint = train(out_dir, f"{trained_as}_seed-{seed}", slices, arguments, variant.times * steps, seed)
    return with_rule(checkpoint, variant.rule, StackedScans(slices_of(out_dir / "val")))


def with_rule(checkpoint: Path, rule: str, val: StackedScans) -> Path:
    """A copy of the checkpoint beside it, calibrated for one of `RULES`."""
    model = load_rpn(checkpoint)
    model.hparams.update(RULES[rule])
    threshold = choose_threshold(coverage_curve(model, val, ROI_SIZE), TARGET_COVERAGE, DEFAULT_THRESHOLD)
    copy = checkpoint.with_name(f"{rule}.ckpt")
    shutil.copy(checkpoint, copy)
    store_hyperparameters(copy, **RULES[rule], score_threshold=threshold)
    return copy


def minutes_of(checkpoint: Path) -> float:
    """From the start of a training that was not interrupted to its end."""
    folder = checkpoint.parent.parent
    started = datetime.fromisoformat(read_json(folder / "run.json")["started"]).timestamp()
    return ((folder / "finished.json").stat().st_mtime - started) / 60


# --- testing -------------------------------------------------------------------------------------------


def test(checkpoint: Path, cohort: Path, name: str) -> dict[str, float]:
    """Scores of ``test_rpn.py``, and the largest lesion recall within each of `BUDGETS`."""
    model, scans = load_rpn(checkpoint), StackedScans(slices_of(cohort))
    remember_detections(model)
    folder = cohort / "scores" / name  # its own, since others may write theirs at the same time
    args = argparse.Namespace(
        scores_dir=str(folder), scores_file="rpn_scores.csv", roi_size=ROI_SIZE, batch_size=32, resize_to=None,
        n_predictions=0, target_layers=None, seed=0,
    )  # fmt: skip
    scores = evaluate_rpn(model, scans, len(scans), args, name)
    curve = coverage_curve(model, scans, ROI_SIZE)
    within = {f"recall_at_{b}": curve.lesion_recall[curve.proposed_fraction <= b].max() for b in BUDGETS}
    return {**{score: found.mean for score, found in scores.items()}, **within}


def remember_detections(model: RPN) -> None:
    """Let the network see each scan once, however often its detections are asked for."""
    found, detect = {}, model.detect_volume

    @functools.wraps(detect)
    def remembered(scan, batch_size=32):
        if scan.name not in found:
            found[scan.name] = detect(scan, batch_size)
        return found[scan.name]

    model.detect_volume = remembered


def save_row(path: Path, row: dict) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame([row]).to_csv(temporary, index=False)


def print_table(folder: Path, order: list[str], *columns: str) -> None:
    """A Markdown table of the rows in a folder: for each cohort and variant, mean and deviation over the seeds."""
    table = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*.csv"))], ignore_index=True)
    for cohort, rows in table.groupby("cohort"):
        print(f"\n| {cohort} | seeds | {' | '.join(columns)} |\n| {' | '.join(['---'] * (len(columns) + 2))} |")
        for variant in (name for name in order if name in set(rows.variant)):
            own = rows[rows.variant == variant]
            cells = [f"{own[c].mean():.3f}" + (f" ± {own[c].std():.3f}" if len(own) > 1 else "") for c in columns]
            print(f"| {variant} | {len(own)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=["full_small"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--steps", type=int, default=650, help="optimiser steps, rounded to whole epochs")
    parser.add_argument("--test_seeds", type=int, nargs="+", default=[92, 93], help="of cohorts alike and shifted")
    parser.add_argument("--stripped", action="store_true", help="brains without skulls, all of them")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    out_dir, (alike, *shifted) = args.out_dir.absolute(), args.test_seeds
    cohorts = {f"alike-{alike}": [alike, N_TEST], **{f"shifted-{s}": [s, N_TEST, *SHIFT] for s in shifted}}
    if not args.table:
        draw_cohorts(out_dir, cohorts, ["--stripped"] if args.stripped else [])
        for seed in args.seeds:
            for variant in args.variants:
                add_rows(out_dir, variant, seed, args.steps, cohorts)
    print_table(out_dir / "rows", list(VARIANTS), *SCORES, *AT_BUDGETS, "minutes")


def add_rows(out_dir: Path, variant: str, seed: int, steps: int, cohorts: dict) -> None:
    name = f"{variant}_seed-{seed}"
    paths = {cohort: out_dir / "rows" / f"{name}_{cohort}.csv" for cohort in cohorts}
    if all(path.exists() for path in paths.values()):
        return
    checkpoint = train_variant(out_dir, VARIANTS[variant], seed, steps)
    row = {"variant": variant, "seed": seed, "minutes": minutes_of(checkpoint)}
    for cohort, path in paths.items():
        if not path.exists():
            save_row(path, {**row, "cohort": cohort, **test(checkpoint, out_dir / cohort, name)})


if __name__ == "__main__":
    main()
