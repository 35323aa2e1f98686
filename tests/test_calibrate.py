"""Thresholds chosen anew on other scans: what is written, that the scripts take it, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pytest

from data.scans.cohort import pair_cases
from models.checkpoints import load_rpn, load_strokeformer, read_checkpoint
from models.training.rpn import choose_threshold
from tests.running import GRID
from tests.test_prepare import run_here


def calibrate(workspace, out_dir, *more, masks=None, code=0):
    brains = workspace.scans.parent / "Brains"
    given = ["--scans", workspace.scans, "--masks", masks or workspace.masks, "--brains_dir", brains]
    networks = ["--rpn_ckpt_path", workspace.rpn, "--ckpt_path", workspace.seg]
    return run_here("calibrate", *given, *networks, "--out_dir", out_dir, *more, code=code)


def test_both_stages_get_the_thresholds_of_the_scans_and_keep_their_weights(workspace, tmp_path):
    before = workspace.rpn.read_bytes(), workspace.seg.read_bytes()
    out = calibrate(workspace, tmp_path / "fitted").out
    assert (workspace.rpn.read_bytes(), workspace.seg.read_bytes()) == before
    rpn, model = load_rpn(tmp_path / "fitted/stage1.ckpt"), load_strokeformer(tmp_path / "fitted/stage2.ckpt")
    curve = pd.read_csv(tmp_path / "fitted/calibration.csv")
    assert rpn.hparams["score_threshold"] == pytest.approx(choose_threshold(curve, 0.5))
    decisions = pd.read_csv(tmp_path / "fitted/decisions.csv")
    assert model.decision.threshold in set(decisions.threshold)
    assert "Calibrated" in out and "Lesion is what has a probability above" in out
    for source, path in ((workspace.rpn, "stage1.ckpt"), (workspace.seg, "stage2.ckpt")):
        old, new = (read_checkpoint(each)["state_dict"] for each in (source, tmp_path / "fitted" / path))
        assert all(np.array_equal(old[name], new[name]) for name in old)
    scan = pair_cases([workspace.scans], None)[0].scan
    networks = ["--rpn_ckpt_path", tmp_path / "fitted/stage1.ckpt", "--ckpt_path", tmp_path / "fitted/stage2.ckpt"]
    tables = ["--scores_dir", tmp_path / "scores", "--model_name", "fitted", "--n_predictions", 0]
    run_here("test_strokeformer", "--scans", scan, *networks, *tables, *GRID)
    assert (tmp_path / "scores/fitted/run.json").exists()


def test_several_networks_of_stage_2_become_one_with_thresholds_of_its_own(workspace, tmp_path):
    other = tmp_path / "other.ckpt"
    shutil.copy(workspace.seg, other)
    calibrate(workspace, tmp_path / "fitted", "--ckpt_path", workspace.seg, other)
    both, alone = load_strokeformer(tmp_path / "fitted/stage2.ckpt"), load_strokeformer(workspace.seg)
    assert both.hparams["members"] == 2 and both.grid == alone.grid and both.contrast == alone.contrast
    assert both.decision.threshold in set(pd.read_csv(tmp_path / "fitted/decisions.csv").threshold)
    told = calibrate(workspace, tmp_path / "none", "--ckpt_path", tmp_path / "fitted/stage2.ckpt", other, code=2).err
    assert "holds several networks already" in told and not (tmp_path / "none").exists()


def test_scans_without_lesion_choose_no_threshold(workspace, tmp_path):
    masks = tmp_path / "Masks"
    masks.mkdir()
    for case in pair_cases([workspace.scans], [workspace.masks]):
        np.save(masks / case.mask.name, np.zeros_like(np.load(case.mask)))
    told = calibrate(workspace, tmp_path / "fitted", masks=masks, code=2).err
    assert "--masks hold no lesion" in told and not (tmp_path / "fitted/stage1.ckpt").exists()


def test_networks_given_for_one_another_are_refused_before_the_scans_are_read(workspace, tmp_path):
    told = calibrate(workspace, tmp_path / "fitted", "--ckpt_path", workspace.rpn, code=2).err
    assert "is a checkpoint of RPN, not of StrokeFormer" in told and not (tmp_path / "fitted").exists()
