"""Scans and masks as they are out there: air as bright as tissue, no head, torsos, masks that number their lesions."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import test_strokeformer
from data.files.volumes import read_volume, write_volume
from data.scans.checks import read_lesions
from data.scans.cohort import pair_cases
from data.scans.grid import Grid
from data.scans.head import head_mask
from data.scans.prepared import brains_in
from models.checkpoints import store_hyperparameters
from strokeformer import lesions, scores
from tests.drawn import admit, ball, dice
from tests.running import GRID, run_script
from tests.test_grid import case_of
from tests.test_prepare import prepare
from tests.test_refusals import AFFINE, SLICES, Files, refused
from utils.errors import UserError

BALL = Grid((1, 24, 30, 26))
# A lesion of two labels inside the brain of `ball`.
NUMBERED = np.zeros((24, 30, 26), np.uint8)
NUMBERED[12, 8:11, 10:14], NUMBERED[12, 18:21, 10:14] = 1, 2


# --- a head that is wrong --------------------------------------------------------------------------------


def with_noise_for_air(scan: np.ndarray, seed: int = 0) -> np.ndarray:
    """A scan (D, H, W) as of MP2RAGE (UNI): its air is noise as bright as tissue."""
    bright = np.percentile(scan, 99)
    noise = np.abs(np.random.default_rng(seed).normal(0.8 * bright, 0.2 * bright, scan.shape))
    return np.where(head_mask(scan), scan, noise).astype(np.float32)


def test_brain_amid_noise_is_found_and_the_lesions_that_are_segmented_lie_in_it(workspace, tmp_path):
    (case, *_), folder = pair_cases([workspace.scans], [workspace.masks]), workspace.scans.parent / "Brains"
    truth = read_volume(folder / f"{case.stem}_desc-brain_mask.npy").array[0] > 0
    scan = with_noise_for_air(read_volume(case.scan).array[0])
    write_volume(tmp_path / "Scans/sub-1_UNIT1.nii.gz", scan[None], AFFINE)
    write_volume(tmp_path / "Masks/sub-1_mask.nii.gz", read_volume(case.mask, np.uint8).array, AFFINE)
    eager = tmp_path / "eager.ckpt"
    shutil.copy(workspace.seg, eager)
    store_hyperparameters(eager, lesion_threshold=0.3, smallest_lesion_cm3=1.0)
    run_script(
        *["test_strokeformer.py", "--scans", tmp_path / "Scans", "--masks", tmp_path / "Masks"],
        *["--ckpt_path", eager, *GRID, "--n_predictions", 0],
        cwd=tmp_path,
    )
    brain, predicted = (
        read_volume(next(tmp_path.glob(f"scores/*/{part}.nii.gz"))).array[0] > 0
        for part in ("brains/*_desc-brain_mask", "predictions/*_prediction")
    )
    assert dice(brain, truth) > 0.85
    assert predicted.any() and not (predicted & ~brain).any()
    assert (predicted & ndimage.binary_dilation(truth)).sum() > 0.8 * predicted.sum()


def test_given_brain_counts_more_than_a_head_that_is_noise_or_missing(tmp_path, capsys):
    scan, brain = ball((24, 18, 26))  # which touches the border, as a neck does: no hole in a head
    lesion = np.zeros_like(brain)
    lesion[12, 4:8, 10:14] = True
    noisy = with_noise_for_air(scan)
    noisy[brain] = scan[brain] / 3
    thin = np.where(brain & (np.indices(brain.shape).sum(0) % 2 == 0), scan, 0)
    for name, drawing in (("sub-noisy", noisy), ("sub-thin", thin)):
        assert (head_mask(drawing) & lesion).sum() < 0.5 * lesion.sum()
        case = case_of(tmp_path, drawing, brain, lesion, AFFINE, name)
        assert admit([case], BALL, tmp_path / "none are found")[case].brain == "given"
    assert capsys.readouterr().out == ""


def test_lesions_outside_head_and_given_brain_are_refused(tmp_path):
    scan, brain = ball()
    case = case_of(tmp_path, scan, brain, ~brain)
    with pytest.raises(UserError, match=r"_mask\.npy lies outside the head of"):
        admit([case], BALL, tmp_path / "none are found")


# --- too large for a brain -------------------------------------------------------------------------------


def test_given_brain_of_a_torso_is_refused_before_the_grid_is(cohort, tmp_path):
    files = Files(cohort, tmp_path / "data", ".nii.gz")
    brain = sorted((files.root / "Brains").iterdir())[1]
    for other in {*files.scans.iterdir(), *files.masks.iterdir()} - {files.scan, files.mask}:
        other.unlink()
    write_volume(brain, np.ones((1, 24, 25, 29), np.uint8), AFFINE)
    folders = ["--scans_dir", files.scans, "--masks_dir", files.masks, "--ext", ".nii.gz"]
    line = refused("-m", SLICES, *folders, "--scan_dim", 1, 12, 14, 14, "--out_dir", "slices", cwd=tmp_path)
    assert f"{brain} holds a brain of 8.9 L, outside the range of 0.3 to 2.2 L; fix the mask" in line
    given = ["--spacing", 8, 8, 8, "--scan_dim", 1, 12, 14, 14, "--brains_dir", files.root / "Brains"]
    assert f"{brain} holds a brain of 8.9 L" in prepare("bids", files.root, tmp_path / "Base", *given, code=2).err


@pytest.mark.parametrize(("size", "is_refused"), [(8, False), (13, False), (14, True)])  # mm; of 1.6, 6.7 and 8.4 L
def test_head_in_place_of_a_brain_has_up_to_8_litres(tmp_path, no_skulls, size, is_refused):
    case = case_of(tmp_path, *ball(), affine=np.diag([size, size, size, 1.0]))
    case = pair_cases([case.scan], None)[0]
    if is_refused:
        match = r"sub-01_T1w\.nii\.gz shows a head of 8\.\d L, .* up to 8 L; crop the scan to the head, or give a"
        with pytest.raises(UserError, match=match):
            admit([case], Grid((1, 9, 9, 9)), tmp_path / "found")
    else:
        admit([case], BALL, tmp_path / "found")


def test_whole_head_that_was_left_as_a_brain_mask_may_be_given(tmp_path):
    case = case_of(tmp_path, *ball(), affine=np.diag([10.0, 10, 10, 1]))  # of 3 L
    assert admit([case], BALL, tmp_path / "none are found")[case].brain == "given"


# --- masks that number their lesions ---------------------------------------------------------------------

LINE = "2 masks number their lesions (e.g. sub-0_label-L_mask.npy holds 1 to 2): each label above 0 is lesion\n"


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 1.0004, 2, 2.9996], range(255)])
def test_each_label_of_a_mask_that_numbers_its_lesions_is_lesion(tmp_path, values):
    array = np.resize(np.array(values, np.float32), (1, 7, 8, 9))
    write_volume(tmp_path / "a_mask.npy", array)
    mask, labels = read_lesions(tmp_path / "a_mask.npy")
    np.testing.assert_array_equal(mask, array[0] > 0.5)
    assert labels == len(values) - 1 and mask.dtype == bool


@pytest.mark.parametrize(
    "values", [[0, 1, 3], [0, 2], [1, 2], [0, 1, 1.5, 2], [-1, 0, 1], [0, 1, 2, np.nan], range(256)]
)
def test_other_labels_are_refused_as_before(tmp_path, values):
    write_volume(tmp_path / "a_mask.npy", np.resize(np.array(values, np.float32), (1, 7, 8, 9)))
    with pytest.raises(UserError, match=r"a_mask\.npy is not binary: it holds .+; keep one lesion label"):
        read_lesions(tmp_path / "a_mask.npy")


def test_cohort_of_numbered_masks_is_told_in_a_line_at_every_start(tmp_path, capsys):
    scan, brain = ball()
    masks = (NUMBERED, NUMBERED, NUMBERED > 0)
    cases = [case_of(tmp_path, scan, brain, mask, name=f"sub-{i}") for i, mask in enumerate(masks)]
    for _ in range(2):
        facts = admit(cases, BALL, brains_in(tmp_path), 0, tmp_path)
        assert capsys.readouterr().out == LINE
        assert {of_case.lesion for of_case in facts.values()} == {np.mean(NUMBERED > 0)}


def test_script_scores_all_lesions_of_a_numbered_mask(cohort, workspace, tmp_path, capsys):
    files = Files(cohort, tmp_path / "data", ".nii.gz")
    mask = read_volume(files.mask, np.uint8).array
    mask.flat[np.flatnonzero(mask)[::2]] = 2
    write_volume(files.mask, mask, AFFINE)
    given = ["--scans", files.scan, "--masks", files.mask, "--ckpt_path", workspace.seg, *GRID, "--n_predictions", 0]
    test_strokeformer.main(test_strokeformer.parse_args([*map(str, given), "--scores_dir", str(tmp_path / "scores")]))
    assert f"1 mask numbers its lesions (e.g. {files.mask.name} holds 1 to 2): each label" in capsys.readouterr().out
    volumes = pd.read_csv(tmp_path / "scores/volumes.csv")
    assert volumes.true_cm3[0] == pytest.approx(np.count_nonzero(mask) * 8**3 / 1000)


def test_preparing_takes_all_lesions_of_a_numbered_mask_and_says_so_at_every_start(tmp_path):
    scan, brain = ball()
    case = case_of(tmp_path / "raw", scan, brain, NUMBERED, AFFINE)
    for _ in range(2):
        done = prepare("bids", tmp_path / "raw", tmp_path / "Base")
        assert f"1 mask numbers its lesions (e.g. {case.mask.name} holds 1 to 2): each label above 0" in done.out
    (written,) = (tmp_path / "Base/Masks").iterdir()
    assert set(np.unique(np.load(written))) == {0, 1} and np.load(written).sum() == np.count_nonzero(NUMBERED)


def test_python_takes_a_numbered_mask_for_the_truth_and_no_numbered_prediction(capsys):
    numbered, plain = (nib.Nifti1Image(a.transpose(1, 2, 0), AFFINE) for a in (NUMBERED, NUMBERED.clip(max=1)))
    assert scores(plain, numbered)["dice"] == 1 and len(lesions(plain, numbered)) == len(lesions(numbered)) == 2
    assert capsys.readouterr().out.count("1 mask numbers its lesions") == 3
    with pytest.raises(UserError, match="is not binary: it holds 0, 1 and 2"):
        scores(numbered, plain)


# --- files that nobody knows -----------------------------------------------------------------------------


def test_brains_beside_the_scans_that_are_not_named_as_masks_are_refused_by_their_folder(cohort, tmp_path):
    files = Files(cohort, tmp_path / "data", ".npy")
    brains = files.root / "Brains"
    for path in brains.iterdir():
        path.rename(path.with_name(path.name.replace("_desc-brain_mask", "")))
    command = ["-m", SLICES, "--scans_dir", files.scans, "--masks_dir", files.masks, *GRID, "--out_dir", "slices"]
    wrong = f"{brains} holds no file named as a brain mask; name each <scan>_desc-brain_mask"
    line = refused(*command, cwd=tmp_path)
    assert line.endswith(f"error: {wrong}, move the folder away, or give --brains_dir")
    assert refused(*command, "--brains_dir", brains, cwd=tmp_path).endswith(f"error: --brains_dir {wrong}")
