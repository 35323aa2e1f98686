"""Centres: where they are read from, folds that keep each on one side, and ATLAS v3.0, which has a folder for each."""

import json
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.prepare.layouts import LAYOUTS, find_cases
from data.prepare.overview import are_in_mni
from data.scans.cohort import Case, pair_cases
from data.scans.folds import Fold, make_group_folds, require_groups
from data.scans.groups import centre_of_name, groups_of, mixed_groups, require_whole_groups
from tests.running import run_script
from tests.test_begun_runs import Bench
from tests.test_prepare import prepare, restore, run_here
from utils.errors import UserError

# --- folds ---------------------------------------------------------------------------------------------


def cohort_of(sizes: list[int], seed: int) -> tuple[dict[str, float], dict[str, str]]:
    """Loads and centres of subjects, of centres of these sizes; every third subject has no lesion."""
    groups = {f"r{c:03d}s{i:03d}": f"R{c:03d}" for c, n in enumerate(sizes) for i in range(n)}
    volumes = np.random.default_rng(seed).lognormal(0, 1.5, len(groups))
    return {s: float(v) * (i % 3 > 0) for i, (s, v) in enumerate(zip(groups, volumes, strict=True))}, groups


@given(
    st.lists(st.integers(1, 40), min_size=8, max_size=55),
    st.sampled_from([(3, (57, 10, 33)), (4, (60, 15, 25)), (5, (70, 10, 20))]),
    st.integers(0, 9),
)
def test_no_centre_stands_on_two_sides_and_every_subject_is_tested_once(sizes, setting, seed):
    (loads, groups), (k, splits) = cohort_of(sizes, seed), setting
    folds = make_group_folds(loads, groups, k, splits, seed)
    assert not mixed_groups(folds, groups) and len(folds) == k
    assert Counter(s for fold in folds for s in fold.test) == Counter(list(loads))
    for fold in folds:
        assert sorted(fold.train + fold.val + fold.test) == sorted(loads) and fold.train and fold.val and fold.test
        assert len(fold.test) <= len(loads) / k + max(sizes)
        # What is left is dealt in as many parts as the share of validation asks for, or as there are centres.
        parts = min(round(100 / splits[1] * (len(loads) - len(fold.test)) / len(loads)), len(sizes) - 1)
        assert len(fold.val) <= (len(loads) - len(fold.test)) / max(parts, 2) + max(sizes)


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_many_centres_are_balanced_by_number_and_load(seed):
    sizes = np.random.default_rng(seed).lognormal(2.5, 0.7, 55).astype(int) + 1
    loads, groups = cohort_of(sizes.tolist(), seed)
    median = np.median([load for load in loads.values() if load])
    of_all = np.mean([load > median for load in loads.values()])
    for fold in make_group_folds(loads, groups, 5, (70, 10, 20), seed):
        assert len(fold.test) == pytest.approx(len(loads) / 5, rel=0.06)
        assert len(fold.val) == pytest.approx(len(loads) / 10, rel=0.15)
        for side, off in ((fold.test, 0.06), (fold.val, 0.12)):
            assert np.mean([loads[s] > median for s in side]) == pytest.approx(of_all, abs=off)


def test_folds_of_centres_follow_the_seed_alone():
    loads, groups = cohort_of([3, 9, 1, 4, 4, 6, 2], 0)
    first, again, other = (make_group_folds(loads, groups, 3, (57, 10, 33), seed) for seed in (1, 1, 2))
    shuffled = dict(reversed(loads.items()))
    assert first == again == make_group_folds(shuffled, groups, 3, (57, 10, 33), 1) != other


@pytest.mark.parametrize(
    ("sizes", "k", "splits", "complaint"),
    [
        ([4] * 4, 5, (70, 10, 20), "--k 5 with --groups needs 5 groups"),
        ([4] * 3, 2, (40, 10, 50), "needs 4 groups"),
        ([4] * 9, 3, (70, 10, 20), "--splits with 33 for the test of --k 3"),
    ],
)
def test_too_few_centres_and_another_share_of_test_subjects_are_refused(sizes, k, splits, complaint):
    with pytest.raises(UserError, match=complaint):
        require_groups(cohort_of(sizes, 0)[1], k, splits)


def test_fold_that_leaves_one_centre_to_learn_from_is_refused():
    with pytest.raises(UserError, match="give a larger --k"):
        make_group_folds(*cohort_of([9, 1, 1, 1], 0), 2, (40, 10, 50), 0)


# --- centres -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "centre"),
    [
        ("Scans/sub-r012s003_ses-1_T1w.npy", "R012"),
        ("R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_T1w.nii.gz", "R001"),
        ("SOOP/sub-soop0910/ses-1/anat/sub-soop0910_ses-1_T1w.nii.gz", "SOOP"),
        ("rawdata/sub-strokecase0001/ses-1/sub-strokecase0001_ses-1_dwi.nii.gz", None),  # a data set of one centre
        ("described/sub-01/anat/sub-01_T1w.nii.gz", None),
        ("Base/Scans/sub-soop0910_T1w.npy", "SOOP"),  # by cohort.csv
        ("Base/Scans/sub-soop0911_T1w.npy", None),
        ("Base/Scans/sub-soop0912_T1w.npy", None),
        ("Scans/p3_T1w.npy", None),
    ],
)
def test_centre_is_in_the_name_the_folder_or_the_table_of_a_prepared_cohort(path, centre, tmp_path):
    (tmp_path / "described").mkdir()
    (tmp_path / "described/dataset_description.json").write_text("{}")
    (tmp_path / "Base").mkdir()
    table = "scan,centre\nsub-soop0910_T1w.npy,SOOP\nsub-soop0912_T1w.npy,\n"
    (tmp_path / "Base/cohort.csv").write_text(table)
    subject = Path(path).name.split("_")[0].removeprefix("sub-")
    assert centre_of_name(Case(subject, None, tmp_path / path, None)) == centre


def cases(*paths: str) -> list[Case]:
    return [Case(Path(p).name.split("_")[0].removeprefix("sub-"), None, Path("/data", p), None) for p in paths]


def test_groups_are_those_of_a_column_and_by_default_the_centres_of_names():
    scans = cases("sub-r001s001_T1w.npy", "sub-r002s001_T1w.npy")
    table = pd.DataFrame({"site": [1, 2, 3]}, index=["r001s001", "r002s001", "other"])
    assert groups_of(scans, "centre", table) == {"r001s001": "R001", "r002s001": "R002"}
    assert groups_of(scans, "site", table) == {"r001s001": "1", "r002s001": "2"}
    table["centre"] = ["A", "A", "B"]
    assert groups_of(scans, "centre", table) == {"r001s001": "A", "r002s001": "A"}


@pytest.mark.parametrize(
    ("paths", "column", "table", "complaint"),
    [
        (["sub-1_T1w.npy"], "centre", None, "--groups centre: subject 1 has no group"),
        (
            ["A/sub-1/sub-1_ses-1_T1w.npy", "B/sub-1/sub-1_ses-2_T1w.npy"],
            "centre",
            None,
            r"subject 1 has two groups \(A and B\)",
        ),
        (["sub-1_T1w.npy"], "site", None, "--groups site is no column of --metadata, which is not given"),
        (
            ["sub-1_T1w.npy"],
            "sites",
            {"1": "A"},
            "--groups sites is no column of --metadata, which is of the columns site",
        ),
        (["sub-1_T1w.npy"], "site", {"2": "A"}, "subject 1 has no group"),
        (["sub-1_T1w.npy"], "site", {"1": None}, "subject 1 has no group"),
    ],
)
def test_subject_of_no_group_or_of_two_is_refused_by_name(paths, column, table, complaint):
    metadata = table and pd.DataFrame({"site": list(table.values())}, index=list(table))
    with pytest.raises(UserError, match=complaint):
        groups_of(cases(*paths), column, metadata)


def test_given_folds_with_a_centre_on_two_sides_are_refused():
    folds, groups = [Fold(["a"], ["b"], ["c"]), Fold(["c"], ["b"], ["a"])], {"a": "A", "b": "B", "c": "C"}
    require_whole_groups(folds, groups, "folds.json")
    with pytest.raises(UserError, match=r"folds.json: group A stands on two sides of a fold"):
        require_whole_groups([folds[0], Fold(["c", "d"], ["b"], ["a"])], {**groups, "d": "A"}, "folds.json")


def test_cross_validation_by_a_column_records_the_groups_and_random_folds_say_that_they_mix_centres(tmp_path, capsys):
    bench = Bench(tmp_path, n=8)
    groups = {subject: "ABCD"[i % 4] for i, subject in enumerate(bench.cohort.subjects())}
    rows = [f"sub-{subject},{group}" for subject, group in groups.items()]
    (tmp_path / "participants.csv").write_text("\n".join(["participant_id,centre", *rows]))
    by_centre = ["--groups", "centre", "--metadata", tmp_path / "participants.csv"]
    assert bench.run(*by_centre, "--splits", 40, 10, 50) == "done" and "mix" not in capsys.readouterr().out
    content = json.loads((tmp_path / "StrokeFormer/seg/folds.json").read_text())
    folds = [Fold(**fold) for fold in content["folds"]]
    assert content["groups"] == groups and not mixed_groups(folds, groups)
    assert "seg holds a run with --groups centre" in bench.run("--splits", 40, 10, 50)
    for part in ("Scans", "Masks"):  # the same scans in folders of two centres
        for i, path in enumerate(sorted((tmp_path / part).glob("*"))):
            folder = tmp_path / f"{part}/{'AB'[i % 2]}/{path.name.split('_')[0]}"
            folder.mkdir(parents=True)
            path.rename(folder / path.name)
    assert bench.run("--model_prefix", "seg2", "--rpn_model_prefix", "rpn2") == "done"
    assert "Folds mix 2 centres" in capsys.readouterr().out


def test_script_refuses_groups_without_their_table_before_any_work(cohort, tmp_path):
    folders = ["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--scan_dim", 1, 24, 25, 29]
    names = ["--model_prefix", "seg", "--rpn_model_prefix", "rpn"]
    done = run_script("cross_validation.py", *folders, *names, "--groups", "site", cwd=tmp_path, code=2)
    assert (
        "--groups site is no column of --metadata, which is not given" in done.err and "Checking scans" not in done.out
    )


# --- ATLAS v3.0 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atlas3(tmp_path_factory) -> Path:
    """Twelve centres, of two voxel sizes or more, along axes of their own."""
    root = tmp_path_factory.mktemp("ATLAS3_Training_Raw")
    drawn = ["--centres", 12, "--n_subjects", 13, "--spacing", 10, "--healthy_fraction", 0.1, "--seed", 2]
    run_here("data.phantom.__main__", "--out_dir", root, *drawn)
    return root


@pytest.fixture(scope="module")
def prepared(atlas3, tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("prepared") / "Base"
    given = ["--brains_dir", atlas3 / "TrueBrains", "--spacing", 10, 10, 10, "--scan_dim", 1, 19, 20, 24]
    prepare("atlas3", atlas3, out_dir, *given)
    return out_dir


def test_phantom_of_atlas_3_has_its_names_centres_and_odd_masks(atlas3):
    masks = [nib.load(path) for path in atlas3.rglob("*_ses-1_space-orig_label-lesion_desc-T1lesion_mask.nii.gz")]
    assert len(masks) == len(list(atlas3.glob("*/sub-*/ses-1/anat/*_space-orig_desc-brain_T1w.nii.gz"))) == 13
    assert len({nib.aff2axcodes(mask.affine) for mask in masks}) > 6
    assert len({tuple(map(float, mask.header.get_zooms())) for mask in masks}) == 7
    largest = sorted({round(float(np.asarray(mask.dataobj).max()), 6) for mask in masks})
    assert largest == [0, 0.9999, 1] and (atlas3 / "SOOP/sub-soop0012").is_dir()


def test_masks_of_atlas_3_come_back_exact_and_counted(atlas3, prepared, tmp_path):
    table = pd.read_csv(prepared / "cohort.csv").set_index("scan")
    cases = {case.stem: case for case in find_cases(atlas3, LAYOUTS["atlas3"])}
    exact = 0
    for path in restore(prepared / "Masks", prepared, tmp_path / "native"):
        case = cases[path.name.removesuffix("_prediction.nii.gz")]
        mask, restored = (np.asarray(nib.load(p).dataobj) for p in (case.mask, path))
        mm3 = float(np.prod(nib.load(case.mask).header.get_zooms()))
        row = table.loc[f"{case.stem}.npy"]
        assert row.source_lesion_cm3 == pytest.approx(np.count_nonzero(mask) * mm3 / 1000, abs=1e-3)
        assert set(np.unique(restored)) <= {0, 1} and restored.shape == mask.shape
        if mm3 == pytest.approx(1000):  # what is resampled cannot be exact
            np.testing.assert_array_equal(restored, mask > 0.5)
            assert row.lesion_cm3 == row.source_lesion_cm3
            exact += 1
        elif row.lesion_cm3 > 20:
            assert 2 * (restored * (mask > 0.5)).sum() / (restored.sum() + (mask > 0.5).sum()) > 0.7
    assert exact >= 6 and (table.lesion_voxels == 0).any()


def test_prepared_atlas_3_is_split_by_centre(prepared):
    cases = pair_cases([prepared / "Scans"], [prepared / "Masks"])
    groups = groups_of(cases, "centre")
    assert len(set(groups.values())) == 12 and {"R001", "SOOP"} < set(groups.values())
    loads = pd.read_csv(prepared / "cohort.csv").set_index("subject").lesion_cm3.to_dict()
    assert not mixed_groups(make_group_folds(loads, groups, 5, (70, 10, 20), 0), groups)


def test_each_atlas_is_refused_as_the_other_and_the_right_one_is_named(atlas3, cohort, tmp_path):
    for dataset, other, root in (("atlas", "atlas3", atlas3), ("isles-dwi", "atlas3", atlas3)):
        line = prepare(dataset, root, tmp_path / "Base", code=2).err.splitlines()[-1]
        assert f"its names are those of --dataset {other}" in line
    (tmp_path / "v2").mkdir()
    for part in ("Scans", "Masks"):
        for path in (cohort / part).iterdir():
            nib.save(nib.Nifti1Image(np.load(path)[0], np.eye(4)), tmp_path / f"v2/{path.stem}.nii.gz")
    line = prepare("atlas3", tmp_path / "v2", tmp_path / "Base", code=2).err.splitlines()[-1]
    assert "its names are those of --dataset atlas" in line


def test_lesions_are_drawn_in_mni_only_where_all_names_say_that_scans_are(prepared):
    native, mni = pd.read_csv(prepared / "cohort.csv").scan.tolist(), "sub-r001s001_space-MNI152NLin2009aSym_T1w.npy"
    assert are_in_mni([mni]) and not are_in_mni(native) and not are_in_mni([mni, *native])


@pytest.mark.parametrize(("session", "complaint"), [("ses-1", "have the same name"), ("ses-2", "of two centres")])
def test_two_people_of_one_name_at_two_centres_are_refused(atlas3, session, complaint, tmp_path):
    source = atlas3 / "SOOP/sub-soop0012/ses-1/anat"
    for centre, named in (("SOOP", "ses-1"), ("OTHER", session)):
        for path in source.iterdir():
            copy = tmp_path / centre / "sub-soop0012" / named / "anat" / path.name.replace("ses-1", named)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    with pytest.raises(UserError, match=complaint):
        find_cases(tmp_path, LAYOUTS["atlas3"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--modality", "dwi"], "--centres draws T1w"), (["--n_subjects", 3], "--centres 4 needs a subject each")],
)
def test_centres_that_the_phantom_cannot_draw_are_refused(arguments, complaint, tmp_path):
    command = ["--out_dir", tmp_path / "new", "--centres", 4, *arguments]
    assert complaint in run_here("data.phantom.__main__", *command, code=2).err
