"""Where lesions lie: side, place in MNI space, regions of an atlas, and the map of a cohort."""

import json
from functools import cache

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.files.space import Space
from data.phantom.cohort import draw_head, make_subject
from data.phantom.heads import ORIGIN_MM
from data.scans.atlas import OUTSIDE, Atlas, atlas_files, read_atlas
from data.scans.mni import map_space, register
from data.scans.prepared import PreparedScan
from data.scans.symmetry import midsagittal_plane
from data.settings import PhantomSettings
from models.evaluation.places import Place, Places, side_of
from report.places import lesion_map
from tests.running import GRID, run_script
from utils.errors import UserError

SIZES_MM = 4.0, 4.0, 4.0
TO_MM = nib.affines.from_matvec(4 * np.eye(3), -np.array(ORIGIN_MM) / 1.3)


def prepared(scan: np.ndarray, brain: np.ndarray, affine: np.ndarray = TO_MM, known: bool = True) -> PreparedScan:
    own = Space(brain.shape, affine)
    return PreparedScan("a", "a", (scan * brain).astype(np.float16), brain, None, own, own, known)


@cache
def drawn_head(modality: str, index: int = 0):
    """A stripped head whose values lie in [0, 2], and the place of each voxel in MNI mm (3, D, H, W)."""
    settings = PhantomSettings(modality=modality, spacing=SIZES_MM, stripped=True, seed=3, healthy_fraction=0)
    subject = make_subject(settings, index)
    mni_mm = draw_head(settings, index).template_mm - np.reshape(ORIGIN_MM, (3, 1, 1, 1))
    if mni_mm[0, 0].mean() > mni_mm[0, -1].mean():  # its anatomy is mirrored, its left is still left
        mni_mm[0] *= -1
    return subject.scan / 100, subject.brain, mni_mm.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("modality", ["t1w", "dwi", "flair"])
def test_registration_is_close_to_the_best_affine_in_every_contrast_and_position(modality):
    scan, brain, mni_mm = drawn_head(modality)
    turn = nib.eulerangles.euler2mat(0.1, 0.15, 0.2)
    affine = nib.affines.from_matvec(turn, (30, -20, 50)) @ TO_MM
    to_mni = register(prepared(scan, brain, affine))
    own_mm = nib.affines.apply_affine(affine, np.argwhere(brain)[:, [1, 2, 0]])
    ones = np.ones((len(own_mm), 1))
    best = np.hstack([own_mm, ones]) @ np.linalg.lstsq(np.hstack([own_mm, ones]), mni_mm[:, brain].T)[0]
    assert np.linalg.norm(nib.affines.apply_affine(to_mni, own_mm) - best, axis=1).mean() < 3
    plane = midsagittal_plane(brain, Space(brain.shape, affine))
    away = np.abs(mni_mm[0, brain]) > 12
    right = np.hstack([own_mm, ones]) @ plane > 0
    np.testing.assert_array_equal(right[away], mni_mm[0, brain][away] > 0)


def test_what_is_no_whole_brain_or_has_no_voxel_size_gets_no_place():
    scan, brain, _ = drawn_head("t1w")
    assert register(prepared(scan, brain, known=False)) is None
    half = brain.copy()
    half[:20] = False
    assert register(prepared(scan, half)) is None
    assert register(prepared(np.ones_like(scan), brain)) is None
    ball = np.linalg.norm(np.indices((50, 50, 50)) - 24.5, axis=0) < 15
    assert register(prepared(np.random.default_rng(0).random((1, 50, 50, 50)), ball)) is None


def test_side_is_that_of_nine_tenths_of_the_voxels():
    assert side_of(np.array([-20.0] * 9 + [20])) == "left" and side_of(np.array([20.0] * 9 + [-20])) == "right"
    assert side_of(np.array([-20.0] * 8 + [20] * 2)) == "both"
    assert side_of(np.array([-9.0, 9])) == "midline" and np.isnan(side_of(np.array([])))


# --- atlas ---------------------------------------------------------------------------------------------


def write_atlas(path, labels=None, affine=None):
    """Two regions, of the left (1) and the right (7) hemisphere, on 10 mm."""
    if labels is None:
        labels = np.zeros((12, 12, 10), np.int16)
        labels[:5], labels[7:] = 1, 7
    nib.save(
        nib.Nifti1Image(labels, nib.affines.from_matvec(10 * np.eye(3), (-55, -70, -30)) if affine is None else affine),
        path,
    )
    return path


def test_names_are_those_of_the_first_column_in_which_all_differ(tmp_path):
    path = write_atlas(tmp_path / "atlas.nii.gz")
    assert read_atlas(*atlas_files(path)).names == {1: "1", 7: "7"}
    beside = tmp_path / "atlas.txt"
    beside.write_text("# the arteries\n1|MCA|middle left|1\n7|MCA|middle right|2\n\n")
    assert read_atlas(*atlas_files(path)).names == {1: "middle left", 7: "middle right"}
    beside.write_text("0 Unknown 0 0 0 0\n1 Left Area 4 70 130 180 0\n7 Right Area 4 70 130 180 0\n")
    atlas = read_atlas(*atlas_files(path))
    assert atlas.names == {1: "Left Area 4", 7: "Right Area 4"}
    assert atlas.at(np.array([(-50, 0, 0), (51, 0, 0), (0, 0, 0), (500, 0, 0)])).tolist() == [1, 7, 0, 0]


def test_an_atlas_that_is_none_is_refused_before_any_work(tmp_path):
    good, names = write_atlas(tmp_path / "good.nii.gz"), tmp_path / "names.txt"
    far = nib.affines.from_matvec(10 * np.eye(3), (500, 0, 0))
    np.save(tmp_path / "plain.npy", np.ones((1, 9, 9, 9)))
    files = {
        "has no affine": tmp_path / "plain.npy",
        "has 2 volumes": write_atlas(tmp_path / "four.nii", np.ones((9, 9, 9, 2), np.int16)),
        "other values than labels": write_atlas(tmp_path / "soft.nii", np.full((9, 9, 9), 0.5, np.float32)),
        "does not lie in the brain": write_atlas(tmp_path / "far.nii", np.ones((9, 9, 9), np.int16), far),
    }
    for message, path in files.items():
        with pytest.raises(UserError, match=message):
            read_atlas(path)
    for message, text in {
        "no name for the label 7": "1 left\n",
        "no column in which": "1 MCA\n7 MCA\n",
        "no line of a label": "one MCA\n",
    }.items():
        names.write_text(text)
        with pytest.raises(UserError, match=message):
            read_atlas(good, names)
    assert atlas_files(None) == []


# --- tables --------------------------------------------------------------------------------------------


def test_lesions_and_regions_of_a_scan_worked_by_hand():
    labels = np.zeros((10, 20, 10), np.int32)
    labels[:, :10], labels[:, 10:] = 1, 2
    own = Space(labels.shape, nib.affines.from_matvec(10 * np.eye(3), (-95, 0, 0)))
    place = Place(
        own, (10.0,) * 3, np.array([1.0, 0, 0, 0]), np.diag([0.5, 1, 1, 1]), Atlas(labels, own, {1: "l", 2: "r"})
    )
    target, prediction = np.zeros((2, *labels.shape), bool)
    target[5, 0:2, 5], prediction[5, 1, 5], prediction[2, 18, 3] = True, True, True
    rows = pd.DataFrame({"x_mm": [-90.0, 85], "y_mm": [50.0, 30], "z_mm": [50.0, 20]})
    found = place.with_places(rows, prediction, target)
    assert found.side.tolist() == ["left", "right"] and found.region.tolist() == ["l", "r"]
    assert found[["mni_x_mm", "mni_y_mm", "mni_z_mm"]].to_numpy().tolist() == [[-45, 50, 50], [42.5, 30, 20]]
    none = place.with_places(rows[:0], prediction & False, target & False)
    assert none.empty and none.columns.tolist() == found.columns.tolist()
    volumes = place.region_rows("a", prediction, target).set_index("region")
    assert volumes.predicted_cm3.to_dict() == {"l": 1, "r": 1, OUTSIDE: 0}
    assert volumes.true_cm3.to_dict() == {"l": 2, "r": 0, OUTSIDE: 0}


def test_map_counts_scans_with_a_lesion_at_each_place(tmp_path):
    scan, brain, mni_mm = drawn_head("flair")
    places = Places(None)
    lesion = brain & (np.linalg.norm(mni_mm - np.reshape((-35, 0, 15), (3, 1, 1, 1)), axis=0) < 12)
    for name, mask in (("a", lesion), ("b", lesion & False)):
        one = prepared(scan, brain)
        assert (
            places.add(PreparedScan(name, *list(vars(one).values())[1:]), mask, None).side(np.argwhere(lesion))
            == "left"
        )
    places.write(tmp_path / "m")
    counts = nib.load(tmp_path / "m/predicted_frequency.nii.gz")
    where = nib.affines.apply_affine(counts.affine, np.argwhere(counts.get_fdata() == 1))
    assert counts.shape == map_space().shape[1:] + map_space().shape[:1] and counts.get_fdata().max() == 1
    assert np.linalg.norm(where.mean(0) - (-35, 0, 15)) < 8
    assert set(json.loads((tmp_path / "m/places.json").read_text())) == {"a", "b"}
    section = lesion_map(tmp_path, ["m"])
    assert "share of 2 scans" in section.note and len(section.parts) == 1
    assert not lesion_map(tmp_path, ["another"]).parts


def test_script_writes_regions_of_the_atlas_and_the_map(workspace, tmp_path):
    atlas = write_atlas(tmp_path / "atlas.nii.gz")
    command = ["test_strokeformer.py", "--scans", workspace.scans, "--masks", workspace.masks, *GRID, "--atlas", atlas]
    command += ["--ckpt_path", workspace.seg, "--n_predictions", 0, "--model_name", "placed"]
    run_script(*command, cwd=tmp_path)
    regions = pd.read_csv(tmp_path / "scores/per_region_volumes.csv")
    assert regions.columns.tolist() == ["model_name", "scan", "region", "predicted_cm3", "true_cm3"]
    volumes = pd.read_csv(tmp_path / "scores/volumes.csv").set_index("scan")
    totals = regions.groupby("scan")[["predicted_cm3", "true_cm3"]].sum()
    pd.testing.assert_frame_equal(totals, volumes[totals.columns].loc[totals.index])
    lesions = pd.read_csv(tmp_path / "scores/per_lesion_scores.csv")
    places = json.loads((tmp_path / "scores/placed/places.json").read_text())
    assert all(places.values()) and lesions[["side", "mni_x_mm", "region"]].notna().all(axis=None)
    sided = lesions[lesions.side.isin(["left", "right"]) & (lesions.mni_x_mm.abs() > 10)]
    assert ((sided.mni_x_mm > 0) == (sided.side == "right")).all()
    assert "Where lesions lie" in (tmp_path / "scores/placed/report.html").read_text()
    (tmp_path / "atlas.txt").write_text("1 left\n")
    error = run_script(*command, cwd=tmp_path, code=2).err
    assert "has no name for the label 7" in error
