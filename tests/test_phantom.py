"""The synthetic cohort: deterministic, the same at any spacing, and shaped like strokes."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_dilation, label
from threadpoolctl import threadpool_limits

from data.files.space import Space
from data.files.volumes import read_volume
from data.phantom.cohort import healthy_subjects, make_subject, subject_files, write_cohort
from data.phantom.heads import FIELD_OF_VIEW_MM
from data.phantom.statistics import LARGEST_CM3
from data.scans.head import head_mask
from data.settings import PhantomSettings
from tests.running import run_script
from utils.errors import UserError

SETTINGS = PhantomSettings(n_subjects=12, spacing=(6.0,) * 3, seed=3, healthy_fraction=0.25)
SICK = [i for i in range(12) if i not in healthy_subjects(SETTINGS)]


def test_cohort_has_atlas_names_layout_shapes_and_types(tmp_path):
    write_cohort(replace(SETTINGS, n_subjects=2), tmp_path)
    name = "sub-r001s001_ses-1_space-MNI152NLin2009aSym"
    scan = np.load(tmp_path / f"Scans/{name}_T1w.npy")
    mask = np.load(tmp_path / f"Masks/{name}_label-L_desc-T1lesion_mask.npy")
    assert scan.shape == mask.shape == (1, 33, 39, 32)  # 197 x 233 x 189 mm at 6 mm, as (C, H, W, D)
    assert scan.dtype == np.float32 and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    table = pd.read_csv(tmp_path / "cohort.csv")
    assert table.spacing_mm.tolist() == ["6.0 6.0 6.0"] * 2 and table.lesion_voxels[0] == mask.sum()
    assert "no patients" in json.loads((tmp_path / "phantom.json").read_text())["what"]


def test_files_follow_the_seed_and_not_the_number_of_processes(tmp_path):
    small = replace(SETTINGS, n_subjects=3)
    write_cohort(small, tmp_path / "one", num_workers=1)
    write_cohort(small, tmp_path / "two", num_workers=2)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.npy"))
    assert len(files) == 9
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert not np.array_equal(make_subject(small, 0).scan, make_subject(replace(small, seed=4), 0).scan)


def test_voxels_do_not_follow_the_number_of_threads():
    settings = PhantomSettings(modality="dwi", spacing=(4.0,) * 3, n_subjects=9, seed=3, variety=1.0)
    scans = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            scans.append(make_subject(settings, 4).scan)
    assert (scans[0] == scans[1]).all()


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_nifti_cohort_holds_the_same_voxels_and_its_spacing(tmp_path, ext):
    write_cohort(replace(SETTINGS, n_subjects=1, ext=ext), tmp_path)
    volume = read_volume(next((tmp_path / "Scans").iterdir()))
    np.testing.assert_array_equal(volume.array, make_subject(SETTINGS, 0).scan)
    assert volume.spacing_mm == (6, 6, 6)


def test_another_spacing_shows_the_same_head_and_lesion():
    coarse, fine = (replace(SETTINGS, spacing=(s,) * 3) for s in (6.0, 3.0))
    compared = 0
    for index in SICK[:6]:
        pair = [(make_subject(settings, index), settings.spacing[0]) for settings in (coarse, fine)]
        volumes = [subject.mask.sum() * s**3 / 1000 for subject, s in pair]
        if volumes[1] < 3:  # a handful of voxels at 6 mm tells nothing
            continue
        assert volumes[0] == pytest.approx(volumes[1], rel=0.2)
        centres = [np.argwhere(subject.mask[0]).mean(0) * s for subject, s in pair]
        assert np.abs(centres[0] - centres[1]).max() < 5  # mm
        for of in (lambda subject: subject.brain, lambda subject: head_mask(subject.scan[0])):
            coarse_mm3, fine_mm3 = (of(subject).sum() * s**3 for subject, s in pair)
            assert coarse_mm3 == pytest.approx(fine_mm3, rel=0.1)
        compared += 1
    assert compared >= 2


def nearest(coarse: np.ndarray, spacing: float, shape: tuple[int, ...], fine_spacing: float) -> np.ndarray:
    """A (D, H, W) mask on a finer grid that shares its centre, by the nearest voxel."""
    h, w, d = FIELD_OF_VIEW_MM
    places = []
    for n, n_fine in zip(coarse.shape, shape, strict=True):
        from_centre = (np.arange(n_fine) - (n_fine - 1) / 2) * fine_spacing
        places.append(np.clip(np.rint(from_centre / spacing + (n - 1) / 2).astype(int), 0, n - 1))
    assert coarse.shape == (round(d / spacing), round(h / spacing), round(w / spacing))
    return coarse[np.ix_(*places)]


def test_masks_of_two_spacings_overlap():
    shares = []
    for index in SICK[:4]:
        fine, coarse = (make_subject(replace(SETTINGS, spacing=(s,) * 3), index).mask[0] for s in (2.0, 4.0))
        resampled = nearest(coarse, 4.0, fine.shape, 2.0)
        shares.append(2 * (resampled & fine).sum() / (resampled.sum() + fine.sum()))
    assert min(shares) > 0.6 and np.mean(shares) > 0.7  # the rest is the staircase of 4 mm voxels


def test_just_the_wanted_fraction_is_healthy():
    masks = [make_subject(SETTINGS, i).mask for i in range(12)]
    assert sum(not m.any() for m in masks) == len(healthy_subjects(SETTINGS)) == 3


def test_lesions_are_dark_and_within_the_brain():
    for index in SICK:
        subject = make_subject(replace(SETTINGS, spacing=(4.0,) * 3, variety=0.0), index)
        scan, lesion = subject.scan[0], subject.mask[0] > 0
        assert lesion.any() and not (lesion & ~subject.brain).any()
        if lesion.sum() > 8:
            around = binary_dilation(lesion, iterations=2) & ~lesion & subject.brain
            assert np.median(scan[lesion]) < 0.8 * np.median(scan[around])


def test_lesion_volumes_stay_in_the_range_of_atlas_about_its_median():
    wide = replace(SETTINGS, n_subjects=60, spacing=(8.0,) * 3)
    volumes = [make_subject(wide, i).mask.sum() * 8**3 / 1000 for i in range(60)]
    volumes = np.array([v for v in volumes if v > 0])
    assert volumes.max() <= LARGEST_CM3 and 2 < np.median(volumes) < 10


def test_contrast_zero_hides_the_lesion():
    index = SICK[0]
    clean = replace(SETTINGS, variety=0.0)  # without ghosts, which carry a lesion far
    hidden = make_subject(replace(clean, lesion_contrast=0.0), index).scan
    subject = make_subject(clean, index)
    shown, mask = subject.scan, subject.mask
    assert mask.any() and shown[mask > 0].mean() < hidden[mask > 0].mean()
    far = ~binary_dilation(mask[0] > 0, iterations=3)
    np.testing.assert_allclose(shown[0][far], hidden[0][far], atol=0.5)


def test_folder_of_other_settings_is_refused_and_kept(tmp_path):
    write_cohort(replace(SETTINGS, n_subjects=1), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.npy")}
    error = run_script("-m", "data.phantom", "--out_dir", tmp_path, "--n_subjects", 2, cwd=tmp_path, code=2).err
    assert "--out_dir" in error and len(error.splitlines()) == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.npy")} == before


def test_resumed_cohort_keeps_finished_scans_and_redraws_missing_ones(tmp_path):
    small = replace(SETTINGS, n_subjects=2, spacing=(8.0,) * 3)
    write_cohort(small, tmp_path)
    kept, lost = (subject_files(tmp_path, i, small).scan for i in range(2))
    before, written_at = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    write_cohort(small, tmp_path)
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == written_at


def test_folder_with_scans_of_others_is_refused_and_left_alone(tmp_path):
    scan = subject_files(tmp_path, 0, SETTINGS).scan
    scan.parent.mkdir()
    scan.write_bytes(b"a patient")
    with pytest.raises(UserError, match="--out_dir"):
        write_cohort(replace(SETTINGS, n_subjects=1), tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [scan]


@pytest.mark.parametrize("name, value", [("--spacing", 400), ("--spacing", 0), ("--healthy_fraction", 2)])
def test_senseless_argument_is_refused_by_name(tmp_path, name, value):
    error = run_script("-m", "data.phantom", "--out_dir", tmp_path / "new", name, value, cwd=tmp_path, code=2).err
    assert name in error and "Traceback" not in error and not (tmp_path / "new").exists()


# --- heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["t1w", "flair", "dwi"])
def test_brain_is_the_same_with_and_without_what_is_around_it(modality):
    settings = replace(SETTINGS, modality=modality, spacing=(4.0,) * 3)
    whole, stripped = (make_subject(replace(settings, stripped=s), SICK[0]) for s in (False, True))
    np.testing.assert_array_equal(whole.brain, stripped.brain)
    np.testing.assert_array_equal(whole.mask, stripped.mask)
    np.testing.assert_array_equal(whole.scan[0][whole.brain], stripped.scan[0][whole.brain])
    assert not stripped.scan[0][~stripped.brain].any()
    assert (whole.scan[0][~whole.brain] != 0).mean() > 0.9  # noise in air; only the removed face is 0


def test_head_is_about_twice_its_brain_and_dark_bone_lies_between():
    for seed in range(4):  # in sharp scans: thick slices blur the bone
        subject = make_subject(replace(SETTINGS, seed=seed, spacing=(3.0,) * 3, variety=0.0), 0)
        scan, brain = subject.scan[0], subject.brain
        head_cm3, brain_cm3 = (np.count_nonzero(mask) * 3**3 / 1000 for mask in (head_mask(scan), brain))
        assert 1100 < brain_cm3 < 1900 and 2000 < head_cm3 < 4000 and head_cm3 > 1.5 * brain_cm3
        six_mm_out = binary_dilation(brain, iterations=2) & ~binary_dilation(brain)
        assert np.median(scan[six_mm_out]) < 0.4 * np.median(scan[brain])


def test_stripped_brain_is_its_own_head():
    subject = make_subject(replace(SETTINGS, spacing=(4.0,) * 3, stripped=True), 0)
    head = head_mask(subject.scan[0])
    assert 2 * (head & subject.brain).sum() / (head.sum() + subject.brain.sum()) > 0.97


# --- contrasts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["flair", "dwi"])
def test_acute_lesions_are_bright_and_some_of_the_brain_is_negative(modality):
    below = 0
    for index in SICK:
        subject = make_subject(replace(SETTINGS, modality=modality, spacing=(4.0,) * 3, variety=0.0), index)
        scan, lesion = subject.scan[0], subject.mask[0] > 0
        assert lesion.any() and not (lesion & ~subject.brain).any()
        if lesion.sum() > 8:
            around = binary_dilation(lesion, iterations=2) & ~lesion & subject.brain
            assert np.median(scan[lesion]) > 1.2 * np.median(scan[around])
        below += np.count_nonzero(scan[subject.brain] < 0)
        assert np.mean(scan[subject.brain] < 0) < 0.02
    assert below


def test_modalities_show_one_brain():
    brains = [make_subject(replace(SETTINGS, modality=m), 0).brain for m in ("t1w", "flair", "dwi")]
    assert all(np.array_equal(brain, brains[0]) for brain in brains)


def test_dwi_and_flair_share_their_lesions_many_and_small():
    counts = []
    for index in range(7):
        settings = replace(SETTINGS, healthy_fraction=0.0, spacing=(3.0,) * 3)
        masks = [make_subject(replace(settings, modality=m), index).mask[0] for m in ("flair", "dwi")]
        np.testing.assert_array_equal(*masks)
        counts.append(label(masks[0], np.ones((3, 3, 3)))[1])
    assert min(counts) == 1 and max(counts) > 5


# --- grids ---------------------------------------------------------------------------------------------


def written(folder, **changes):
    """A subject's settings, files as NIfTI, and row of the table."""
    settings = replace(SETTINGS, n_subjects=1, healthy_fraction=0.0, ext=".nii.gz", **changes)
    write_cohort(settings, folder)
    return settings, subject_files(folder, 0, settings), pd.read_csv(folder / "cohort.csv").iloc[0]


def test_thick_slices_have_their_spacing_in_file_and_table(tmp_path):
    settings, files, row = written(tmp_path, spacing=(6.0, 3.0, 4.0))
    volume = read_volume(files.scan)
    assert volume.spacing_mm == (6, 3, 4) and row.spacing_mm == "3.0 4.0 6.0"
    assert volume.array.shape == (1, 32, 66, 58) and row["shape"] == "66 58 32"
    subject = make_subject(settings, 0)
    same = make_subject(replace(settings, spacing=(3.0,) * 3), 0)
    assert subject.brain.sum() * 72 == pytest.approx(same.brain.sum() * 27, rel=0.02)  # mm3
    assert int(subject.mask.sum()) * 72 == pytest.approx(int(same.mask.sum()) * 27, rel=0.2)


def test_oblique_turns_the_affine_and_no_voxel(tmp_path):
    straight, tilted = (written(tmp_path / str(o), modality="dwi", oblique=o)[1] for o in (False, True))
    for a, b in zip(straight, tilted, strict=True):
        plain, turned = read_volume(a), read_volume(b)
        np.testing.assert_array_equal(plain.array, turned.array)
        axes = [v.affine[:3, 2] / np.linalg.norm(v.affine[:3, 2]) for v in (plain, turned)]
        assert 11 < np.degrees(np.arccos(axes[0] @ axes[1])) < 14
    headers = [nib.load(file).header for file in tilted]
    assert [(int(h["qform_code"]), int(h["sform_code"])) for h in headers] == [(2, 1), (0, 2), (2, 1)]
    scan, mask = (read_volume(file) for file in (tilted.scan, tilted.mask))
    assert Space(scan.array.shape[1:], scan.affine).is_close(Space(mask.array.shape[1:], mask.affine))


def test_isles_names_and_true_brains(tmp_path):
    _, files, _ = written(tmp_path, modality="dwi")
    case = "sub-strokecase0001_ses-0001"
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        f"Scans/{case}_dwi.nii.gz",
        f"Masks/{case}_msk.nii.gz",
        f"TrueBrains/{case}_dwi_desc-brain_mask.nii.gz",
    ]
    assert (read_volume(files.brain).array[0] > 0).sum() == make_subject(SETTINGS, 0).brain.sum()


@pytest.mark.parametrize("arguments", [["--oblique"], ["--spacing", 4, 4]])
def test_grid_that_a_file_cannot_tell_is_refused(tmp_path, arguments):
    out_dir = tmp_path / "new"
    error = run_script("-m", "data.phantom", "--out_dir", out_dir, *arguments, cwd=tmp_path, code=2).err
    assert arguments[0] in error and "Traceback" not in error and not out_dir.exists()
