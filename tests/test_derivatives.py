"""Whole BIDS trees in, and what is found in their scans out as a BIDS derivative data set."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data.scans.cohort import pair_cases
from models.checkpoints import CHECKPOINT_VERSION
from models.evaluation.derivatives import plan_derivative
from models.segmentation.module import StrokeFormer
from tests.running import BARE, GRID
from tests.test_prepare import run_here, save
from utils.errors import UserError

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"
TURNED = np.array([[0, -8.0, 0, 90], [8.0, 0, 0, -100], [0, 0, 8.0, -70], [0, 0, 0, 1]])


def put(path: Path, seed: int = 0) -> Path:
    """A head of noise in a scan whose first axis runs from posterior to anterior."""
    array = np.zeros((29, 25, 24), np.float32)
    array[4:-4, 4:-4, 4:-4] = 60 + 20 * np.random.default_rng(seed).random((21, 17, 16))
    save(nib.Nifti1Image(array, TURNED), path)
    return path


def put_description(root: Path, **content) -> None:
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"Name": "drawn", "BIDSVersion": "1.10.0", **content})
    (root / "dataset_description.json").write_text(text)


@pytest.fixture
def raw(tmp_path, no_skulls) -> Path:
    """A BIDS tree as they are shared: two contrasts, what others derived from it, and what it was made of."""
    root = tmp_path / "raw"
    put_description(root)
    put(root / "sub-01/ses-1/anat/sub-01_ses-1_acq-hi_T1w.nii.gz", 1)
    put(root / "sub-01/ses-1/anat/sub-01_ses-1_acq-hi_FLAIR.nii.gz", 2)
    put(root / "sub-02/anat/sub-02_rec-x_run-2_T1w.nii.gz", 3)
    put_description(root / "derivatives/fmriprep", DatasetType="derivative")
    put(root / "derivatives/fmriprep/sub-02/anat/sub-02_rec-x_run-2_desc-preproc_T1w.nii.gz")
    put(root / "sourcedata/old/sub-02_run-2_T1w.nii.gz")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A network that has learned nothing: its probabilities lie about 0.5."""
    torch.manual_seed(0)
    model = StrokeFormer(roi_size=(8, 8, 16))
    path = tmp_path_factory.mktemp("untrained") / "seg/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    content = {
        "model": "StrokeFormer",
        "version": CHECKPOINT_VERSION,
        "hyper_parameters": dict(model.hparams),
        "state_dict": model.state_dict(),
    }
    torch.save(content, path)
    return path


@pytest.fixture
def segment(raw, checkpoint, monkeypatch, tmp_path):
    """``test_strokeformer.py`` on the tree, by the network without training."""
    monkeypatch.chdir(tmp_path)
    common = ["test_strokeformer", "--ckpt_path", checkpoint, "--n_predictions", 0, *GRID, "--scans", raw]
    return lambda *more, code=0: run_here(*common, *more, code=code)


def listing(root: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")} | {root: root.stat().st_mtime_ns}


def require_valid(root: Path) -> None:
    if not VALIDATOR.exists():
        pytest.skip("the validator of BIDS is not installed")
    command = [VALIDATOR, root, "--format", "json"]
    done = subprocess.run(
        command, env={**BARE, "DENO_NO_UPDATE_CHECK": "1"}, capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == [] and done.returncode == 0, issues


def test_tree_is_segmented_into_a_derivative_and_stays_as_it_is(raw, segment, checkpoint, tmp_path):
    before = listing(raw)
    done = segment("--scan_pattern", "*_t1w", "--bids_derivatives", "out", "--smallest_lesion_cm3", 2)
    assert listing(raw) == before
    assert done.out.splitlines()[:2] == [
        "Left out: 1 other volume (sub-01_ses-1_acq-hi_FLAIR.nii.gz), "
        "1 scan in derivatives/ (sub-02_rec-x_run-2_desc-preproc_T1w.nii.gz), "
        "1 scan in sourcedata/ (sub-02_run-2_T1w.nii.gz)",
        "--scans: 2 scans without masks, of 2 subjects",
    ]
    written = {
        "sub-01/ses-1/anat/sub-01_ses-1_acq-hi_label-lesion": "sub-01/ses-1/anat/sub-01_ses-1_acq-hi_T1w",
        "sub-02/anat/sub-02_rec-x_run-2_label-lesion": "sub-02/anat/sub-02_rec-x_run-2_T1w",
    }
    out, digest = tmp_path / "out", hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    expected = [f"{name}_{end}" for name in written for end in ("mask.json", "mask.nii.gz", "probseg.json")]
    expected += [f"{name}_probseg.nii.gz" for name in written] + ["dataset_description.json"]
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == sorted(expected)
    for name, scan in written.items():
        mask, probability = (nib.load(out / f"{name}_{suffix}.nii.gz") for suffix in ("mask", "probseg"))
        prediction = nib.load(tmp_path / f"scores/seg/predictions/{Path(scan).name}_prediction.nii.gz")
        assert mask.get_data_dtype() == np.uint8 and probability.get_data_dtype() == np.float32
        lesion, likely = np.asarray(mask.dataobj) > 0, np.asarray(probability.dataobj)
        np.testing.assert_array_equal(mask.dataobj, prediction.dataobj)
        for image in (mask, probability):
            np.testing.assert_array_equal(image.affine, TURNED)
            assert image.shape == (29, 25, 24)
        assert lesion.any() and (likely[lesion] > 0.5).all() and likely.max() < 1 and likely.min() == 0
        source = f"bids:raw:{scan}.nii.gz"
        sidecar = json.loads((out / f"{name}_mask.json").read_text())
        assert sidecar.pop("Description").startswith("Stroke lesions")
        assert sidecar == {
            **{"Type": "Lesion", "Manual": False, "Sources": [source], "SpatialReference": source, "Model": "seg"},
            **{"Checkpoint": "best.ckpt", "CheckpointSHA256": digest, "LesionThreshold": 0.5},
            **{"SmallestLesionCm3": 2.0, "LesionWeights": [], "FlipAverage": False},
        }
        assert json.loads((out / f"{name}_probseg.json").read_text())["Sources"] == [source]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["DatasetLinks"] == {"raw": raw.as_uri()}
    assert description["GeneratedBy"][0]["Name"] == "StrokeFormer"
    require_valid(out)


def test_contrasts_are_chosen_and_share_no_name_of_a_derivative(segment, raw):
    line = segment(code=2).err
    assert "are two contrasts (FLAIR and T1w) of one session" in line and "--scan_pattern and --mask_pattern" in line
    out = ["--bids_derivatives", raw / "derivatives/strokeformer"]
    segment("--scan_pattern", "*_T1w", *out)
    line = segment("--scan_pattern", "*_FLAIR", *out, code=2).err.splitlines()[-1]
    assert "acq-hi_label-lesion_mask.json is of another scan than " in line and "give another folder" in line
    # What was predicted is no truth to score by, though it lies in the tree that holds the masks.
    line = segment("--scan_pattern", "*_T1w", "--masks", raw, code=2).err.splitlines()[-1]
    assert "has no mask in --masks" in line
    description = json.loads((raw / "derivatives/strokeformer/dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../.."}  # both move together


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("sub-1_ses-2_dir-AP_desc-eddy_run-1_dwi", "sub-1/ses-2/dwi/sub-1_ses-2_dir-AP_run-1_label-lesion_desc-eddy"),
        (
            "sub-1_space-MNI152NLin2009aSym_res-2_desc-x_T1w",
            "sub-1/anat/sub-1_space-MNI152NLin2009aSym_res-2_label-lesion_desc-x",
        ),
        ("sub-1_inv-2_mod-x_site-3_label-L_UNIT1", "sub-1/anat/sub-1_label-lesion"),
    ],
)
def test_names_hold_the_entities_that_bids_has_for_masks_in_its_order(tmp_path, name, derived):
    scan = put(tmp_path / f"scans/{name}.nii")
    plan = plan_derivative(tmp_path / "out", pair_cases([scan], None))
    assert plan.names == {scan: derived} and not (tmp_path / "out").exists()
    assert plan.sources == {scan: f"bids:scans:{name}.nii"}  # in no data set: its folder
    assert plan.links == {"scans": (tmp_path / "scans").as_uri()}


def test_every_name_is_valid_by_the_validator(segment, tmp_path):
    for name in ("sub-1_ses-2_dir-AP_rec-TRACE_desc-eddy_dwi", "sub-2_space-custom_res-2_chunk-1_echo-1_ce-x_T1w"):
        put(tmp_path / f"mine/{name}.nii.gz")
    segment(tmp_path / "mine", "--scan_pattern", "sub-[12]_*", "--bids_derivatives", "out")
    require_valid(tmp_path / "out")


def spoil(raw: Path, out: Path, how: str) -> list:
    """The scans and the folder of a derivative that is refused."""
    if how == "npy":
        np.save(raw.parent / "sub-01_T1w.npy", np.ones((1, 4, 4, 4)))
        return [raw.parent / "sub-01_T1w.npy"]
    if how in ("no subject", "label"):
        return [put(raw.parent / {"no subject": "p1_T1w.nii.gz", "label": "sub-p.1_T1w.nii.gz"}[how])]
    if how == "one name":
        return [put(raw.parent / f"sub-01_T1w_augmented-{copy}.nii.gz") for copy in (1, 2)]
    if how == "other data set":
        put_description(out, DatasetType="derivative", GeneratedBy=[{"Name": "fMRIPrep"}])
    elif how == "no description":
        out.symlink_to(raw / "sub-02")
    return [raw / "sub-02"]


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("npy", r"sub-01_T1w\.npy does not tell where it lies; give NIfTI scans"),
        ("no subject", r"p1_T1w\.nii\.gz names no subject; rename it as in BIDS"),
        ("label", r"holds sub-p\.1; rename it with letters and digits only"),
        ("one name", r"augmented-1\.nii\.gz and .*augmented-2\.nii\.gz would both become sub-01/anat/sub-01_label-"),
        ("other data set", r"out holds another data set, by its dataset_description\.json; give a folder of its own"),
        ("no description", r"out holds the scan .*sub-02_rec-x_run-2_T1w\.nii\.gz; give a folder without scans"),
    ],
)
def test_derivative_that_would_be_wrong_is_refused_in_a_line(raw, tmp_path, how, complaint):
    cases = pair_cases(spoil(raw, tmp_path / "out", how), None)
    before = listing(tmp_path)
    with pytest.raises(UserError, match=f"^--bids_derivatives.*{complaint}") as refusal:
        plan_derivative(tmp_path / "out", cases)
    assert "\n" not in str(refusal.value) and listing(tmp_path) == before


def test_scans_of_derivatives_are_taken_where_they_are_asked_for(raw):
    (case,) = pair_cases([raw / "derivatives/fmriprep"], None)
    assert case.name == "sub-02_rec-x_run-2_desc-preproc_T1w.nii.gz"
    for path in [*raw.glob("sub-*/**/*.nii.gz"), *raw.glob("sourcedata/**/*.nii.gz")]:
        path.unlink()
    with pytest.raises(UserError, match="holds scans in derivatives/ only; give the folder of the scans"):
        pair_cases([raw], None)
