"""The functions of strokeformer.py, the examples of docs/python.md as they stand there, and the notebook."""

import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

import test_strokeformer
from data.scans.cohort import pair_cases
from models.checkpoints import store_hyperparameters
from strokeformer import (
    UserError,
    find_brain,
    lesion_probability,
    lesions,
    load_rpn,
    load_strokeformer,
    propose,
    read_image,
    scores,
    segment,
)
from tests.running import ROOT

NOTEBOOK = ROOT / "examples/quickstart.ipynb"
# Of networks after two epochs: what proposes and what is lesion is lowered until something is found.
EAGER = {
    "RPN": {"score_threshold": 0.01},
    "StrokeFormer": {"lesion_threshold": 0.3, "smallest_lesion_cm3": 1.0, "lesion_weights": []},
}
FOLD = "demo_fold-0"


@pytest.fixture(scope="module")
def results(workspace, tmp_path_factory) -> Path:
    """What ``make demo`` leaves, as far as it is used: networks, scans, masks, and the scores of a test of them."""
    folder = tmp_path_factory.mktemp("results")
    for stage, trained in (("RPN", workspace.rpn), ("StrokeFormer", workspace.seg)):
        path = folder / stage / FOLD / "checkpoints/best.ckpt"
        path.parent.mkdir(parents=True)
        shutil.copy(trained, path)
        store_hyperparameters(path, **EAGER[stage])
    cohort = folder / "cohort"
    for part in ("Scans", "Masks", "Brains"):
        (cohort / part).mkdir(parents=True)
        for path in sorted((workspace.scans.parent / part).iterdir())[:2]:
            shutil.copy(path, cohort / part)
    shutil.copy(workspace.scans.parent / "cohort.csv", cohort)
    arguments = ["--scans", cohort / "Scans", "--masks", cohort / "Masks", "--model_name", FOLD]
    run_test(folder, *arguments, "--scores_dir", folder / "scores")
    return folder


def run_test(results: Path, *arguments) -> None:
    """``test_strokeformer.py`` with both networks, in this process."""
    networks = {"--ckpt_path": "StrokeFormer", "--rpn_ckpt_path": "RPN"}
    given = [(name, results / stage / FOLD / "checkpoints/best.ckpt") for name, stage in networks.items()]
    command = [*arguments, *(word for pair in given for word in pair), "--n_predictions", 0]
    test_strokeformer.main(test_strokeformer.parse_args(list(map(str, command))))


@pytest.fixture(scope="module")
def networks(results):
    return (
        load_rpn(results / "RPN" / FOLD / "checkpoints/best.ckpt"),
        load_strokeformer(results / "StrokeFormer" / FOLD / "checkpoints/best.ckpt"),
    )


def save_turned(case, scan: Path, mask: Path) -> None:
    """A case as a NIfTI of other voxels: from left to right and from front to back, in slices of half the thickness."""
    affine = np.array([[-8.0, 0, 0, 90], [0, -8.0, 0, 100], [0, 0, 4.0, -70], [0, 0, 0, 1]])
    for source, path in ((case.scan, scan), (case.mask, mask)):
        array = np.repeat(np.load(source)[0, ::-1, ::-1], 2, axis=2)
        nib.save(nib.Nifti1Image(array, affine), path)


# --- functions -----------------------------------------------------------------------------------------


def test_mask_of_a_npy_scan_is_the_one_that_the_script_writes(results, networks):
    table = pd.read_csv(results / "scores/per_scan_scores.csv").set_index("scan")
    listed = pd.read_csv(results / "scores/per_lesion_scores.csv").set_index("scan")
    for case in pair_cases([results / "cohort/Scans"], [results / "cohort/Masks"]):
        mask = segment(case.scan, *networks)
        written = np.load(results / "scores" / FOLD / f"predictions/{case.stem}_prediction.npy")
        np.testing.assert_array_equal(mask.dataobj, written[0])
        assert written.any() and mask.get_data_dtype() == np.uint8
        image = read_image(case.scan)
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert image.header.get_zooms() == (8, 8, 8) and read_image(case.mask, case.scan).shape == image.shape
        found = scores(mask, case.mask)
        expected = table.loc[case.name].drop(["model_name", "pr_auc"]).to_dict()
        assert np.isnan(found.pop("pr_auc")) and found == pytest.approx(expected, nan_ok=True)
        rows = pd.read_csv(StringIO(lesions(mask, case.mask).to_csv(index=False)))
        expected = listed.loc[[case.name]].drop(columns="model_name").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, expected[rows.columns], check_dtype=False)  # masks alone have no place


def test_mask_of_another_grid_is_the_scripts_from_a_file_and_from_an_image(results, networks, no_skulls, tmp_path):
    path, truth = tmp_path / "scan.nii.gz", tmp_path / "lesion_mask.nii.gz"
    save_turned(pair_cases([results / "cohort/Scans"], [results / "cohort/Masks"])[0], path, truth)
    run_test(results, "--scans", path, "--masks", truth, "--model_name", "one", "--scores_dir", tmp_path / "scores")
    written = nib.load(tmp_path / "scores/one/predictions/scan_prediction.nii.gz")
    assert np.asarray(written.dataobj).any()
    for scan in (path, str(path), nib.load(path)):
        mask = segment(scan, *networks)
        np.testing.assert_array_equal(mask.dataobj, written.dataobj)
        np.testing.assert_array_equal(mask.affine, written.affine)
        assert mask.header["sform_code"] == written.header["sform_code"]
    table = pd.read_csv(tmp_path / "scores/per_scan_scores.csv").drop(columns=["model_name", "scan"])
    table["pr_auc"] = np.nan  # masks alone have none
    arrays = np.asarray(mask.dataobj) > 0, np.asarray(nib.load(truth).dataobj)
    for found in (scores(mask, truth), scores(*arrays, affine=mask.affine)):
        assert found == pytest.approx(table.iloc[0].to_dict(), nan_ok=True)
    pd.testing.assert_frame_equal(lesions(*arrays, affine=mask.affine), lesions(mask, truth))
    volumes = pd.read_csv(tmp_path / "scores/volumes.csv").iloc[0]
    assert len(lesions(mask)) == volumes.predicted_lesions
    assert lesions(truth).volume_cm3.sum() == pytest.approx(volumes.true_cm3)


def test_lesions_are_where_the_probability_is_high_inside_regions_and_brain(results, networks, no_skulls, tmp_path):
    path = tmp_path / "scan.nii.gz"
    save_turned(pair_cases([results / "cohort/Scans"], [results / "cohort/Masks"])[0], path, tmp_path / "mask.nii.gz")
    brain = find_brain(path)
    how = {"brain": brain, "overlap": 0.5, "flip_average": True}
    mask, probability = (
        np.asarray(function(path, *networks, **how).dataobj) for function in (segment, lesion_probability)
    )
    regions = np.asarray(propose(path, *networks, brain=brain).dataobj)
    assert set(np.unique(regions)) == {0, 1} == set(np.unique(brain.dataobj))
    assert 0 < mask.sum() <= (probability > 0.3).sum() and (probability[mask > 0] > 0.3).all()
    # Half a voxel of the networks' grid, 8 mm, is one slice of 4 mm here: there an edge is interpolated.
    assert not (probability * (1 - regions))[..., 2:-2].max() > 0.5 and probability.dtype == np.float32
    whole = lesion_probability(path, None, networks[1], brain=brain)
    assert (np.asarray(whole.dataobj) > 0).sum() > (probability > 0).sum()


def test_what_the_scripts_refuse_is_refused(results, networks, no_skulls, tmp_path):
    rpn, model = networks
    scan, *_ = sorted((results / "cohort/Scans").iterdir())
    with pytest.raises(UserError, match=r"none\.nii does not exist"):
        segment("none.nii", rpn, model)
    with pytest.raises(UserError, match="give at least --scan_dim 1"):
        segment(scan, rpn, model, scan_dim=(1, 8, 8, 8))
    for exchanged in ((model, rpn), (model, model), (rpn, rpn), (rpn, None)):
        with pytest.raises(UserError, match="load_rpn and load_strokeformer returned, in this order"):
            segment(scan, *exchanged)
    mask = segment(scan, rpn, model)
    with pytest.raises(UserError, match="has shape"):
        scores(mask, nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), mask.affine))
    path = results / "RPN" / FOLD / "checkpoints/best.ckpt"
    finer = load_rpn(path)
    finer.grid = finer.grid.__class__(finer.grid.scan_dim, None, (3.0, 3.0, 3.0))
    with pytest.raises(UserError, match="stage 1 was trained on voxels of 3 x 3 x 3 mm, not 8 x 8 x 8; take one"):
        segment(scan, finer, model)


# --- the page ------------------------------------------------------------------------------------------


def test_every_example_of_the_page_runs_as_written(results, no_skulls, tmp_path, monkeypatch, capsys):
    """But for the cross-validation, whose arguments are looked at: tests/test_readme.py runs one."""
    for stage, name in (("RPN", "RPNATLAS"), ("StrokeFormer", "StrokeFormerATLAS-split")):
        shutil.copytree(results / stage / FOLD, tmp_path / stage / name)
    case, *_ = pair_cases([results / "cohort/Scans"], [results / "cohort/Masks"])
    save_turned(case, tmp_path / "scan.nii.gz", tmp_path / "lesion_mask.nii.gz")
    files = {"Scans/sub-01_T1w.npy": case.scan, "Masks/sub-01_label-L_desc-T1lesion_mask.npy": case.mask}
    for target, source in files.items():
        (tmp_path / "data" / target).parent.mkdir(parents=True)
        shutil.copy(source, tmp_path / "data" / target)
    (tmp_path / "data/cohort.csv").write_text("scan,spacing_mm\nsub-01_T1w.npy,8 8 8\n")
    validated = []
    monkeypatch.setattr("cross_validation.main", validated.append)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in (ROOT / "docs/python.md").read_text().split("```python\n")[1:]:
        exec(compile(block.split("```")[0], "docs/python.md", "exec"), names)
    plt.close("all")
    runs = [(settings.seed, settings.training.run.model_prefix) for settings in validated]
    assert runs == [(1, "StrokeFormer-1"), (2, "StrokeFormer-2")]
    assert names["truth"].shape == names["image"].shape and len(names["per_scan"]) == len(names["volumes"]) == 1
    assert (tmp_path / "mask.png").exists() and nib.load("mask.nii.gz").shape == nib.load("scan.nii.gz").shape
    assert "scan-of-nobody.nii.gz does not exist; check the path" in capsys.readouterr().out


# --- the notebook --------------------------------------------------------------------------------------


def test_notebook_runs_on_a_tree_of_results(results, monkeypatch, tmp_path):
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a script that ran in this process has set it
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert "demo" in parameters.source
    parameters.source = f"results, cohort = Path({str(results)!r}), Path({str(results / 'cohort')!r})\nfold = 0"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 2


@pytest.mark.parametrize("folder", [ROOT, NOTEBOOK.parent], ids=["root", "examples"])
def test_notebook_finds_the_project_from_its_own_folder_and_from_the_root(folder):
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code").source
    command = [sys.executable, "-c", f"{first}\nimport data.scans.cohort\nprint(ROOT, data.scans.cohort.__file__)"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT), str(ROOT / "data/scans/cohort.py")]
