"""What shipped weights and transferred lesions bring at another site with few patients.

    python benchmarks/starts.py --out_dir runs/starts [--seeds 1 2] [--subjects 5 10 20 40]

The site is a synthetic DWI cohort unlike the one that the model learned: `--variety 0.7`, and lesions of 0.7 of the
contrast. From so many of its subjects, one in five of them for validation, both stages learn from scratch, with three
copies of each scan that hold lesions of the others besides, and from the model, in as many steps whatever the number;
30 others test them. One that proposes nothing on its training scans has no scores. A training that is there is not
repeated, so that calls with other ``--seeds`` or ``--starts`` may run beside each other (``OMP_NUM_THREADS=1`` each).
"""

import subprocess
from itertools import product
from pathlib import Path

import common
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from data.scans.cohort import Case
from data.scans.folds import Fold
from utils.plots import save_figure

SITE = ["--modality", "dwi", "--variety", 0.7, "--lesion_contrast", 0.7, "--stripped", "--oblique", "--ext", ".nii.gz"]
N_TEST, MOST = 30, 40
SEED = 310  # of the cohort
PASSES = {"--rpn_max_epochs": 120, "--max_epochs": 1600}  # of both stages over a subject, shared out among the subjects
MODEL = "pretrained/dwi"
STARTS = {
    "scratch": [],
    "transferred": [],
    "shipped": ["@recipes/finetune.args", "--init_ckpt_path", MODEL, "--rpn_init_ckpt_path", MODEL],
}
COPIES = 3  # of each training scan, with lesions as docs/augmentation.md advises
TRANSFER = ["--copies", COPIES, "--lesions", 3, "--rim", 0, "--min_scale", 0.3, "--ext", ".nii.gz", "--num_workers", 0]
REFUSED = 2  # the exit code of a run that says in a line why it cannot go on, as where nothing is proposed
SCORES = ["dice", "lesion_f1_isles26"]


def train(out_dir: Path, start: str, n_subjects: int, seed: int) -> dict:
    """Scores on the test subjects of a training."""
    folder = out_dir / f"{start}-{n_subjects}-{seed}"
    scores = folder / "scores/per_scan_scores.csv"
    if not scores.exists():
        cases = {case.subject: case for case in common.draw(out_dir / "cohort", SEED, MOST + N_TEST, *SITE)}
        subjects = [*cases]
        chosen = np.random.default_rng(seed).permutation(subjects[:MOST])[:n_subjects].tolist()
        n_val = max(1, n_subjects // 5)
        fold = Fold(chosen[n_val:], chosen[:n_val], subjects[MOST:])
        settings = ["@recipes/pretrained.args", *STARTS[start], "--n_predictions", 0]
        settings += ["--rpn_patience", 1000, "--patience", 1000]
        in_epoch = n_subjects
        if start == "transferred":
            transfer([cases[subject] for subject in fold.train], folder / "train", seed)
            settings += ["--use_augmented", "--augmented_dir", folder / "train/transferred"]
            in_epoch *= 1 + COPIES
        settings += [word for option, passes in PASSES.items() for word in (option, max(1, passes // in_epoch))]
        try:
            common.cross_validate(folder, out_dir / "cohort", fold, "site", seed, *settings)
        except subprocess.CalledProcessError as error:
            if error.returncode != REFUSED:
                raise
    own = pd.read_csv(scores)[SCORES].mean().round(3).to_dict() if scores.exists() else {}
    return {"start": start, "subjects": n_subjects, "seed": seed, **own}


def transfer(cases: list[Case], folder: Path, seed: int) -> None:
    """Copies of scans, in ``transferred`` of a folder, with lesions of each other."""
    for case in cases:
        common.link(case.scan, folder / "Scans" / case.scan.name)
        common.link(case.mask, folder / "Masks" / case.mask.name)
    common.run(
        *["-m", "augmentation", "--scans_dir", folder / "Scans", "--masks_dir", folder / "Masks", *TRANSFER],
        *["--out_dir", folder / "transferred", "--seed", seed],
    )


def plot(rows: pd.DataFrame) -> plt.Figure:
    figure, axes = plt.subplots(1, len(SCORES), figsize=(8, 3.2), layout="constrained")
    for axis, score in zip(axes, SCORES, strict=True):
        for start, own in rows.groupby("start"):
            means = own.groupby("subjects")[score].mean()
            (line,) = axis.plot(means.index, means, label=start)
            axis.plot(own.subjects, own[score], ".", color=line.get_color())
        axis.set(xscale="log", xlabel="subjects", ylabel=score, xticks=sorted(rows.subjects.unique()))
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.minorticks_off()
    axes[0].legend()
    return figure


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--starts", choices=STARTS, nargs="+", default=[*STARTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--subjects", type=int, nargs="+", default=[5, 10, 20, MOST])
    args = parser.parse_args()
    jobs = product(args.starts, args.subjects, args.seeds)
    rows = pd.DataFrame([train(args.out_dir, *job) for job in jobs])
    common.print_markdown(rows.to_dict("records"))
    save_figure(plot(rows), args.out_dir / "starts.png")


if __name__ == "__main__":
    main()
