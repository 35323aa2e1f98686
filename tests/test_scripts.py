"""Every script end to end, as a process of its own on a tiny cohort, and the mistakes a user can make with them."""

import json
import os
import re
import shutil
import signal
from collections import Counter
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import label
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.scans.cohort import pair_cases
from models.checkpoints import store_hyperparameters
from tests.isles26 import organisers_scores
from tests.running import (
    GRID,
    QUICK,
    ROI,
    is_png,
    processes_called,
    run_script,
    start_python_anew,
    start_script,
    wait_for,
)
from utils.files import update_table
from utils.regions.region import Region, read_regions, region_mask, write_regions
from utils.scores.intervals import estimate
from utils.scores.masks import TWENTY_SIX_CONNECTED

SCRIPTS = ["cross_validation.py", "train_rpn.py", "train_strokeformer.py", "test_rpn.py", "test_strokeformer.py"]
RPN_COLUMNS = ["model_name", "map", "map_50", "iou", "lesion_coverage", "lesion_recall", "proposed_fraction"]
RPN_SCAN_COLUMNS = [
    *["model_name", "scan", "lesion_voxels", "covered_voxels", "lesions", "covered_lesions", "region_voxels"],
    *["brain_voxels", "lesion_slices", "iou", "lesion_coverage", "lesion_recall", "proposed_fraction"],
]
SCORE_COLUMNS = [
    *["model_name", "dice", "iou", "precision", "recall", "f1", "mcc", "hd95", "assd"],
    *["lesion_f1", "lesion_count_difference", "volume_difference"],
    *["lesion_f1_atlas", "lesion_precision_atlas", "lesion_recall_atlas", "false_lesions_atlas"],
    *["lesion_f1_isles", "lesion_precision_isles", "lesion_recall_isles", "false_lesions_isles"],
    *["lesion_f1_strict", "lesion_precision_strict", "lesion_recall_strict", "false_lesions_strict"],
    *["lesion_f1_isles26", "lesion_precision_isles26", "lesion_recall_isles26", "false_lesions_isles26"],
    *["pr_auc", "surface_dice_1mm", "surface_dice_3mm"],
]
MAPS = (("predictions", "prediction"), ("probabilities", "probability"))
LESION_COLUMNS = [
    *["model_name", "scan", "kind", "x_mm", "y_mm", "z_mm", "slice", "voxels", "volume_cm3", "found", "dice"],
    *["side", "mni_x_mm", "mni_y_mm", "mni_z_mm", "region"],
]
VOLUME_COLUMNS = ["model_name", "scan", "predicted_lesions", "predicted_cm3", "true_lesions", "true_cm3", "side"]
INTERVAL_COLUMNS = ["model_name", "size", "score", "mean", "low", "high", "scans"]
RECALLS = [f"lesion_recall, {volume} cm3" for volume in ("under 0.1", "0.1 to 1", "1 to 10", "10 to 50", "over 50")]


def read_intervals(path, sizes):
    """A file of intervals, once it has a row for each mean of the tables `sizes` (size: score: mean)."""
    table = pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in ("mean", "low", "high")})
    assert table.columns.tolist() == INTERVAL_COLUMNS
    table = table.set_index(["size", "score"])
    expected = {(size, score): mean for size, scores in sizes.items() for score, mean in scores.items()}
    assert table.index.tolist() == list(expected)
    assert table["mean"].tolist() == pytest.approx(list(expected.values()), nan_ok=True)
    known = table.dropna(subset="low")
    assert len(known) and (known.scans > 1).all() and (known.low <= known["mean"]).all()
    assert (known["mean"] <= known.high).all()
    return table


# --- the contract of the command line ------------------------------------------------------------------

# Arguments and defaults of the reference description, script by script.
SHARED_TEST = {
    "--seed": "42",
    "--num_workers": "0",
    "--resize_to": "None",
    "--num_classes": "2",
    "--n_predictions": "30",
}
CONTRACT = {
    "cross_validation.py": {
        **{"--seed": "42", "--k": "5", "--splits": "[70, 10, 20]", "--use_augmented": "False", "--ext": ".npy"},
        **{"--augmented_dir": "data/ATLAS_2/Processed/Augmented/", "--transforms": "None", "--rpn_batch_size": "32"},
        **{"--batch_size": "8", "--num_workers": "0", "--subvolume_depth": "189", "--overlap": "None"},
        **{"--resize_to": "None", "--scan_dim": "[1, 189, 192, 192]", "--num_classes": "2", "--in_channels": "1"},
        **{"--opt_lr": "3e-05", "--warmup_lr": "4e-06", "--max_lr": "0.0004", "--warmup_steps": "10"},
        **{"--weight_decay": "0.001", "--eps": "1e-08", "--betas": "[0.9, 0.999]", "--roi_size": "[64, 64, 64]"},
        **{"--seg_loss": "DiceCELoss", "--cls_loss": "None", "--cls_loss_weight": "0.5", "--seg_loss_weight": "0.5"},
        **{"--default_root_dir": "StrokeFormer", "--project": "StrokeFormer", "--group": "None"},
        **{"--max_epochs": "250", "--patience": "50", "--entity": "neurone-lab", "--offline": "False"},
        **{"--devices": "[0]", "--rpn_lr": "0.0001", "--rpn_eps": "1e-08", "--rpn_betas": "[0.9, 0.999]"},
        **{"--rpn_weight_decay": "0.0001", "--dataset_anchors": "ATLAS", "--rpn_backbone_weights": "None"},
        **{"--rpn_default_root_dir": "RPN", "--rpn_project": "RPN", "--rpn_max_epochs": "250", "--rpn_patience": "50"},
        **{"--rpn_group": "None", "--min_delta": "0.001", "--lr_logging_interval": "epoch", "--num_samples": "5"},
        **{"--log_every_n_val_epochs": "5", "--target_layers": "None", "--scores_dir": "./scores"},
        **{"--scores_file": "scores.csv", "--rpn_scores_dir": "./rpn_scores", "--rpn_scores_file": "scores.csv"},
        **{"--scans_dir": None, "--masks_dir": None, "--model_prefix": None, "--rpn_model_prefix": None},
        **{"--seg_loss_cfg": "{"},
    },
    "train_rpn.py": {
        **{"--seed": "42", "--batch_size": "32", "--num_workers": "0", "--lr": "0.0001", "--eps": "1e-08"},
        **{"--betas": "[0.9, 0.999]", "--weight_decay": "0.0001", "--dataset_anchors": "ATLAS"},
        **{"--backbone_weights": "None", "--default_root_dir": "RPN", "--project": "RPN", "--max_epochs": "250"},
        **{"--patience": "50", "--group": "None", "--model_prefix": None, "--devices": "[0]", "--transforms": "None"},
    },
    "train_strokeformer.py": {
        **{"--seed": "42", "--batch_size": "8", "--arch": "trans_unet", "--regions": "None", "--rpn_ckpt_path": "None"},
        **{"--max_lr": "0.0004", "--roi_size": "[64, 64, 64]", "--default_root_dir": "StrokeFormer"},
        **{"--model_prefix": None, "--max_epochs": "250", "--patience": "50", "--devices": "[0]"},
    },
    "test_rpn.py": {
        **SHARED_TEST,
        **{"--scans": None, "--masks": None, "--ckpt_path": None, "--model_name": "None", "--batch_size": "32"},
        **{"--scores_dir": "./rpn_scores", "--scores_file": "rpn_scores.csv"},
    },
    "test_strokeformer.py": {
        **SHARED_TEST,
        **{"--scans": None, "--masks": "None", "--ckpt_path": None, "--model_name": "None", "--batch_size": "8"},
        **{"--subvolume_depth": "189", "--overlap": "None", "--scan_dim": "[1, 189, 192, 192]", "--regions": "None"},
        **{"--target_layers": "None", "--scores_dir": "./scores", "--scores_file": "scores.csv"},
        **{"--per_size_scores_file": "per_size_scores.csv"},
    },
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_argument_of_the_reference_with_its_default(script, tmp_path):
    entries = re.split(r"\n  (?=--)", run_script(script, "--help", cwd=tmp_path).out)[1:]
    options = {entry.split()[0]: " ".join(entry.split()) for entry in entries}
    for argument, default in CONTRACT[script].items():
        assert argument in options, argument
        if default is not None:
            assert f"(default: {default}" in options[argument], (argument, options[argument])


def test_help_of_a_cross_validation_is_short_enough_to_read(tmp_path):
    words = run_script("cross_validation.py", "--help", cwd=tmp_path).out
    assert len(re.findall(r"\n  --", words)) <= 86


# --- the scripts do what they say ----------------------------------------------------------------------


def test_training_leaves_checkpoint_log_curves_pictures_and_provenance(workspace):
    for folder in (workspace.rpn.parent.parent, workspace.seg.parent.parent):
        assert is_png(folder / "loss_curves.png")
        assert all(is_png(p) for p in folder.glob("predictions/epoch-00[01]/*.png"))
        assert len(list(folder.glob("predictions/epoch-*/*.png"))) == 2
        log = pd.read_csv(next(folder.glob("logs/version_0/metrics.csv")))
        assert {"train_loss", "val_loss", "lr-AdamW"} <= set(log.columns)
        run = json.loads((folder / "run.json").read_text())
        assert run["settings"]["seed"] == 42 and run["versions"]["torch"] == torch.__version__.split("+")[0]
        assert "--model_prefix" in run["command"] and run["git_commit"]
    assert {"val_map", "val_map_50", "val_iou"} <= set(
        pd.read_csv(workspace.rpn.parent.parent / "logs/version_0/metrics.csv").columns
    )
    assert (workspace.rpn.parent.parent / "calibration.csv").exists()
    assert is_png(workspace.rpn.parent.parent / "calibration.png")


def test_losses_and_pictures_are_in_every_log_that_shows_them(workspace):
    folder = workspace.rpn.parent.parent
    losses = pd.read_csv(folder / "logs/version_0/metrics.csv")[["step", "train_loss"]].dropna()
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    events = shown.Scalars("train_loss")
    assert [(event.step, event.value) for event in events] == [
        (row.step, pytest.approx(row.train_loss)) for row in losses.itertuples()
    ]
    drawn = sorted(path.stem for path in (folder / "predictions/epoch-000").iterdir())
    assert shown.Tags()["images"] == [f"predictions/{drawn[0]}", "training/calibration", "training/loss_curves"]
    (run,) = folder.glob("wandb/offline-run-*")
    pictures = Counter(path.name.split("_")[0] for path in run.glob("files/media/images/*.png"))
    assert pictures == {"predictions": 2, "training": 2}  # of two epochs; calibration and losses


def test_checkpoints_hold_plain_data_and_say_what_they_are(workspace):
    for path, name in ((workspace.rpn, "RPN"), (workspace.seg, "StrokeFormer")):
        assert torch.load(path, weights_only=True)["model"] == name


def test_finished_training_is_not_repeated_and_longer_training_goes_on(workspace):
    common = [
        *["train_rpn.py", "--train_scans", workspace.slices, "--train_masks", workspace.slice_masks],
        *["--val_scans", workspace.slices, "--val_masks", workspace.slice_masks, "--model_prefix", "again"],
        *["--image_size", 32, "--batch_size", 16, *ROI, *QUICK],
    ]
    run_script(*common, "--max_epochs", 1, "--logger", "tensorboard", cwd=workspace.cwd)
    folder = workspace.cwd / "RPN/again"
    assert is_png(folder / "loss_curves.png") and not (folder / "wandb").exists()
    assert "trained already" in run_script(*common, "--max_epochs", 1, cwd=workspace.cwd).out
    run_script(*common, "--max_epochs", 2, cwd=workspace.cwd)
    assert any(folder.glob("wandb/offline-run-*"))  # other logs are no other run
    assert json.loads((folder / "finished.json").read_text())["epochs"] == 2
    resumed = pd.read_csv(folder / "logs/version_1/metrics.csv")
    assert set(resumed.epoch.dropna()) == {1}  # epoch 0 was not trained again


def test_run_with_other_settings_does_not_mix_into_a_folder(workspace):
    error = run_script(
        *["train_rpn.py", "--train_scans", workspace.slices, "--train_masks", workspace.slice_masks],
        *["--val_scans", workspace.slices, "--val_masks", workspace.slice_masks, "--model_prefix", "rpn"],
        *["--image_size", 96, *ROI, *QUICK],
        cwd=workspace.cwd,
        code=2,
    ).err
    assert "--" in error and "choose another name or folder" in error


def test_rpn_is_tested_on_slices(workspace):
    done = run_script(
        *["test_rpn.py", "--scans", workspace.slices, "--masks", workspace.slice_masks, "--ckpt_path", workspace.rpn],
        *["--model_name", "tested", "--n_predictions", 4, *ROI],
        cwd=workspace.cwd,
    )
    table = pd.read_csv(workspace.cwd / "rpn_scores/rpn_scores.csv")
    assert list(table.columns) == RPN_COLUMNS and table.model_name.tolist() == ["tested"]
    assert table.loc[0, ["lesion_coverage", "lesion_recall"]].between(0, 1).all()
    pictures = list((workspace.cwd / "rpn_scores/tested/predictions").glob("*.png"))
    assert len(pictures) == 4 and all(map(is_png, pictures))
    by_size = pd.read_csv(workspace.cwd / "rpn_scores/rpn_per_size_scores.csv")
    assert list(by_size.columns) == ["model_name", "size", "n", *RPN_COLUMNS[1:]]
    assert by_size["size"].tolist() == ["No Lesion", "Small", "Medium", "Large"]
    lesions = pd.read_csv(workspace.cwd / "rpn_scores/rpn_per_lesion_scores.csv")
    assert list(lesions.columns) == ["model_name", "scan", "voxels", "volume_cm3", "covered"]
    assert (lesions.volume_cm3 - 0.512 * lesions.voxels).abs().max() < 1e-6
    assert table.lesion_recall[0] == pytest.approx((lesions.covered >= 0.5).mean())
    missed = {row.scan for row in lesions.itertuples() if row.covered < 1}
    per_scan = pd.read_csv(workspace.cwd / "rpn_scores/rpn_per_scan_scores.csv")
    assert list(per_scan.columns) == RPN_SCAN_COLUMNS and len(per_scan) == 6
    assert table.lesion_coverage[0] == pytest.approx(per_scan.covered_voxels.sum() / per_scan.lesion_voxels.sum())
    assert table.iou[0] == pytest.approx(np.average(per_scan.iou.fillna(0), weights=per_scan.lesion_slices))
    recalls = pd.cut(lesions.volume_cm3, [0, 0.1, 1, 10, 50, np.inf], right=False, labels=RECALLS)
    by_volume = (lesions.covered >= 0.5).groupby(recalls, observed=False).mean()
    means = {"": {**table.loc[0, RPN_COLUMNS[1:]], **by_volume}}
    means |= {row["size"]: row[RPN_COLUMNS[1:]] for _, row in by_size.iterrows()}
    intervals = read_intervals(workspace.cwd / "rpn_scores/rpn_scores_intervals.csv", means)
    assert intervals.low.loc[("", ["map", "map_50"])].isna().all()
    coverage = intervals.loc[("", "lesion_coverage")]
    shown = f"{coverage['mean']:.3f} [{coverage.low:.3f}, {coverage.high:.3f}]"
    assert f"lesion_coverage  {shown}" in done.out
    misses = {p.name.split("_slice-")[0] + ".npy" for p in (workspace.cwd / "rpn_scores/tested/misses").glob("*.png")}
    assert misses == missed and len(misses) <= 10
    regions = read_regions(workspace.cwd / "rpn_scores/tested/regions.json")
    brains = {name: np.load(workspace.cwd / "slices/Brains" / name) for name in regions}
    proposed = sum(region_mask(found, brains[name].shape).sum() for name, found in regions.items())
    assert len(regions) == 6
    assert table.proposed_fraction[0] == pytest.approx(proposed / sum(brain.sum() for brain in brains.values()))


def test_scans_with_masks_are_segmented_and_scored(workspace):
    done = run_script(
        *["test_strokeformer.py", "--scans", workspace.scans, "--masks", workspace.masks, "--ckpt_path", workspace.seg],
        *["--rpn_ckpt_path", workspace.rpn, "--n_predictions", 2, "--target_layers", "decoders.0", "decoders.1", *GRID],
        "--probabilities",
        cwd=workspace.cwd,
    )
    scores = workspace.cwd / "scores"
    table = pd.read_csv(scores / "scores.csv")
    assert list(table.columns) == SCORE_COLUMNS and table.model_name.tolist() == ["seg"]
    per_scan = pd.read_csv(scores / "per_scan_scores.csv")
    assert list(per_scan.columns) == ["model_name", "scan", *SCORE_COLUMNS[1:]] and len(per_scan) == 6
    assert table.dice[0] == pytest.approx(per_scan.dice.mean())
    for case in pair_cases([workspace.scans], [workspace.masks]):
        written = (f"{part}/{case.stem}_{kind}.npy" for part, kind in MAPS)
        prediction, probability = (np.load(scores / "seg" / path)[0] for path in written)
        expected = organisers_scores(prediction > 0, np.load(case.mask)[0] > 0, probability, (8, 8, 8))
        row = per_scan.set_index("scan").loc[case.name, list(expected)].astype(float)
        assert row.to_dict() == pytest.approx(expected, abs=1e-9)
    by_size = pd.read_csv(scores / "per_size_scores.csv")
    assert by_size["size"].tolist() == ["No Lesion", "Small", "Medium", "Large"]
    means = {"": table.loc[0, SCORE_COLUMNS[1:]]}
    means |= {row["size"]: row.drop(["model_name", "size", "n"]) for _, row in by_size.iterrows()}
    dice = read_intervals(scores / "scores_intervals.csv", means).loc[("", "dice")]
    assert f"  dice  {dice['mean']:.3f} [{dice.low:.3f}, {dice.high:.3f}]" in done.out and dice.scans == 6
    lesions = pd.read_csv(scores / "per_lesion_scores.csv")
    assert list(lesions.columns) == LESION_COLUMNS
    true, false = (lesions[lesions.kind == kind].set_index("scan") for kind in ("lesion", "false_lesion"))
    assert (
        true.groupby(level=0).found.mean() == per_scan.set_index("scan").lesion_recall_isles[true.index.unique()]
    ).all()
    assert len(false) == per_scan.false_lesions_isles.sum() and false.found.isna().all() and false.dice.isna().all()
    volumes = pd.read_csv(scores / "volumes.csv").query("model_name == 'seg'").set_index("scan")
    assert volumes.true_lesions.sum() == len(true)
    assert volumes.true_cm3.sum() == pytest.approx(true.volume_cm3.sum())
    for scan, place in true[["x_mm", "y_mm", "z_mm"]].iterrows():  # of a .npy from its first voxel, in mm
        assert (place >= 0).all() and (place < 8 * np.array(np.load(workspace.scans / scan).shape[1:])).all()
    for folder in ("predictions", "gradcam"):
        pictures = list((scores / "seg" / folder).glob("*.png"))
        assert len(pictures) == 2 and all(map(is_png, pictures))
    for prediction in (scores / "seg/predictions").glob("*.npy"):
        mask = np.load(prediction)
        assert mask.shape == (1, 25, 29, 24) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}


def test_what_is_lesion_is_chosen_in_training_and_can_be_fixed_in_a_test(workspace, tmp_path):
    table = pd.read_csv(workspace.seg.parent.parent / "decisions.csv")
    columns = ["threshold", "probability", "dice", "lesion_f1", "found", "missed", "false", "constant"]
    assert table.columns.tolist() == [
        *columns,
        *(f"weight_{name}" for name in ("volume_cm3", "peak", "mean", "evidence")),
    ]
    chosen = torch.load(workspace.seg, weights_only=True)["hyper_parameters"]
    row = table[(table.threshold == chosen["lesion_threshold"])]
    row = row[row.constant == chosen["lesion_weights"][0]] if chosen["lesion_weights"] else row[row.probability == 0]
    assert (row.dice + row.lesion_f1).item() == pytest.approx((table.dice + table.lesion_f1).max())
    assert f"Lesion is what has a probability above {row.threshold.item():g}, " in workspace.output["seg"]
    scan = next(workspace.scans.iterdir())
    test = ["test_strokeformer.py", "--scans", scan, "--ckpt_path", workspace.seg, "--n_predictions", 0]
    for name, *fixed in (("all", 0), ("none", 1), ("vast", 0, "--smallest_lesion_cm3", 1e6)):
        decision = ["--lesion_threshold", *fixed, "--flip_average", "--model_name", name]
        run_script(*test, *decision, *GRID, cwd=tmp_path)
    found = pd.read_csv(tmp_path / "scores/volumes.csv").groupby("model_name").predicted_cm3
    assert (found.min()["all"] > 0) and found.max()["none"] == found.max()["vast"] == 0


def test_one_nifti_scan_without_mask_gives_a_nifti_on_its_grid(workspace, tmp_path):
    array = np.load(next(workspace.scans.iterdir()))[0]
    affine = np.array([[0, 8.0, 0, -90], [-8.0, 0, 0, 100], [0, 0, 8.0, -70], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array.transpose(1, 0, 2)[::-1], affine), tmp_path / "one scan.nii.gz")
    run_script(
        *["test_strokeformer.py", "--scans", tmp_path / "one scan.nii.gz", "--ckpt_path", workspace.seg],
        *["--rpn_ckpt_path", workspace.rpn, "--model_name", "one", *GRID, "--target_layers", "decoders.1"],
        *["--probabilities", "--uncertainty", "--lesion_threshold", 0.3, "--score_threshold", 0.01],
        cwd=tmp_path,
    )
    written = nib.load(tmp_path / "scores/one/predictions/one scan_prediction.nii.gz")
    assert written.shape == (29, 25, 24) and written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, affine)
    assert is_png(tmp_path / "scores/one/predictions/one scan.png")
    assert [path.name for path in (tmp_path / "scores").glob("*.csv")] == ["volumes.csv"]
    volumes = pd.read_csv(tmp_path / "scores/volumes.csv")
    assert volumes.columns.tolist() == VOLUME_COLUMNS and volumes.scan.tolist() == ["one scan.nii.gz"]
    predicted = np.asarray(written.dataobj) > 0
    assert volumes.predicted_cm3.tolist() == pytest.approx([0.512 * predicted.sum()])
    assert volumes[["true_lesions", "true_cm3"]].isna().all(axis=None)
    maps = {}
    for folder, kind in (("probabilities", "probability"), ("uncertainty", "uncertainty"), ("gradcam", "gradcam")):
        image = nib.load(tmp_path / f"scores/one/{folder}/one scan_{kind}.nii.gz")
        values = maps[kind] = image.get_fdata(dtype=np.float32)
        assert values.shape == written.shape and image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(image.affine, affine)
        assert values.min() == 0 and 0 < values.max() <= 1
    assert (maps["probability"][predicted] > 0.3).all()
    regions = read_regions(tmp_path / "scores/one/regions.json")["one scan.nii.gz"]
    proposed = np.flip(region_mask(regions, (24, 25, 29)).transpose(2, 1, 0), 0)  # (D, H, W) as the file has it
    for values in maps.values():
        assert not values[~proposed].any()
    labels, n = label(maps["probability"] > 0.3, TWENTY_SIX_CONNECTED)  # those that touch no detection are none
    assert predicted.any() and all(len(np.unique(predicted[labels == i])) == 1 for i in range(1, n + 1))


def test_predictions_do_not_depend_on_the_intensity_scale(workspace, tmp_path):
    """Scans times 1000, mapped to [0, 1] or shifted by 500, in one folder as if they were other subjects.

    The scans hold whole numbers, as scanners write them: a shift then rounds nothing away, and what differs afterwards
    is the pipeline's doing.
    """
    changes = {
        "raw": lambda scan: scan,
        "scaled": lambda scan: 1000 * scan,
        "unit": lambda scan: (scan - scan.min()) / (scan.max() - scan.min()),
        "shifted": lambda scan: scan + 500,
    }
    for part in ("Scans", "Brains"):
        (tmp_path / part).mkdir()
    subjects, brains = (sorted(folder.iterdir())[:2] for folder in (workspace.scans, workspace.scans.parent / "Brains"))
    for path, brain in zip(subjects, brains, strict=True):
        for name, change in changes.items():
            scan = np.rint(10 * np.load(path))
            np.save(tmp_path / "Scans" / path.name.replace("sub-", f"sub-{name}"), change(scan))
            shutil.copy(brain, tmp_path / "Brains" / brain.name.replace("sub-", f"sub-{name}"))
    common = ["test_strokeformer.py", "--scans", "Scans", "--ckpt_path", workspace.seg, "--n_predictions", 0, *GRID]
    run_script(*common, "--rpn_ckpt_path", workspace.rpn, "--score_threshold", 0.01, cwd=tmp_path)
    for path in subjects:
        files = {name: f"{path.stem.replace('sub-', f'sub-{name}')}_prediction.npy" for name in changes}
        predictions = {name: np.load(tmp_path / "scores/seg/predictions" / file) for name, file in files.items()}
        for name, prediction in predictions.items():
            common = np.count_nonzero(prediction & predictions["raw"])
            assert predictions["raw"].any() and 2 * common > 0.99 * (prediction.sum() + predictions["raw"].sum()), name


def test_regions_file_and_rpn_lead_to_the_same_prediction(workspace):
    scans = sorted(workspace.scans.iterdir())[:2]
    common = ["test_strokeformer.py", "--scans", *scans, "--ckpt_path", workspace.seg, "--n_predictions", 0]
    run_script(*common, "--rpn_ckpt_path", workspace.rpn, "--model_name", "by_rpn", *GRID, cwd=workspace.cwd)
    regions = workspace.cwd / "scores/by_rpn/regions.json"
    run_script(*common, "--regions", regions, "--model_name", "by_file", *GRID, cwd=workspace.cwd)
    by_rpn, by_file = (sorted((workspace.cwd / f"scores/{n}/predictions").iterdir()) for n in ("by_rpn", "by_file"))
    assert len(by_rpn) == 2
    for one, other in zip(by_rpn, by_file, strict=True):
        np.testing.assert_array_equal(np.load(one), np.load(other))


def test_unknown_evidence_of_stage_1_is_said(workspace, tmp_path):
    weighing, scan = tmp_path / "weighing.ckpt", sorted(workspace.scans.iterdir())[0]
    shutil.copy(workspace.seg, weighing)
    store_hyperparameters(weighing, lesion_weights=[0.5, 0.0, 1.0, 0.0, 1.0])
    regions = {scan.name: [Region(0, 16, 2, 2, 18, 18)]}
    write_regions(tmp_path / "regions.json", regions)
    test = ["test_strokeformer.py", "--scans", scan, "--ckpt_path", weighing, "--n_predictions", 0, *GRID]
    without = run_script(*test, cwd=tmp_path).out
    assert "evidence of stage 1, too, which counts as 0.5 without it; give --rpn_ckpt_path" in without
    by_file = run_script(*test, "--regions", "regions.json", "--model_name", "by_file", cwd=tmp_path).out
    assert "--regions regions.json does not say how sure stage 1 was: its evidence counts as 0.5" in by_file


@pytest.fixture(scope="module")
def cross_validated(cohort, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("cv")
    command = [
        *["cross_validation.py", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks"],
        *["--model_prefix", "seg", "--rpn_model_prefix", "rpn", "--k", 2, "--splits", 34, 16, 50],
        *["--rpn_max_epochs", 2, "--max_epochs", 2, "--rpn_image_size", 64, "--rpn_lr", 1e-3, "--rpn_batch_size", 8],
        *["--score_threshold", 0.02, "--n_predictions", 2, *GRID, *ROI, *QUICK],
    ]
    return cwd, command, run_script(*command, cwd=cwd)


def test_cross_validation_leaves_every_result(cross_validated):
    cwd, _, done = cross_validated
    assert done.out.count("No W&B account") == 1 and len(list(cwd.glob("*/*_fold-*/wandb/offline-run-*"))) == 4
    run = cwd / "StrokeFormer/seg"
    folds = json.loads((run / "folds.json").read_text())["folds"]
    subjects = set(folds[0]["train"] + folds[0]["val"] + folds[0]["test"])
    assert len(subjects) == 6 and sorted(s for fold in folds for s in fold["test"]) == sorted(subjects)
    for number in range(2):
        assert len(json.loads((run / f"regions_fold-{number}.json").read_text())) == 6
        assert (cwd / f"RPN/rpn_fold-{number}/checkpoints/best.ckpt").exists()
        assert (cwd / f"StrokeFormer/seg_fold-{number}/checkpoints/best.ckpt").exists()
        assert len(list((cwd / f"scores/seg_fold-{number}/predictions").glob("*.npy"))) == 3
        assert len(list((cwd / f"rpn_scores/rpn_fold-{number}/predictions").glob("*.png"))) == 2
    assert pd.read_csv(cwd / "rpn_scores/scores.csv").columns.tolist() == RPN_COLUMNS
    assert pd.read_csv(cwd / "scores/scores.csv").model_name.tolist() == ["seg_fold-0", "seg_fold-1"]
    assert len(pd.read_csv(cwd / "scores/per_scan_scores.csv")) == 6
    assert len(pd.read_csv(cwd / "scores/per_size_scores.csv")) == 8
    groups = pd.read_csv(cwd / "scores/per_group_scores.csv")
    assert set(groups.model_name) == {"seg"} and set(groups.group) == {"lesion volume", "lesion side", "side", "centre"}


def test_cross_validation_ends_with_mean_and_deviation_over_folds(cross_validated):
    cwd, _, done = cross_validated
    summary = pd.read_csv(cwd / "scores/seg_summary.csv").set_index(["stage", "score"])
    dice = pd.read_csv(cwd / "scores/scores.csv").dice
    assert summary.loc[("strokeformer", "dice"), "mean"] == pytest.approx(dice.mean())
    assert summary.loc[("strokeformer", "dice"), "std"] == pytest.approx(dice.std())
    per_scan = pd.read_csv(cwd / "scores/per_scan_scores.csv")
    over_all = estimate(per_scan.dice, np.ones(6), seed=42)
    assert summary.loc[("strokeformer", "dice"), ["low", "high"]].tolist() == [over_all.low, over_all.high]
    rpn_scans = pd.read_csv(cwd / "rpn_scores/rpn_per_scan_scores.csv")
    over_all = estimate(rpn_scans.covered_voxels, rpn_scans.lesion_voxels, seed=42)
    assert summary.loc[("rpn", "lesion_coverage"), ["low", "high"]].tolist() == [over_all.low, over_all.high]
    assert summary.loc[("rpn", "map"), ["low", "high"]].isna().all()
    assert "lesion_coverage" in done.out and f"{dice.mean():.3f}" in done.out
    page = (cwd / "scores/seg_report.html").read_text()
    assert f"<td>{dice.mean():.3f}</td>" in page and "The report is scores/seg_report.html" in done.out
    assert all(scan in page for scan in per_scan.scan)
    (logged,) = cwd.glob("StrokeFormer/seg/wandb/offline-run-*/files/media/html/*.html")
    assert logged.read_text() == page


def require_same_tables(folder, other):
    """All tables of two cross-validations are the same to the last byte."""
    tables = sorted(path.relative_to(other) for path in other.glob("*scores/*.csv"))
    assert len(tables) == 13
    for table in tables:
        assert (folder / table).read_bytes() == (other / table).read_bytes(), table


@pytest.mark.skipif(not find_spec("ray"), reason="pip install -r requirements-ray.txt")
def test_ray_with_a_worker_killed_in_the_middle_of_a_fold_gives_the_tables_of_one_process(cross_validated, tmp_path):
    whole, command, _ = cross_validated
    program = start_script(*command, "--launcher", "ray", cwd=tmp_path)
    begun = wait_for(lambda: next(tmp_path.glob("RPN/rpn_fold-*/checkpoints/last.ckpt"), None), program)
    number = begun.parent.parent.name[-1]
    (worker,) = processes_called(f"ray::fold-{number}")
    assert not (tmp_path / f"StrokeFormer/seg/results_fold-{number}.json").exists()
    os.kill(worker, signal.SIGKILL)
    out, err = program.communicate(timeout=240)
    assert program.returncode == 0, out + err
    assert "each with CPUs: " in out and out.count("has ended") == 2
    require_same_tables(tmp_path, whole)
    record = json.loads((tmp_path / "RPN/rpn_fold-0/run.json").read_text())
    assert record["command"][1:] == list(map(str, [*command[1:], "--launcher", "ray"]))


def test_folds_run_apart_and_summed_up_give_the_tables_of_a_whole_run(cross_validated, cohort, tmp_path):
    whole, command, _ = cross_validated
    scans = sorted((cohort / "Scans").iterdir())
    command = [*command, "--logger", "csv"]  # seconds less than W&B a training
    start_python_anew()
    assert "there are 2 folds, from 0 to 1" in run_script(*command, "--folds_to_run", 2, cwd=tmp_path, code=2).err
    assert "2 folds of " in run_script(*command, "--aggregate", cwd=tmp_path, code=2).err
    done = run_script(*command, "--folds_to_run", 1, cwd=tmp_path)
    assert "Folds yet to run: 0" in done.out and not (tmp_path / "scores/seg_summary.csv").exists()
    assert "--folds_to_run 0" in run_script(*command, "--aggregate", cwd=tmp_path, code=2).err
    subjects = [f"{scan.name.split('_')[0]}\t{'acute' if i < 2 else 'chronic'}\n" for i, scan in enumerate(scans)]
    (tmp_path / "participants.tsv").write_text("participant_id\tphase\n" + "".join(subjects))
    run_script(*command, "--folds_to_run", 0, "--metadata", "participants.tsv", cwd=tmp_path)
    groups = pd.read_csv(tmp_path / "scores/per_group_scores.csv").set_index(["group", "value"])
    assert groups.loc["phase", "scans"].to_dict() == {"acute": 2, "chronic": 4}  # of both folds
    assert "phase: chronic" in (tmp_path / "scores/seg_report.html").read_text()
    (tmp_path / "scores/seg_summary.csv").unlink()
    run_script(*command, "--aggregate", cwd=tmp_path)
    assert (tmp_path / "scores/seg_summary.csv").read_bytes() == (whole / "scores/seg_summary.csv").read_bytes()
    require_same_tables(tmp_path, whole)
    torch.save({}, tmp_path / "StrokeFormer/seg_fold-0/checkpoints/best.ckpt")
    assert "is of other networks than there are now" in run_script(*command, "--aggregate", cwd=tmp_path, code=2).err


def test_interrupted_cross_validation_goes_on_where_it_stopped(cross_validated):
    """The second fold's segmentation is lost; running again redoes that alone and reproduces the scores."""
    cwd, command, _ = cross_validated
    before = pd.read_csv(cwd / "scores/scores.csv")
    first = cwd / "StrokeFormer/seg_fold-0/checkpoints/best.ckpt"
    stamp = first.stat().st_mtime_ns
    for path in sorted((cwd / "StrokeFormer/seg_fold-1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    done = run_script(*command, cwd=cwd)
    assert done.out.count("is trained and tested already") == 1 and first.stat().st_mtime_ns == stamp
    assert "rpn_fold-1 is trained already" in done.out
    pd.testing.assert_frame_equal(pd.read_csv(cwd / "scores/scores.csv"), before, rtol=1e-4)


def test_finished_fold_is_tested_again_only_where_its_results_would_be_others(cross_validated):
    cwd, command, _ = cross_validated
    before = {path: path.stat().st_mtime_ns for path in (cwd / "scores").rglob("*_prediction.npy")}
    assert run_script(*command, cwd=cwd).out.count("is trained and tested already") == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()) and len(before) == 6
    scores = (cwd / "scores/scores.csv").read_text()
    next((cwd / "scores/seg_fold-1/predictions").glob("*.npy")).unlink()
    update_table(cwd / "scores/scores.csv", "seg_fold-0", pd.DataFrame({"dice": [1.0]}))  # of another network
    assert "is trained and tested already" not in run_script(*command, cwd=cwd).out
    assert all(path.exists() for path in before) and (cwd / "scores/scores.csv").read_text() == scores


def test_cross_validation_of_other_subjects_or_masks_is_refused_once_it_has_trained(cross_validated, cohort, tmp_path):
    cwd, command, _ = cross_validated
    for part in ("Scans", "Masks", "Brains"):
        shutil.copytree(cohort / part, tmp_path / part)
    shutil.copy(cohort / "cohort.csv", tmp_path)
    moved = [*command, "--scans_dir", tmp_path / "Scans", "--masks_dir", tmp_path / "Masks"]
    scores = (cwd / "scores/scores.csv").read_bytes()
    mask = sorted((tmp_path / "Masks").iterdir())[0]
    np.save(mask, np.load(mask)[:, ::-1].copy())
    error = run_script(*moved, cwd=cwd, code=2).err
    assert "belongs to other data: train " in error or "belongs to other data: val " in error
    assert "has changed; bring back what it was begun with" in error
    shutil.copy(cohort / "Masks" / mask.name, mask)
    for part in ("Scans", "Masks", "Brains"):
        path = sorted((tmp_path / part).iterdir())[0]
        shutil.copy(path, path.with_name(path.name.replace("sub-r001s001", "sub-new")))
    assert "subject new has joined the cohort since" in run_script(*moved, cwd=cwd, code=2).err
    assert (cwd / "scores/scores.csv").read_bytes() == scores
