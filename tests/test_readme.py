"""The README's commands as they stand there, small, on a machine without an account and without any setting."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.files.volumes import read_volume, write_volume
from data.scans.brain import with_brains
from data.scans.cohort import pair_cases
from tests.running import GRID, ROI, ROOT, run_script

# What makes each program small; nothing else is added to its commands.
TRAINING = [*ROI, "--max_epochs", "1", "--num_samples", "1"]
EAGER = ["--score_threshold", "0.01"]  # after an epoch no detection is sure, and without regions there is no stage 2
SMALL = {
    "-m data.slices": GRID,
    "-m augmentation": ["--num_workers", "0"],
    "train_rpn.py": [*TRAINING, "--image_size", "64", "--batch_size", "8"],
    "train_strokeformer.py": [*GRID, *TRAINING, *EAGER],
    "cross_validation.py": [
        *[*GRID, *TRAINING, "--rpn_max_epochs", "1", "--rpn_image_size", "64", "--rpn_batch_size", "8"],
        *["--k", "2", "--splits", "34", "16", "50", "--n_predictions", "1", *EAGER],
    ],
    "test_rpn.py": [*ROI, "--n_predictions", "1"],
    "test_strokeformer.py": [*GRID, "--n_predictions", "1"],
    "-m utils.compare": [],
}


def readme_commands() -> list[tuple[str, str]]:
    """(program, command) of the README's shell blocks that train or evaluate, in their order."""
    blocks = (ROOT / "README.md").read_text().split("```sh\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].replace("\\\n", " ").splitlines()]
    return [
        (program, line.split("#")[0]) for line in lines for program in SMALL if line.startswith(f"python {program} ")
    ]


@pytest.fixture(scope="module")
def project(cohort, tmp_path_factory) -> Path:
    """The project as it is downloaded, with six scans where the README has the user's.

    Most of them come with their brains, as prepared scans do.
    """
    clone = tmp_path_factory.mktemp("download") / "StrokeFormer"
    packages, kinds = ("augmentation", "data", "models", "pretrained", "report", "utils"), ("*.py", "*.html", "*.onnx")
    parts = [file for package in packages for kind in kinds for file in (ROOT / package).rglob(kind)]
    for file in [*ROOT.glob("*.py"), *parts]:
        (clone / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, clone / file.relative_to(ROOT))
    cases = with_brains(pair_cases([cohort / "Scans"], [cohort / "Masks"]), [cohort / "Brains"])
    for folder, part in {".": cases, "train": cases[:4], "val": cases[4:5], "test": cases[5:]}.items():
        for case in part:
            for path, name in ((case.scan, "Scans"), (case.mask, "Masks")):
                (clone / "data" / folder / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, clone / "data" / folder / name)
            if folder in (".", "train"):
                (clone / "data" / folder / "Brains").mkdir(exist_ok=True)
                shutil.copy(case.brain, clone / "data" / folder / "Brains")
    write_volume(clone / "scan.nii.gz", read_volume(cases[5].scan).array, np.diag([8.0, 8, 8, 1]))
    return clone


@pytest.mark.timeout(900)  # a dozen programs, one after the other, on a machine that may be busy
def test_every_training_and_evaluation_command_works_as_written_without_an_account(project):
    commands = readme_commands()
    assert {program for program, _ in commands} == set(SMALL)
    output = ""
    for program, command in commands:
        _, *words = shlex.split(command)
        done = run_script(*words, *SMALL[program], cwd=project, root=project)
        assert "Traceback" not in done.err and "\r" not in done.out + done.err  # no frames of bars in a log
        output += done.out
    assert "No W&B account on this machine" in output
    assert any(project.glob("RPN/RPNATLAS/wandb/offline-run-*"))
    assert (project / "scores/mine/predictions/scan_prediction.nii.gz").exists()
    assert "A: StrokeFormerATLAS, 6 scans" in output and "B: StrokeFormerAugmented, 6 scans" in output
    scores = pd.read_csv(project / "scores/scores.csv").model_name.tolist()
    assert scores == [f"StrokeFormer{name}_fold-{i}" for name in ("ATLAS", "Augmented") for i in (0, 1)]
    assert json.loads((project / "StrokeFormer/StrokeFormerATLAS/folds.json").read_text())["k"] == 2
