"""Whether augmented scans help stage 1 that has few subjects to learn from, by how their lesions were moved.

    python benchmarks/augmentation_gain.py --out_dir runs/gain --seeds 42 1 2
    python benchmarks/augmentation_gain.py --out_dir runs/gain --table         # print what is there

Eight training subjects, five validation and thirty test subjects of synthetic cohorts at 2 mm, each of its own seed.
All arms see the same subjects and take about the same number of optimiser steps. ``rows/`` in the folder gets a table
for each arm and seed: the test scores at the calibrated threshold, and the largest lesion recall at which at most 25
and 35 % of the brain are proposed. What is there already is not repeated.
"""

import argparse
from pathlib import Path

from proposals import (
    AT_BUDGETS,
    FULL,
    SCORES,
    TRANSFERS,
    cut,
    draw,
    minutes_of,
    print_table,
    save_row,
    test,
    train,
    training_slices,
)

COHORTS = {"train": (41, 8), "val": (42, 5), "test": (43, 30)}  # seed and subjects
ARMS = {"none": None, **{name: name for name in TRANSFERS}}
COPIES = 4  # new scans of each training scan


def prepare(out_dir: Path) -> None:
    """The cohorts and their slices."""
    for part, (seed, n) in COHORTS.items():
        draw(out_dir / part, seed, n)
        cut(out_dir / part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--arms", choices=list(ARMS), nargs="+", default=list(ARMS))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    out_dir = args.out_dir.absolute()
    if not args.table:
        prepare(out_dir)
        for seed in args.seeds:
            for arm in args.arms:
                add_row(out_dir, arm, seed, args.steps)
    print_table(out_dir / "rows", list(ARMS), *SCORES, *AT_BUDGETS, "minutes")


def add_row(out_dir: Path, arm: str, seed: int, steps: int) -> None:
    name = f"{arm}_seed-{seed}"
    path = out_dir / "rows" / f"{name}.csv"
    if not path.exists():
        slices = training_slices(out_dir, ARMS[arm], COPIES)
        checkpoint = train(out_dir, name, slices, FULL, steps, seed)
        row = {"variant": arm, "seed": seed, "cohort": "test", "minutes": minutes_of(checkpoint)}
        save_row(path, {**row, **test(checkpoint, out_dir / "test", name)})


if __name__ == "__main__":
    main()
