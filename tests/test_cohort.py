"""Pairing by BIDS entities, checks, folds, and which augmented scans a fold may use."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files.names import bids_entity
from data.files.volumes import write_volume
from data.scans.checks import check_headers, read_lesions, space_of
from data.scans.cohort import augmented_cases, pair_cases, print_shared_subjects, refuse_twins
from data.scans.folds import cases_of, lesion_loads, make_folds, read_folds, usable_augmented, write_folds
from data.scans.grid import Grid
from tests.drawn import admit
from utils.errors import UserError

LABEL = "label-L_desc-T1lesion_mask"


def write_case(root, name, lesion=5, shape=(4, 6, 8), ext=".npy"):
    """A random scan of `name` and its mask with `lesion` voxels, in ATLAS's names."""
    rng = np.random.default_rng(len(name))
    mask = np.zeros(shape, np.uint8)
    mask.flat[:lesion] = 1
    write_volume(root / "Scans" / f"{name}_T1w{ext}", rng.random((1, *shape), np.float32))
    write_volume(root / "Masks" / f"{name}_{LABEL}{ext}", mask[None])


def paired(root, **kwargs):
    return pair_cases([root / "Scans"], [root / "Masks"], **kwargs)


# --- pairing -------------------------------------------------------------------------------------------


def test_entities_are_read_from_the_name():
    assert bids_entity("sub-r001s001_ses-1_space-MNI_T1w.nii.gz", "sub") == "r001s001"
    assert bids_entity("sub-r001s001_ses-1_space-MNI_T1w.nii.gz", "ses") == "1"
    assert bids_entity("scan.npy", "sub") is None


def test_scans_meet_their_masks_by_subject_and_session_not_by_position(tmp_path):
    for name in ("sub-02_ses-1", "sub-01_ses-2", "sub-01_ses-1"):
        write_case(tmp_path, name)
    # A mask that sorts first under another name must not shift the others.
    (tmp_path / "Masks" / f"sub-02_ses-1_{LABEL}.npy").rename(tmp_path / "Masks/A_sub-02_ses-1_mask.npy")
    pairs = {(c.subject, c.session): (c.scan.name, c.mask.name) for c in paired(tmp_path)}
    assert pairs["02", "1"] == ("sub-02_ses-1_T1w.npy", "A_sub-02_ses-1_mask.npy")
    assert pairs["01", "2"][1] == f"sub-01_ses-2_{LABEL}.npy" and len(pairs) == 3


def test_scans_and_masks_may_share_a_bids_tree(tmp_path):
    anat = tmp_path / "sub-01/ses-1/anat"
    write_volume(anat / "sub-01_ses-1_T1w.nii.gz", np.ones((1, 2, 3, 4), np.float32))
    write_volume(anat / f"sub-01_ses-1_{LABEL}.nii.gz", np.ones((1, 2, 3, 4), np.uint8))
    (case,) = pair_cases([tmp_path], [tmp_path], ".nii.gz")
    assert case.scan.name.endswith("T1w.nii.gz") and case.mask.name.endswith("mask.nii.gz")


def test_scan_without_mask_is_refused_by_name(tmp_path):
    write_case(tmp_path, "sub-01")
    write_case(tmp_path, "sub-02")
    (tmp_path / "Masks" / f"sub-02_{LABEL}.npy").unlink()
    with pytest.raises(UserError, match=r"sub-02_T1w\.npy has no mask"):
        paired(tmp_path)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ("sub-01_space-MNI_T1w.npy", "same subject and session and differ only in space-; take one out"),
        ("sub-01_T1w_brain.npy", "same subject and session and have no run-"),
        ("sub-01_T1w.nii", "differ only in their extension; take one out"),
        ("sub-01_FLAIR.npy", r"two contrasts \(FLAIR and T1w\) of one session; give a folder"),
        ("sub-01_acq-fast_run-3_FLAIR.npy", r"two contrasts \(T1w and FLAIR\)"),
        ("site-B/sub-01_T1w.npy", r"same name, under which results are kept; rename them after their subjects"),
    ],
)
def test_two_scans_of_one_session_are_refused(tmp_path, other, complaint):
    write_case(tmp_path, "sub-01")
    write_volume(tmp_path / "Scans" / other, np.ones((1, 4, 6, 8), np.float32))
    with pytest.raises(UserError, match=f"sub-01.* and .*sub-01.*{complaint}"):
        paired(tmp_path)


def test_scan_of_two_patients_under_one_name_is_to_be_renamed_not_dropped(tmp_path):
    for patient in ("patient 1", "patient 2"):
        write_volume(tmp_path / "Scans" / patient / "T1.nii.gz", np.ones((1, 2, 3, 4), np.float32))
    with pytest.raises(UserError, match=r"have the same name.* rename them after their subjects"):
        pair_cases([tmp_path / "Scans"], None)


def test_runs_and_acquisitions_are_scans_of_their_own_and_stay_one_subject(tmp_path):
    for name in ("sub-01_run-1", "sub-01_run-2", "sub-01_acq-fast_run-1", "sub-02_run-1"):
        write_case(tmp_path, name)
    (tmp_path / "Masks" / f"sub-02_run-1_{LABEL}.npy").rename(tmp_path / "Masks/sub-02_mask.npy")  # of its one scan
    cases = {case.stem: (case.subject, case.mask.name) for case in paired(tmp_path)}
    assert cases == {
        "sub-01_run-1_T1w": ("01", f"sub-01_run-1_{LABEL}.npy"),
        "sub-01_run-2_T1w": ("01", f"sub-01_run-2_{LABEL}.npy"),
        "sub-01_acq-fast_run-1_T1w": ("01", f"sub-01_acq-fast_run-1_{LABEL}.npy"),
        "sub-02_run-1_T1w": ("02", "sub-02_mask.npy"),
    }


@pytest.mark.parametrize(
    ("scans", "masks", "complaint"),
    [
        (
            ["run-1", "run-2"],
            ["run-1", "desc-lesion"],
            r"desc-lesion_mask\.npy lacks run-, which tells .*run-1.* from",
        ),
        (["acq-a_run-1", "acq-b_run-2"], ["desc-lesion"], "lacks acq- and run-, which tells"),
        (["desc-raw"], ["run-1", "run-2"], r"desc-raw_T1w\.npy lacks run-, which tells .*run-1.* from .*run-2"),
        (["run-1", "run-2"], ["run-1"], r"run-2_T1w\.npy has no mask"),
        (["run-1"], ["run-1", "run-2"], r"run-2_mask\.npy has no scan"),
    ],
)
def test_mask_that_may_be_of_either_scan_is_refused_with_the_entity_it_lacks(tmp_path, scans, masks, complaint):
    for folder, names, ending in (("Scans", scans, "T1w"), ("Masks", masks, "mask")):
        for name in names:
            write_volume(tmp_path / folder / f"sub-01_{name}_{ending}.npy", np.ones((1, 2, 3, 4), np.float32))
    with pytest.raises(UserError, match=complaint):
        paired(tmp_path)


@pytest.mark.parametrize(
    ("scan", "mask", "subject"),
    [
        ("patient_3_T1", "patient_3_lesion_mask", "patient_3"),
        ("patient_3", "patient_3", "patient_3"),
        ("img01", "mask01", "01"),
        ("T1", "mask", "T1"),
        ("p1_ses-2_T1w", "p1_ses-2_label-L_desc-T1lesion_mask", "p1"),
        ("p1_T1w_augmented-1", "p1_T1lesion_mask_augmented-1", "p1"),
    ],
)
def test_names_that_are_not_of_bids_pair_by_what_is_left_without_their_roles(tmp_path, scan, mask, subject):
    write_volume(tmp_path / f"Scans/{scan}.npy", np.ones((1, 2, 3, 4), np.float32))
    write_volume(tmp_path / f"Masks/{mask}.npy", np.ones((1, 2, 3, 4), np.uint8))
    (case,) = paired(tmp_path)
    assert (case.subject, case.name, case.mask.stem) == (subject, f"{scan}.npy", mask)


def test_empty_folder_and_wrong_extension_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--scans .* does not exist"):
        paired(tmp_path)
    write_case(tmp_path, "sub-01")
    with pytest.raises(UserError, match=r"holds no \.nii volume"):
        paired(tmp_path, ext=".nii")


# --- checks --------------------------------------------------------------------------------------------


def test_shapes_that_differ_are_refused(tmp_path):
    write_case(tmp_path, "sub-01")
    write_volume(tmp_path / "Masks" / f"sub-01_{LABEL}.npy", np.zeros((1, 4, 6, 9), np.uint8))
    with pytest.raises(UserError, match=r"mask\.npy has shape \(4, 6, 9\)"):
        check_headers(paired(tmp_path), (1, 4, 6, 8), None)


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [("Scans", np.nan, "NaN"), ("Scans", np.inf, "infinite"), ("Masks", 3, "not binary")],
)
def test_bad_voxels_are_refused_by_file(tmp_path, part, value, complaint):
    write_case(tmp_path, "sub-01")
    (path,) = (tmp_path / part).iterdir()
    array = np.load(path)
    array.flat[7] = value
    np.save(path, array)
    with pytest.raises(UserError, match=rf"{path.name} .*{complaint}"):
        admit(paired(tmp_path), Grid((1, 4, 6, 8)), tmp_path / "found")


def test_constant_scan_is_refused(tmp_path):
    write_case(tmp_path, "sub-01")
    write_volume(tmp_path / "Scans/sub-01_T1w.npy", np.ones((1, 4, 6, 8), np.float32))
    with pytest.raises(UserError, match="constant"):
        admit(paired(tmp_path), Grid((1, 4, 6, 8)), tmp_path / "found")


def test_subjects_that_train_and_validate_are_told(capsys):
    print_shared_subjects(["01", "02"], ["03"])
    assert capsys.readouterr().out == ""
    print_shared_subjects(["01", "02", "03"], ["03", "02"])
    assert capsys.readouterr().out.startswith("2 subjects (02, ...) both train and validate")


def test_scans_of_one_name_on_two_sides_are_refused(tmp_path):
    write_case(tmp_path / "a", "sub-01")
    write_case(tmp_path / "b", "sub-01")
    train, val = paired(tmp_path / "a"), paired(tmp_path / "b")
    refuse_twins(train, train)  # the same files may validate
    with pytest.raises(UserError, match="under one name; rename one of them"):
        refuse_twins(train, val)


def test_spacing_of_npy_scans_comes_from_the_cohort_table(tmp_path):
    write_case(tmp_path, "sub-01")
    (case,) = paired(tmp_path)
    assert space_of(case) is None
    (tmp_path / "cohort.csv").write_text("scan,spacing_mm\nsub-01_T1w.npy,1.0 2.0 3.0\n")
    assert space_of(case).spacing_mm == (3, 1, 2)


def test_lesion_load_of_a_subject_is_the_mean_of_its_sessions(tmp_path):
    write_case(tmp_path, "sub-01_ses-1", lesion=0)
    write_case(tmp_path, "sub-01_ses-2", lesion=96)
    assert lesion_loads({case: read_lesions(case.mask)[0].mean() for case in paired(tmp_path)}) == {"01": 0.25}


# --- folds ---------------------------------------------------------------------------------------------


def loads_of(n):
    return {f"s{i:03d}": float(i) for i in range(n)}


def test_splits_are_honoured_to_the_subject():
    for fold in make_folds(loads_of(50), 5, (70, 10, 20), seed=1):
        assert (len(fold.train), len(fold.val), len(fold.test)) == (35, 5, 10)


def test_test_share_that_is_not_a_kth_is_honoured_too():
    for fold in make_folds(loads_of(40), 2, (60, 15, 25), seed=1):
        assert (len(fold.train), len(fold.val), len(fold.test)) == (24, 6, 10)


@settings(deadline=None)
@given(st.integers(12, 60), st.sampled_from([(2, 40, 10), (3, 57, 10), (4, 60, 15), (5, 70, 10)]), st.integers(0, 9))
def test_folds_are_disjoint_exhaustive_and_test_every_subject_once(n, setting, seed):
    k, train, val = setting
    loads = loads_of(n)
    folds = make_folds(loads, k, (train, val, 100 - train - val), seed)
    for fold in folds:
        assert sorted(fold.train + fold.val + fold.test) == sorted(loads)
    assert sorted(s for fold in folds for s in fold.test) == sorted(loads)


def test_folds_follow_the_seed_alone():
    first, again, other = (make_folds(loads_of(30), 3, (57, 10, 33), seed) for seed in (1, 1, 2))
    assert first == again != other
    shuffled = dict(reversed(loads_of(30).items()))
    assert make_folds(shuffled, 3, (57, 10, 33), 1) == first


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_stratified_by_lesion_size(seed):
    """Every test set of 20 from 100 graded loads holds each fifth of the range in proportion, give or take two."""
    for fold in make_folds(loads_of(100), 5, (70, 10, 20), seed):
        fifths = np.bincount([int(s[1:]) // 20 for s in fold.test], minlength=5)
        assert fifths.min() >= 2 and fifths.max() <= 6


def test_too_few_subjects_are_refused():
    with pytest.raises(UserError, match="--k 5"):
        make_folds(loads_of(4), 5, (70, 10, 20), 0)


def test_sessions_of_a_subject_stay_on_one_side(tmp_path):
    for subject in "abcdef":
        for session in (1, 2):
            write_case(tmp_path, f"sub-{subject}_ses-{session}")
    cases = paired(tmp_path)
    loads = lesion_loads({case: read_lesions(case.mask)[0].mean() for case in cases})
    for fold in make_folds(loads, 2, (30, 20, 50), 0):
        sides = [{c.subject for c in cases_of(cases, s)} for s in (fold.train, fold.val, fold.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 6
        assert sum(len(cases_of(cases, s)) for s in (fold.train, fold.val, fold.test)) == 12


def test_folds_come_back_as_they_were_written(tmp_path):
    folds = make_folds(loads_of(10), 2, (30, 20, 50), 0)
    write_folds(tmp_path / "folds.json", folds, seed=0)
    assert read_folds(tmp_path / "folds.json", set(loads_of(10))) == folds
    assert json.loads((tmp_path / "folds.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({}, "no list 'folds'"),
        ({"folds": [{"train": ["a"], "val": ["a"], "test": []}]}, "two sides"),
        ({"folds": [{"train": ["z"], "val": ["a"], "test": []}]}, "subject z"),
    ],
)
def test_unusable_folds_are_refused(tmp_path, content, complaint):
    (tmp_path / "folds.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        read_folds(tmp_path / "folds.json", {"a", "b"})


# --- augmented scans -----------------------------------------------------------------------------------


def test_fold_uses_no_augmented_scan_with_a_donor_outside_its_training_set(tmp_path):
    origins = {"a": ("1", ["2"]), "b": ("1", ["3"]), "c": ("3", ["1"]), "d": ("2", ["1", "3"])}
    provenance = {}
    for name, (recipient, donors) in origins.items():
        write_case(tmp_path, name)
        mask = f"{name}_{LABEL}.npy"
        provenance[f"{name}_T1w.npy"] = {"mask": mask, "recipient": recipient, "donors": donors}
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    (fold, _) = make_folds({"1": 1.0, "2": 1.0, "3": 1.0, "4": 0.0}, 2, (25, 25, 50), 0)
    fold = type(fold)(train=["1", "2"], val=["4"], test=["3"])
    used = usable_augmented(augmented_cases(tmp_path), fold)
    assert [case.scan.name for case in used] == ["a_T1w.npy"]


def test_augmented_scan_that_is_listed_but_missing_is_refused(tmp_path):
    origin = {"mask": "a_mask.npy", "recipient": "1", "donors": ["2"]}
    (tmp_path / "provenance.json").write_text(json.dumps({"a.npy": origin}))
    with pytest.raises(UserError, match=r"a\.npy is named"):
        augmented_cases(tmp_path)
