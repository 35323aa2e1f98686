"""Models that come with the program: which one segments a scan, and trainings that start from one."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cross_validation
import runner.__main__ as runner_script
from data.files.volumes import read_volume
from models.checkpoints import load_model, load_rpn, load_strokeformer
from models.cross_validation.state import checkpoints_in
from models.export import exported as models_folder
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.starts import start_from
from strokeformer import pretrained, segment
from tests.running import GRID, ROI, is_png, run_script
from utils.errors import UserError
from utils.regions.region import read_regions

PRESENT = [name for name in models_folder.SHIPPED if models_folder.is_model(models_folder.PRETRAINED / name)]


@pytest.fixture
def shipped(exported, tmp_path, monkeypatch) -> Path:
    """A folder ``pretrained/`` with a model of T1w scans alone."""
    monkeypatch.setattr(models_folder, "PRETRAINED", tmp_path / "pretrained")
    return shutil.copytree(exported.half, tmp_path / "pretrained/t1w")


def run_runner(*command) -> None:
    runner_script.main(runner_script.parse_args(list(map(str, command))))


def refusal(*command) -> str:
    with pytest.raises(UserError) as error:
        run_runner(*command)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def scan(cohort, tmp_path) -> Path:
    """A scan with its voxel size in a table, whose name says that it is T1w."""
    source = sorted((cohort / "Scans").iterdir())[1]
    shutil.copy(cohort / "cohort.csv", tmp_path)
    (tmp_path / "Scans").mkdir()
    return Path(shutil.copy(source, tmp_path / "Scans"))


def test_scan_of_a_known_contrast_gets_mask_probability_volume_side_and_picture(shipped, scan, tmp_path, capsys):
    run_runner("--scans", scan, "--out_dir", tmp_path / "out")
    name = scan.stem
    mask = read_volume(tmp_path / f"out/predictions/{name}_prediction.npy").array
    probability = read_volume(tmp_path / f"out/probabilities/{name}_probability.npy").array
    assert mask.shape == probability.shape == read_volume(scan).array.shape
    assert mask.any() and (probability[mask > 0] > 0).all()
    assert is_png(tmp_path / f"out/predictions/{name}.png")
    (row,) = csv.DictReader((tmp_path / "out/volumes.csv").open())
    assert row["scan"] == scan.name and float(row["predicted_cm3"]) == pytest.approx(0.512 * (mask > 0).sum())
    assert row["side"] in ("left", "right", "both", "midline")
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith("look at every scan") and "never seen a patient" in said


def test_results_of_scans_that_follow_stand_beside_those_of_before(shipped, scan, tmp_path):
    run_runner("--scans", scan, "--out_dir", tmp_path / "out")
    second = scan.rename(scan.with_name("sub-2_T1w.npy"))
    for _ in range(2):
        run_runner("--scans", second, "--out_dir", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out/volumes.csv").open()))
    assert [row["scan"] for row in rows] == [scan.name, second.name] == [*read_regions(tmp_path / "out/regions.json")]
    assert len({row["predicted_lesions"] for row in rows}) == 1


def test_contrast_that_neither_name_nor_argument_says_or_that_has_no_model_is_refused(shipped, scan, tmp_path):
    out_dir = ["--out_dir", tmp_path / "out"]
    unnamed = scan.rename(scan.with_name("sub-1_scan.npy"))
    assert "come with this program are of t1w, dwi, flair; --contrast" in refusal("--scans", unnamed, *out_dir)
    adc = unnamed.rename(scan.with_name("sub-1_ADC.npy"))
    assert "scans of adc: the models that come" in refusal("--scans", adc, *out_dir)
    assert "pretrained/flair holds no model; make it" in refusal("--scans", adc, *out_dir, "--contrast", "flair")
    assert not (tmp_path / "out").exists()


def test_networks_in_python_are_those_of_the_checkpoints(exported, scan, no_skulls, monkeypatch):
    monkeypatch.setattr(models_folder, "PRETRAINED", exported.full.parent)
    monkeypatch.setattr(models_folder, "SHIPPED", ("float32",))
    networks = load_rpn(exported.rpn), load_strokeformer(exported.seg)
    mask = segment(scan, *pretrained("float32"))
    np.testing.assert_array_equal(mask.dataobj, segment(scan, *networks).dataobj)
    assert np.any(mask.dataobj)
    assert checkpoints_in([str(exported.full)]) == (str(exported.full),)  # and test_strokeformer.py takes it


# --- starts --------------------------------------------------------------------------------------------


def untrained(like, **other):
    return type(like)(**{**like.hparams, **other})


@pytest.mark.parametrize(("kind", "stage"), [(RPN, "rpn"), (StrokeFormer, "seg")])
def test_checkpoint_and_exported_model_are_the_same_start(exported, kind, stage):
    trained = load_model(kind, getattr(exported, stage))
    networks = [untrained(trained) for _ in range(3)]
    for network, path in zip(networks, (getattr(exported, stage), exported.full, exported.half), strict=True):
        start_from(network, path, (8.0, 8.0, 8.0))
    one, two, half = (network.state_dict() for network in networks)
    for name, weight in trained.state_dict().items():
        if not name.endswith("num_batches_tracked") and not name.startswith("classifier"):
            assert torch.equal(one[name], weight) and torch.equal(two[name], weight), name
            torch.testing.assert_close(half[name], weight, rtol=1e-3, atol=1e-6)


WRONG_STARTS = [
    (RPN, {}, "seg", None, "is a checkpoint of StrokeFormer, not of RPN"),
    (RPN, {}, "half", (2.0, 2.0, 2.0), "8 x 8 x 8 mm, not 2 x 2 x 2; give --spacing 8 8 8"),
    (RPN, {"anchor_sizes": (8, 16, 32)}, "rpn", None, "anchor sizes of 4, not 3"),
    (StrokeFormer, {"num_classes": 3}, "half", None, "--num_classes 2, not 3; a training"),
    (StrokeFormer, {"in_channels": 2}, "half", None, "--in_channels 1, not 2; a training"),
    (StrokeFormer, {"window_size": (16, 16, 16)}, "seg", None, "--window_size 8 8 16, not 16 16 16"),
    (StrokeFormer, {"arch": "unetr", "window_size": (32, 32, 32)}, "seg", None, "--arch trans_unet, not unetr"),
]


@pytest.mark.parametrize(("kind", "other", "start", "spacing_mm", "line"), WRONG_STARTS)
def test_start_that_does_not_fit_is_refused(exported, kind, other, start, spacing_mm, line):
    network = untrained(load_model(kind, exported.rpn if kind is RPN else exported.seg), **other)
    with pytest.raises(UserError, match=line):
        start_from(network, getattr(exported, start), spacing_mm)


def test_training_starts_from_a_model_and_is_resumed_with_it_alone(workspace, exported, tmp_path):
    command = [
        *["train_rpn.py", "--train_scans", workspace.slices, "--train_masks", workspace.slice_masks],
        *["--val_scans", workspace.slices, "--val_masks", workspace.slice_masks, "--model_prefix", "fine"],
        *["--image_size", 64, "--dataset_anchors", "auto", "--batch_size", 32, "--lr", 1e-12, "--max_epochs", 1],
        *[*ROI, "--num_samples", 0, "--score_threshold", 0.5, "--logger", "csv", "--init_ckpt_path"],
    ]
    run_script(*command, exported.full, cwd=tmp_path)
    trained, start = (load_model(RPN, path) for path in (tmp_path / "RPN/fine/checkpoints/best.ckpt", exported.rpn))
    for (name, one), other in zip(trained.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    record = json.loads((tmp_path / "RPN/fine/run.json").read_text())
    assert record["settings"]["init_ckpt_path"] == str(exported.full)
    assert "the network that it starts from" in record["inputs"]
    said = run_script(*command, exported.half, cwd=tmp_path, code=2).err
    assert "belongs to other data: the network that it starts from has changed" in said


def test_cross_validation_refuses_a_start_of_another_network_before_it_prepares_scans(cohort, exported, tmp_path):
    command = ["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--model_prefix", "cv", *GRID, *ROI]
    folders = [f"--{kind}" for kind in ("default_root_dir", "rpn_default_root_dir", "scores_dir", "rpn_scores_dir")]
    command += [word for folder in folders for word in (folder, tmp_path)]
    command += [
        "--rpn_model_prefix",
        "cv-rpn",
        "--rpn_init_ckpt_path",
        exported.half,
        "--init_ckpt_path",
        exported.half,
    ]
    with pytest.raises(UserError, match="--num_classes 2, not 3"):
        cross_validation.main(cross_validation.parse_args([*map(str, command), "--num_classes", "3"]))
    assert not any(tmp_path.rglob("*.npy"))


# --- the models themselves -----------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", PRESENT)  # once all are there: SHIPPED
def test_model_finds_the_lesion_of_a_drawn_scan_and_refuses_another_contrast(contrast, tmp_path):
    how = ["--n_subjects", 1, "--healthy_fraction", 0, "--spacing", 4, "--stripped", "--seed", 8, "--ext", ".nii.gz"]
    run_script("-m", "data.phantom", "--out_dir", "drawn", "--modality", contrast, *how, cwd=tmp_path)
    (scan,), (mask,) = ((tmp_path / "drawn" / part).iterdir() for part in ("Scans", "Masks"))
    run_runner("--scans", scan, "--out_dir", tmp_path / "out", "--num_threads", 1)
    (prediction,) = (tmp_path / "out/predictions").glob("*_prediction.nii.gz")
    found, lesion = (read_volume(path).array > 0 for path in (prediction, mask))
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.3
    page = (tmp_path / "out/report.html").read_text()
    assert scan.name in page and "<iframe" in page
    other = models_folder.SHIPPED[models_folder.SHIPPED.index(contrast) - 1]
    model = models_folder.PRETRAINED / contrast
    said = refusal("--model", model, "--scans", scan, "--out_dir", tmp_path / "other", "--contrast", other)
    assert f"was trained on {contrast} scans, not on {other}" in said
