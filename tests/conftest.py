"""A tiny synthetic cohort and trained checkpoints, made once by the real scripts and shared by the tests."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # the workers of `make test` are as many as the cores; read when torch is imported

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets its jobs in the background ignore

settings.register_profile("suite", deadline=None)  # on a busy machine any example may take long
settings.load_profile("suite")

from tests.running import GRID, QUICK, ROI, run_script
from utils.files import locked

# While one worker of `make test` trains the workspace for the first, the other has the second, which needs none.
FIRST = ["test_scripts.py", "test_readme.py", "test_refusals.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, or one worker would be left with one of them when the others have no more work."""
    order = {name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Gives a folder that the first worker that asks for it makes; a test changes nothing in it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        with locked(shared / name):
            if not (shared / name).exists():
                (shared / f"{name}-begun").mkdir()
                fill(shared / f"{name}-begun")
                (shared / f"{name}-begun").rename(shared / name)
        return shared / name

    return make


@pytest.fixture(scope="session")
def cohort(made_once) -> Path:
    """Scans/, Masks/ and Brains/ of six synthetic subjects at 8 mm: with brains given, no script looks for them."""

    def draw(folder: Path) -> None:
        run_script(
            *["-m", "data.phantom", "--out_dir", folder, "--n_subjects", 6, "--spacing", 8, "--seed", 1], cwd=folder
        )
        (folder / "TrueBrains").rename(folder / "Brains")

    return made_once("cohort", draw)


@pytest.fixture
def no_skulls(monkeypatch) -> None:
    """The whole head is used as the brain mask, and no network is asked for it."""
    monkeypatch.setattr("data.scans.brain.find_brain", lambda scan, head, own: None)


@pytest.fixture(scope="session")
def workspace(made_once, tmp_path_factory, cohort) -> SimpleNamespace:
    """A folder in which both stages were trained for an epoch or two by their scripts."""
    scans, masks = cohort / "Scans", cohort / "Masks"

    def train(cwd: Path) -> None:
        for name, command in commands.items():
            done = run_script(*command, cwd=cwd)
            (cwd / f"{name}.out").write_text(done.out)

    commands = {
        "slices": ["-m", "data.slices", "--scans_dir", scans, "--masks_dir", masks, "--out_dir", "slices", *GRID],
        "rpn": [
            *["train_rpn.py", "--train_scans", "slices/Scans", "--train_masks", "slices/Masks"],
            *["--val_scans", "slices/Scans", "--val_masks", "slices/Masks", "--model_prefix", "rpn"],
            *["--image_size", 64, "--dataset_anchors", "auto", "--batch_size", 8, "--lr", 1e-3, "--max_epochs", 2],
            *["--transforms", "flip", *ROI, *QUICK, "--logger", "wandb", "csv", "tensorboard"],
        ],
        "seg": [
            *["train_strokeformer.py", "--train_scans", scans, "--train_masks", masks, "--val_scans", scans],
            *["--val_masks", masks, "--model_prefix", "seg", "--rpn_ckpt_path", "RPN/rpn/checkpoints/best.ckpt"],
            *["--score_threshold", 0.01, "--max_epochs", 2, "--max_lr", 1e-3, "--cls_loss", "BCEWithLogitsLoss"],
            *["--transforms", "flip", "affine", "contrast", "noise", "bias_field", "resolution", "lesion_contrast"],
            *[*GRID, *ROI, *QUICK, "--seg_loss", "CCDiceCELoss"],
        ],
    }
    cwd = tmp_path_factory.mktemp("workspace") / "own"
    shutil.copytree(made_once("trained", train), cwd)  # tests go on with its trainings
    return SimpleNamespace(
        cwd=cwd,
        scans=scans,
        masks=masks,
        slices=cwd / "slices/Scans",
        slice_masks=cwd / "slices/Masks",
        rpn=cwd / "RPN/rpn/checkpoints/best.ckpt",
        seg=cwd / "StrokeFormer/seg/checkpoints/best.ckpt",
        output={name: (cwd / f"{name}.out").read_text() for name in commands},
    )


# Of networks after two epochs: what proposes and what is lesion is lowered until something is found.
EAGER = {
    "RPN/rpn": {"score_threshold": 0.01},
    "StrokeFormer/seg": {"lesion_threshold": 0.3, "smallest_lesion_cm3": 1, "lesion_weights": [20, 0.1, 1, 0.5, 0.3]},
}


@pytest.fixture(scope="session")
def exported(made_once, workspace) -> SimpleNamespace:
    """Both checkpoints, eager, in the folders of their runs, and the models exported of them in float32 and float16."""

    def export(folder: Path) -> None:
        from models.checkpoints import store_hyperparameters
        from tests.exporting import export_twice

        paths = [folder / run / "checkpoints/best.ckpt" for run in EAGER]
        for (run, lower), path in zip(EAGER.items(), paths, strict=True):
            ignored = shutil.ignore_patterns("wandb", "tensorboard", "predictions")
            shutil.copytree(workspace.cwd / run, folder / run, ignore=ignored)
            store_hyperparameters(path, **lower)
        export_twice(*paths, folder / "float32", folder / "float16")

    folder = made_once("exported", export)
    rpn, seg = (folder / run / "checkpoints/best.ckpt" for run in EAGER)
    return SimpleNamespace(rpn=rpn, seg=seg, full=folder / "float32", half=folder / "float16")
