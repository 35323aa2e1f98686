"""A tiny synthetic cohort and trained checkpoints, made once by the real scripts and shared by the tests."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # the workers of `make test` are as many as the cores; read when torch is imported

settings.register_profile("suite", deadline=None)  # on a busy machine any example may take long
settings.load_profile("suite")

from tests.running import GRID, QUICK, ROI, run_script

LONGEST = ["test_scripts.py", "test_refusals.py", "test_readme.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, or one worker would be left with one of them when the others have no more work."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Scans/, Masks/ and Brains/ of six synthetic subjects at 8 mm: with brains given, no script looks for them."""
    out_dir = tmp_path_factory.mktemp("cohort")
    run_script("-m", "data.phantom", "--out_dir", out_dir, "--n_subjects", 6, "--spacing", 8, "--seed", 1, cwd=out_dir)
    (out_dir / "TrueBrains").rename(out_dir / "Brains")
    return out_dir


@pytest.fixture
def no_skulls(monkeypatch) -> None:
    """The whole head is used as the brain mask, and no network is asked for it."""
    monkeypatch.setattr("data.scans.brain.find_brain", lambda scan, head, contrast, own: None)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, cohort) -> SimpleNamespace:
    """A folder in which both stages were trained for an epoch or two by their scripts."""
    cwd = tmp_path_factory.mktemp("workspace")
    scans, masks = cohort / "Scans", cohort / "Masks"
    cut = run_script(
        *["-m", "data.slices", "--scans_dir", scans, "--masks_dir", masks, "--out_dir", "slices", *GRID], cwd=cwd
    )
    slices, slice_masks = cwd / "slices/Scans", cwd / "slices/Masks"
    rpn = run_script(
        *["train_rpn.py", "--train_scans", slices, "--train_masks", slice_masks],
        *["--val_scans", slices, "--val_masks", slice_masks, "--model_prefix", "rpn", "--image_size", 64],
        *["--dataset_anchors", "auto"],
        *["--batch_size", 8, "--lr", 1e-3, "--max_epochs", 2, "--transforms", "flip", *ROI, *QUICK],
        *["--logger", "wandb", "csv", "tensorboard"],
        cwd=cwd,
    )
    seg = run_script(
        *["train_strokeformer.py", "--train_scans", scans, "--train_masks", masks, "--val_scans", scans],
        *["--val_masks", masks, "--model_prefix", "seg", "--rpn_ckpt_path", "RPN/rpn/checkpoints/best.ckpt"],
        *["--score_threshold", 0.01, "--max_epochs", 2, "--max_lr", 1e-3, "--cls_loss", "BCEWithLogitsLoss"],
        *["--transforms", "flip", "affine", "contrast", "noise", "bias_field", "resolution", "lesion_contrast"],
        *[*GRID, *ROI, *QUICK, "--ema_decay", 0.9, "--seg_loss", "CCDiceCELoss"],
        cwd=cwd,
    )
    return SimpleNamespace(
        cwd=cwd,
        scans=scans,
        masks=masks,
        slices=slices,
        slice_masks=slice_masks,
        rpn=cwd / "RPN/rpn/checkpoints/best.ckpt",
        seg=cwd / "StrokeFormer/seg/checkpoints/best.ckpt",
        output={"slices": cut, "rpn": rpn, "seg": seg},
    )
