"""What a folder of a user holds beside scans and masks: links, hidden folders, other masks, predictions."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.batches.slices import read_slice_table
from data.files.listing import find_volumes, require_present
from data.files.names import role_of
from data.files.volumes import write_volume
from data.prepare.layouts import LAYOUTS, find_cases
from data.scans.cohort import pair_cases
from tests.running import run_script
from utils.errors import UserError

GRID = ["--scan_dim", 1, 12, 20, 24]
MASK = "label-L_desc-T1lesion_mask"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # np.save would put .npy behind other names
        np.save(file, np.zeros((1, 2, 3, 4)))
    return path


def link(path: Path, target: Path | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def put_dicom(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM")


def put_subject(folder: Path, name: str) -> None:
    """A head of 8 slices with a lesion of 6 pixels in two of them."""
    scan = np.random.default_rng(0).random((1, 12, 20, 24), np.float32)
    scan[:, 2:10, 3:17, 4:20] += 60
    mask = np.zeros(scan.shape, np.uint8)
    mask[0, 4:6, 8:10, 10:13] = 1
    write_volume(folder / f"{name}_T1w.npy", scan)
    write_volume(folder / f"{name}_{MASK}.npy", mask)


def names(paths) -> list[str]:
    return [path.name for path in paths]


# --- the scripts ---------------------------------------------------------------------------------------


def test_script_takes_a_datalad_tree_as_it_is_and_says_what_it_takes(tmp_path):
    """Subjects in real folders, in linked ones and as git-annex leaves them; everything else that lies about."""
    tree = tmp_path / ".mounted/tree"  # a hidden folder above the root means nothing
    put_subject(tree / "sub-01/anat", "sub-01")
    put_subject(tmp_path / "elsewhere/sub-02/anat", "sub-02")
    link(tree / "sub-02", tmp_path / "elsewhere/sub-02")
    put_subject(tree / ".git/annex/objects", "MD5E-s1")
    link(tree / "sub-03/sub-03_desc-brainmasked_T1w.npy", "../.git/annex/objects/MD5E-s1_T1w.npy")
    link(tree / f"sub-03/sub-03_{MASK}.npy", f"../.git/annex/objects/MD5E-s1_{MASK}.npy")
    link(tree / "sub-03/again", tree)
    put(tree / ".ipynb_checkpoints/sub-09_T1w.npy")
    put(tree / "sub-01/anat/._sub-01_T1w.npy")
    put(tree / "sub-01/anat/sub-01_desc-brain_mask.npy")
    put(tree / "sub-01/anat/sub-01_label-GM_mask.npy")
    put(tree / "scores/demo/predictions/sub-01_T1w_prediction.npy")
    link(tree / "sub-02/anat/sub-02_desc-brain_mask.npy", "not/fetched")  # nobody needs it
    for subject in ("01", "02", "03"):
        write_volume(tmp_path / f"brains/sub-{subject}_desc-brain_mask.npy", np.ones((1, 12, 20, 24), np.uint8))
    done = run_script(
        *["-m", "data.slices", "--scans_dir", tree, "--masks_dir", tree, "--brains_dir", tmp_path / "brains", *GRID],
        *["--out_dir", tmp_path / "slices"],
        cwd=tmp_path,
    )
    left_out, taken = done.out.splitlines()[:2]
    assert taken == "--scans_dir: 3 scans with their masks, of 3 subjects"
    assert left_out == (
        "Left out: 1 GM mask (sub-01_label-GM_mask.npy), 2 brain masks (sub-01_desc-brain_mask.npy, ...), "
        "1 prediction of an earlier run (sub-01_T1w_prediction.npy)"
    )
    table = pd.read_csv(tmp_path / "slices/slices.csv", dtype=str)
    assert set(table.subject) == {"01", "02", "03"} and set(table.lesion_voxels) == {"0", "6"}


@pytest.mark.parametrize(
    ("scans", "complaint"),
    [
        ("fetched", "fetched/sub-02_T1w.npy is a link to a file that is not here; fetch it (datalad get"),
        ("sites", "have the same name, under which results are kept; rename them after their subjects"),
        ("sub-01_T1lesion_mask.npy", "--scans sub-01_T1lesion_mask.npy is a mask by its name; give scans here"),
        ("latin", r"--scans: 'latin/M\udcfcller_T1.npy' is a name that is not UTF-8; rename it"),
        ("dicom", ".nii, .npy volume, but IM1; convert such files first: dcm2niix -z y dicom"),
    ],
)
def test_scripts_refuse_what_they_would_have_dropped(tmp_path, scans, complaint):
    put(tmp_path / "fetched/sub-01_T1w.npy")
    link(tmp_path / "fetched/sub-02_T1w.npy", ".git/annex/objects/KEY.npy")
    for patient in ("patient 1", "patient 2"):
        put(tmp_path / "sites" / patient / "T1.npy")
    put(tmp_path / "sub-01_T1lesion_mask.npy")
    put(tmp_path / "latin" / os.fsdecode("Müller_T1.npy".encode("latin-1")))
    put_dicom(tmp_path / "dicom/IM1")
    done = run_script("test_strokeformer.py", "--scans", scans, "--ckpt_path", "no.ckpt", cwd=tmp_path, code=2)
    assert complaint in done.err.splitlines()[-1] and "Traceback" not in done.err


FOREIGN = {
    "IM-0001-0001": "dcm2niix -z y {folder}",
    "1.2.840.113619.2.5": "dcm2niix -z y {folder}",
    "a.IMA": "dcm2niix -z y {folder}",
    "brain.mgz": "mri_convert {folder}/brain.mgz {folder}/brain.nii.gz",
    "a.hdr": "nib-convert {folder}/a.img {folder}/a.nii.gz",
    "a.nrrd": "c3d {folder}/a.nrrd -o {folder}/a.nii.gz",
    "a.mha": "c3d {folder}/a.mha -o {folder}/a.nii.gz",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_images_of_other_formats_are_named_with_what_converts_them(tmp_path, name):
    (tmp_path / "README.txt").write_text("Scans")
    put_dicom(tmp_path / name)
    command = FOREIGN[name].format(folder=tmp_path)
    for paths in ([tmp_path], [tmp_path / name]):
        with pytest.raises(UserError) as refused:
            pair_cases(paths, None)
        assert str(refused.value).endswith(f": {command}")


def test_extension_is_named_by_commands_that_have_it_and_only_where_no_conversion_helps(tmp_path):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "Scans/a_T1w.nii.gz")
    put_dicom(tmp_path / "Scans/a.dcm")
    for read, fix in (
        (lambda: pair_cases([tmp_path / "Scans"], None, ".npy"), "holds no .npy volume; check the path and --ext"),
        (lambda: read_slice_table(tmp_path / "Scans", tmp_path / "Scans"), "holds no .npy volume; check the path"),
        (lambda: pair_cases([tmp_path / "empty"], None), ".npy volume; check the path"),
    ):
        with pytest.raises(UserError) as refused:
            read()
        assert str(refused.value).endswith(fix)


# --- links ---------------------------------------------------------------------------------------------


def test_linked_folder_on_a_drive_that_is_away_is_missed(tmp_path):
    put(tmp_path / "sub-01/sub-01_T1w.npy")
    lost = link(tmp_path / "sub-02", "/mnt/away/sub-02")
    with pytest.raises(UserError, match=f"{lost} is a link to what is not here; mount"):
        find_volumes([tmp_path], "--scans")


def test_real_path_goes_before_a_link_and_counts_once(tmp_path):
    real = put(tmp_path / "tree/z/sub-01_T1w.npy")
    link(tmp_path / "tree/a", "z")
    link(tmp_path / "tree/b", tmp_path)
    link(tmp_path / "tree/c/sub-01_T1w.npy", real)
    link(tmp_path / "tree/round", "round")
    assert list(find_volumes([tmp_path / "tree", tmp_path / "tree/z", real], "--scans").values()) == [real]


def test_two_names_of_one_annexed_file_are_two_scans(tmp_path):
    key = put(tmp_path / ".git/annex/objects/KEY.npy")
    for subject in ("01", "02"):
        link(tmp_path / f"sub-{subject}/sub-{subject}_T1w.npy", key)
    assert [case.subject for case in pair_cases([tmp_path], None)] == ["01", "02"]


@pytest.mark.parametrize("target", ["KEY.npy", "KEY", "sub-02_T1w.npy"])
def test_link_to_a_file_that_is_not_here_is_refused(tmp_path, target):
    put(tmp_path / "sub-01_T1w.npy")
    broken = link(tmp_path / "sub-02_T1w.npy", target)  # the last one is a link to itself
    for paths in ([tmp_path], [tmp_path / "sub-01_T1w.npy", broken]):
        for search in (
            lambda paths: pair_cases(paths, None),
            lambda paths: require_present(find_volumes(paths, "--scans").values()),
        ):
            with pytest.raises(UserError, match=r"sub-02_T1w\.npy is a link to a file that is not here; fetch it"):
                search(paths)


def test_link_of_no_volume_or_of_another_extension_is_nobody_s_concern(tmp_path):
    put(tmp_path / "sub-01_T1w.npy")
    link(tmp_path / "sub-01_T1w.json", "KEY")
    link(tmp_path / "sub-02_T1w.nii.gz", "KEY")
    assert names(case.scan for case in pair_cases([tmp_path], None, ".npy")) == ["sub-01_T1w.npy"]


# --- roles ---------------------------------------------------------------------------------------------

ROLES = {
    "scan": [
        *["sub-01_desc-brainmasked_T1w.nii.gz", "sub-01_acq-mask_FLAIR.nii", "sub-01_ses-1_flair.npy"],
        *["sub-01_T1w_augmented-2.npy", "sub-01_T1w_slice-012.npy", "SUB_T1.NII.GZ", "p3_lesion_study_T1.nii"],
    ],
    "mask": [
        *["sub-x_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz", "sub-1_ses-0001_msk.nii.gz"],
        *["sub-1_label-L_desc-T1lesion_mask_augmented-1_slice-012.npy", "sub-01_T2w_desc-lesion_mask.nii"],
        *["sub-01_roi.nii", "sub-01_lesion.nii", "sub-01_T1w_mask.nii", "sub-01_label-lesion_dseg.nii.gz"],
        *["lesionmask.npy", "mask01.npy", "P3-T1lesion_mask.npy", "brain_lesion_mask.nii", "p3_T1_lesion.nii"],
        *["seg0.nii.gz", "sub-01_brain-lesion-mask.nii"],
    ],
    "brain mask": [
        *["sub-01_desc-brain_mask.nii.gz", "sub-01_T1w_brain_mask.nii", "p3_brainmask.nii", "brain-mask_3.nii"],
        *["T1_bet_mask.nii", "sub-01_brain-mask.nii", "stroke01_brain_mask.nii", "sub-01_label-L_desc-brain_mask.nii"],
    ],
    "GM mask": ["sub-01_label-GM_mask.nii.gz", "p3_GM_mask.nii", "sub-01_desc-GM_msk.nii"],
    "hippocampus mask": ["sub-01_label-hippocampus_mask.nii.gz"],
    "tissue segmentation": ["sub-01_dseg.nii.gz", "sub-01_desc-aseg_dseg.nii.gz"],
    "probability map": ["sub-01_label-WM_probseg.nii.gz", "sub-01_T1w_probability.npy"],
    "uncertainty map": ["sub-01_T1w_uncertainty.nii.gz"],
    "Grad-CAM map": ["sub-01_T1w_gradcam.nii"],
    "prediction of an earlier run": ["sub-01_T1w_prediction.nii.gz", "scan_prediction.npy", "p3_mask_prediction.npy"],
    None: ["01.nii.gz", "patient_3.nii.gz", "sub-01.nii.gz", "img0.nii.gz", "masked.npy"],
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, all_of in ROLES.items() for name in all_of])
def test_name_tells_the_role(role, name):
    assert role_of(Path("some_masks/T1w") / name) == role


def test_names_that_tell_nothing_take_the_role_of_their_argument(tmp_path, capsys):
    for folder in ("imagesTr", "labelsTr"):
        for name in ("01.npy", "patient_3.npy"):
            put(tmp_path / folder / name)
    # Under both arguments they are scans.
    for masks in (tmp_path / "labelsTr", tmp_path):
        cases = pair_cases([tmp_path / "imagesTr"], [masks])
        assert [(c.subject, c.scan.name, c.mask.name) for c in cases] == [
            ("01", "01.npy", "01.npy"),
            ("patient_3", "patient_3.npy", "patient_3.npy"),
        ]
        assert capsys.readouterr().out == "--scans: 2 scans with their masks, of 2 subjects\n"
    table = read_slices_of_same_names(tmp_path)
    assert len(table) == 1 and "imagesTr" in table.scan[0] and "labelsTr" in table["mask"][0]


def read_slices_of_same_names(root: Path) -> pd.DataFrame:
    for folder in ("imagesTr", "labelsTr"):
        (root / "2d" / folder).mkdir(parents=True)
        np.save(root / "2d" / folder / "01_slice-003.npy", np.ones((1, 4, 4)))
    return read_slice_table(root / "2d/imagesTr", root / "2d/labelsTr")


def test_files_without_a_part_are_named_once_and_the_hidden_not_at_all(tmp_path, capsys):
    for name in ("sub-01_T1w.npy", "sub-01_mask.npy", "sub-02_T1w.npy", "sub-02_msk.npy", "sub-01_T1w.nii", "._x.npy"):
        put(tmp_path / "tree" / name)
    put(tmp_path / "more/sub-03_T1w.npy")
    put(tmp_path / "more/sub-01_desc-brain_mask.npy")
    tree, more = tmp_path / "tree", tmp_path / "more"
    assert len(pair_cases([tree], [tree, more], ".npy")) == 2
    assert capsys.readouterr().out.splitlines() == [
        "Left out: 1 .nii file (sub-01_T1w.nii), 1 brain mask (sub-01_desc-brain_mask.npy), "
        "1 scan outside --scans (sub-03_T1w.npy)",
        "--scans: 2 scans with their masks, of 2 subjects",
    ]


@pytest.mark.parametrize(
    ("scans", "masks", "complaint"),
    [
        ("sub-01_T1w.npy", "sub-01_T1w.npy", r"--masks .*sub-01_T1w\.npy is a scan by its name; give masks here"),
        ("sub-01_desc-brain_mask.npy", None, r"--scans .*brain_mask\.npy is a brain mask by its name"),
        ("sub-01_T1w_prediction.npy", None, r"--scans .*prediction\.npy is a prediction of an earlier run by its name"),
        ("notes.txt", None, r"--scans .*notes\.txt is no \.nii\.gz, \.nii, \.npy volume; convert it"),
    ],
)
def test_file_given_by_name_for_what_it_is_not_is_refused(tmp_path, scans, masks, complaint):
    for name in filter(None, (scans, masks)):
        put(tmp_path / name)
    with pytest.raises(UserError, match=complaint):
        pair_cases([tmp_path / scans], masks and [tmp_path / masks])


def test_scans_may_be_given_as_files_twice_and_in_capitals(tmp_path, monkeypatch):
    put(tmp_path / "sub-01_T1w.NPY")
    put(tmp_path / "sub-02_T1w.npy")
    for subject in ("01", "02", "03"):
        put(tmp_path / f"Masks/sub-{subject}_mask.npy")
    monkeypatch.chdir(tmp_path)
    scans = ["sub-01_T1w.NPY", tmp_path / "sub-01_T1w.NPY", "./sub-02_T1w.npy", "Masks/../sub-02_T1w.npy"]
    cases = pair_cases(scans, ["Masks"])
    assert [(case.name, case.mask.name) for case in cases] == [
        ("sub-01_T1w.NPY", "sub-01_mask.npy"),
        ("sub-02_T1w.npy", "sub-02_mask.npy"),
    ]


def test_contrasts_that_differ_between_subjects_are_counted(tmp_path, capsys):
    for name in ("sub-01_T1w.npy", "sub-02_FLAIR.npy", "sub-03_T1w.npy"):
        put(tmp_path / name)
    pair_cases([tmp_path], None)
    assert capsys.readouterr().out == "--scans: 3 scans (1 FLAIR, 2 T1w) without masks, of 3 subjects\n"


def test_published_layout_says_what_it_leaves_out(tmp_path, capsys):
    for name in ("dwi/sub-1_dwi", "dwi/sub-1_adc", "anat/sub-1_FLAIR", "derivatives/sub-1_msk"):
        put(tmp_path / f"{name}.nii.gz")
    link(tmp_path / "dwi/sub-1_desc-raw_adc.nii.gz", "KEY")
    assert len(find_cases(tmp_path, LAYOUTS["isles-dwi"])) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Left out: 3 other volumes (sub-1_FLAIR.nii.gz, ...)",
        "--root: 1 scan with its mask, of 1 subject",
    ]
    link(tmp_path / "dwi/sub-2_dwi.nii.gz", "KEY")
    with pytest.raises(UserError, match=r"sub-2_dwi\.nii\.gz is a link to a file that is not here"):
        find_cases(tmp_path, LAYOUTS["isles-dwi"])
