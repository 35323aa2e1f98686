"""Exported models: ONNX against PyTorch, and the runner where there is no PyTorch."""

import json
import shutil
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import nms

import runner.__main__ as runner_script
import test_strokeformer
from data.files.volumes import read_volume, write_volume
from data.scans.brain import with_brains
from data.scans.cohort import Case, pair_cases
from data.scans.prepared import prepare_scan
from models.checkpoints import load_rpn, load_strokeformer
from models.export import __main__ as export
from models.export.exported import NETWORKS, read_model
from models.segmentation.settings import SlidingWindow
from runner.model import decode, load_runner, suppress
from tests.drawn import dice
from tests.running import BARE, ROOT
from utils.errors import UserError
from utils.regions.region import read_regions

OTHER_GRID = np.array([[-8.0, 0, 0, 90], [0, -8.0, 0, 100], [0, 0, 4.0, -70], [0, 0, 0, 1]])  # LPS, thinner slices


@pytest.fixture(scope="module", autouse=True)
def in_float32():
    """PyTorch computes as onnxruntime does, whatever the processor has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.precision.has_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="module")
def files(workspace, exported, tmp_path_factory) -> SimpleNamespace:
    """The checkpoints that were exported, two scans with their brains, and a scan of another grid."""
    folder = tmp_path_factory.mktemp("export")
    for part in ("Scans", "Brains"):
        (folder / "cohort" / part).mkdir(parents=True)
        for path in sorted((workspace.scans.parent / part).iterdir())[:2]:
            shutil.copy(path, folder / "cohort" / part)
    shutil.copy(workspace.scans.parent / "cohort.csv", folder / "cohort")
    scan = next((folder / "cohort/Scans").iterdir())
    turned = np.repeat(np.load(scan)[0, ::-1, ::-1], 2, axis=2)
    nib.save(nib.Nifti1Image(turned, OTHER_GRID), folder / "turned.nii.gz")
    return SimpleNamespace(
        folder=folder,
        rpn=exported.rpn,
        seg=exported.seg,
        scans=folder / "cohort/Scans",
        turned=folder / "turned.nii.gz",
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The Python of an environment that holds what requirements-runner.txt names, and what that needs, alone."""
    root = tmp_path_factory.mktemp("bare")
    venv.create(root, symlinks=True, with_pip=False)
    (site,) = root.glob("lib/python*/site-packages")
    lines = (ROOT / "requirements-runner.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    for package in with_needs(wanted, {}).values():
        for name in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(package.locate_file(name))
    return root / "bin/python"


def with_needs(wanted: list[Requirement], found: dict[str, Distribution]) -> dict[str, Distribution]:
    for requirement in wanted:
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            package = found[requirement.name] = distribution(requirement.name)
            assert requirement.specifier.contains(package.version)
            with_needs([Requirement(need) for need in package.requires or []], found)
    return found


def run_runner(python: Path, model: Path, scans: Path, out_dir: Path, *arguments) -> str:
    command = ["-m", "runner", "--model", model, "--scans", scans, "--out_dir", out_dir, *arguments]
    environment = {**BARE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(python), *map(str, command), "--num_threads", "1"],
        cwd=out_dir.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def run_torch(files, scans: Path, out_dir: Path) -> Path:
    """``test_strokeformer.py`` with both checkpoints; returns the folder of its results."""
    given = ["--scans", scans, "--ckpt_path", files.seg, "--rpn_ckpt_path", files.rpn, "--scores_dir", out_dir]
    command = [*given, "--model_name", "torch", "--n_predictions", 0, "--probabilities"]
    test_strokeformer.main(test_strokeformer.parse_args(list(map(str, command))))
    return out_dir / "torch"


def volumes_of(folder: Path) -> dict[str, np.ndarray]:
    paths = sorted((*folder.glob("predictions/*.n*"), *folder.glob("probabilities/*.n*")))
    return {path.name: read_volume(path).array[0] for path in paths}


def cases_of(files) -> list[Case]:
    return with_brains(pair_cases([files.scans], None), None)


# --- against PyTorch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scans", ["scans", "turned"])
def test_runner_without_torch_gives_the_masks_and_probabilities_of_the_script(files, exported, bare, tmp_path, scans):
    run_runner(bare, exported.full, getattr(files, scans), tmp_path / "out")
    expected = volumes_of(run_torch(files, getattr(files, scans), tmp_path / "scores"))
    found, folders = volumes_of(tmp_path / "out"), (tmp_path / "out", tmp_path / "scores/torch")
    assert found.keys() == expected.keys() and len(found) == (4 if scans == "scans" else 2)
    for name, volume in expected.items():
        if "probability" in name:
            np.testing.assert_allclose(found[name], volume, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], volume)
        assert volume.any()
    regions = [read_regions(folder / "regions.json") for folder in folders]
    assert regions[0] == regions[1] and all(regions[0].values())
    boxes = [[box for listed in each.values() for region in listed for box in region.detected] for each in regions]
    assert boxes[0] == boxes[1]
    np.testing.assert_allclose(*([box.evidence for box in each] for each in boxes), atol=1e-5)
    brains = [{brain.name: read_volume(brain).array.sum() for brain in folder.glob("brains/*")} for folder in folders]
    assert brains[0] == brains[1] and len(brains[0]) == (scans == "turned")
    rows, expected_rows = (pd.read_csv(tmp_path / where / "volumes.csv") for where in ("out", "scores"))
    pd.testing.assert_frame_equal(rows, expected_rows[rows.columns])
    assert len(list(tmp_path.glob("out/predictions/*.png"))) == len(rows)


def test_environment_of_the_runner_has_no_torch(bare):
    done = subprocess.run([str(bare), "-c", "import onnxruntime, torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr


def test_prediction_lies_on_the_grid_of_its_scan(files, exported, tmp_path):
    command = ["--model", exported.full, "--scans", files.turned, "--out_dir", tmp_path]
    runner_script.main(runner_script.parse_args(list(map(str, command))))
    scan, mask = nib.load(files.turned), nib.load(tmp_path / "predictions/turned_prediction.nii.gz")
    assert mask.shape == scan.shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, scan.affine)


def test_half_of_the_size_gives_the_same_lesions(files, exported):
    """Given the same regions: after two epochs all boxes are about as sure, and some change places."""
    sizes = [sum((folder / name).stat().st_size for name in NETWORKS) for folder in (exported.full, exported.half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.55
    model = read_model(exported.full)
    full, half = (load_runner(folder, read_model(folder), 1) for folder in (exported.full, exported.half))
    for case in cases_of(files):
        scan = prepare_scan(case, model.grid, files.folder / "none are found")
        slices = scan.slices()
        one, other = (networks.detector.detect(slices) for networks in (full, half))
        assert np.median([abs(one[z]["scores"].max() - other[z]["scores"].max()) for z in slices]) < 1e-3
        regions = full.propose(scan)
        probabilities = [networks.segment(scan, regions, SlidingWindow(), 8) for networks in (full, half)]
        masks = [full.decision.classes(p, scan.space.spacing_mm) > 0 for p in probabilities]
        assert masks[0].any() and dice(*masks) > 1 - 1e-3
        assert 0 < np.abs(probabilities[0] - probabilities[1]).max() < 1e-3


def test_boxes_of_every_slice_are_those_of_torchvision_whatever_the_batch(files, exported):
    model, rpn = read_model(exported.full), load_rpn(files.rpn)
    detector = load_runner(exported.full, model, 1).detector
    (case, *_) = cases_of(files)
    scan = prepare_scan(case, model.grid, files.folder / "none are found")
    slices = scan.slices()
    expected = rpn.detect_volume(scan)
    for batch_size in (32, 3):
        found = detector.detect(slices, batch_size)
        assert found.keys() == expected.keys() and sum(len(one["scores"]) for one in found.values()) > 50
        for z, one in found.items():
            np.testing.assert_allclose(one["boxes"], expected[z]["boxes"], atol=1e-3)
            np.testing.assert_allclose(one["scores"], expected[z]["scores"], atol=1e-4)
    assert detector.detect({}) == {}
    assert detector.detect({3: np.zeros_like(slices[min(slices)])})[3]["boxes"].shape[1:] == (4,)


def test_nothing_proposed_is_all_background(files, exported):
    model = read_model(exported.full)
    (case, *_) = cases_of(files)
    scan = prepare_scan(case, model.grid, files.folder / "none are found")
    probabilities = load_runner(exported.full, model, 1).segment(scan, [], SlidingWindow(), 8)
    assert (probabilities[0] == 1).all() and (probabilities[1:] == 0).all()


# --- torchvision's formulas ----------------------------------------------------------------------------


def boxes_from(rng: np.random.Generator, n: int) -> np.ndarray:
    corners = rng.uniform(0, 8, (n, 2))
    return np.concatenate([corners, corners + rng.uniform(1, 20, (n, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("iou", [0.1, 0.5, 0.7])
def test_suppression_is_torchvisions(iou):
    rng = np.random.default_rng(0)
    boxes, counted = np.stack([boxes_from(rng, 60) for _ in range(5)]), rng.random((5, 60)) < 0.8
    for these, those, kept in zip(boxes, counted, suppress(boxes, counted, iou), strict=True):
        places = np.flatnonzero(those)
        scores = torch.linspace(1, 0, len(places))  # the surest first
        expected = places[nms(torch.from_numpy(these[places]), scores, iou).numpy()]
        assert np.flatnonzero(kept).tolist() == sorted(expected) and 0 < len(expected) < len(places)


def test_decoding_is_torchvisions():
    rng, coder = np.random.default_rng(0), BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes, offsets = boxes_from(rng, 50), rng.normal(0, 20, (50, 4)).astype(np.float32)
    expected = coder.decode(torch.from_numpy(offsets), [torch.from_numpy(boxes)])[:, 0].numpy()
    found = decode(offsets / np.array(coder.weights, np.float32), boxes, coder.bbox_xform_clip)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


# --- the folder ----------------------------------------------------------------------------------------


def test_folder_tells_all_that_surrounds_the_networks(files, exported):
    content, seg = (
        json.loads((exported.half / "model.json").read_text()),
        load_strokeformer(files.seg),
    )
    assert content["grid"] == {"scan_dim": [1, 24, 25, 29], "resize_to": None, "spacing_mm": [8.0, 8.0, 8.0]}
    assert content["contrast"] == "t1w" == read_model(exported.half).contrast
    assert content["orientation"] == "RAS" and content["normalisation_percentiles"] == [1, 99]
    one, two = content["stage_1"], content["stage_2"]
    assert (one["score_threshold"], one["consistency"]) == (0.01, "linked")
    assert (two["roi_size"], two["overlap"], two["lesion_threshold"]) == ([8, 8, 16], 0.25, 0.3)
    assert two["smallest_lesion_cm3"] == 1.0 and two["lesion_weights"] == [20, 0.1, 1, 0.5, 0.3]
    assert content["weights"] == "float16" and two["window"] == list(seg.window)
    for name in NETWORKS:
        network = onnx.load(exported.half / name)
        assert [(opset.domain, opset.version) for opset in network.opset_import] == [("", content["opset"])]
        assert str(ROOT).encode() not in (exported.full / name).read_bytes()  # nor any other path of this machine
        onnx.checker.check_model(network, full_check=True)


def test_card_tells_data_scores_and_limits_and_names_no_scan(files, exported):
    card = (exported.full / "MODEL_CARD.md").read_text()
    assert "Not a medical device" in card and "Intended use" in card
    assert "| stage 1 | 6 | 6 |" in card and "| stage 2 | 6 | 6 |" in card
    assert "lesion coverage" in card and "opset 20, weights in float32" in card
    assert not [path.name for path in files.scans.iterdir() if path.stem in card]


# --- refusals ------------------------------------------------------------------------------------------


def refusal(model: Path, scans: Path, out_dir: Path, *arguments) -> str:
    command = ["--model", model, "--scans", scans, "--out_dir", out_dir, *arguments]
    with pytest.raises(UserError) as error:
        runner_script.main(runner_script.parse_args(list(map(str, command))))
    assert not out_dir.exists() or not list(out_dir.rglob("*prediction*"))
    return str(error.value)


def test_runner_refuses_a_folder_that_is_no_whole_model(files, exported, tmp_path):
    assert "none holds no model.json; give a folder that" in refusal(tmp_path / "none", files.scans, tmp_path / "out")
    broken = shutil.copytree(exported.half, tmp_path / "broken")
    with (broken / "stage2.onnx").open("r+b") as file:
        file.write(b"\0")
    assert "stage2.onnx is not the network of its model.json" in refusal(broken, files.scans, tmp_path / "out")
    (broken / "stage1_boxes.onnx").unlink()
    assert "stage1_boxes.onnx is not the network of" in refusal(broken, files.scans, tmp_path / "out")
    content = json.loads((broken / "model.json").read_text())
    (broken / "model.json").write_text(json.dumps({**content, "format": 0}))
    assert "model.json is of another version" in refusal(broken, files.scans, tmp_path / "out")
    (broken / "model.json").write_text(json.dumps({**content, "stage_1": {"scale": 1}}))
    assert "model.json is of another version" in refusal(broken, files.scans, tmp_path / "out")
    (broken / "model.json").write_text('{"format": ')
    assert "model.json is no readable JSON" in refusal(broken, files.scans, tmp_path / "out")


def test_runner_refuses_scans_that_the_script_refuses(files, exported, tmp_path):
    out_dir = tmp_path / "out"
    assert "none.nii does not exist" in refusal(exported.full, tmp_path / "none.nii", out_dir)
    write_volume(tmp_path / "two.npy", np.random.default_rng(0).random((2, 24, 25, 29), np.float32))
    assert "two.npy has 2 channels" in refusal(exported.full, tmp_path / "two.npy", out_dir)
    write_volume(tmp_path / "flat.npy", np.random.default_rng(0).random((1, 1, 25, 29), np.float32))
    assert "flat.npy is a single slice" in refusal(exported.full, tmp_path / "flat.npy", out_dir)
    flair = tmp_path / "sub-1_FLAIR.npy"
    shutil.copy(next(files.scans.iterdir()), flair)
    line = f"sub-1_FLAIR.npy is of flair by its name, but {exported.full} was trained on t1w scans; take a network of"
    assert line in refusal(exported.full, flair, out_dir)
    assert "was trained on t1w scans, not on flair" in refusal(exported.full, flair, out_dir, "--contrast", "flair")
    small = refusal(exported.full, files.scans, out_dir, "--scan_dim", 1, 8, 8, 8)
    assert "give at least --scan_dim 1" in small


def test_export_refuses_what_is_no_checkpoint_of_the_stage(files, tmp_path):
    out_dir = str(tmp_path / "model")
    for rpn, seg, line in (
        (tmp_path / "none.ckpt", files.seg, "--rpn_ckpt_path .*none.ckpt does not exist; give the path"),
        (files.seg, files.seg, "is a checkpoint of StrokeFormer, not of RPN"),
    ):
        with pytest.raises(UserError, match=line):
            export.main(export.parse_args(["--rpn_ckpt_path", str(rpn), "--ckpt_path", str(seg), "--out_dir", out_dir]))
    assert not Path(out_dir).exists()
