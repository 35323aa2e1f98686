"""Reading, writing, head mask, normalisation, and the networks' grid."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cohort import Case
from data.grid import Grid, cached_scan, fit, prepare_scan
from data.volumes import head_mask, normalise, read_volume, volume_shape, write_like, write_volume
from tests.fuzz_readers import try_readers, valid_files, write_mutated
from utils.errors import UserError


def ball(shape=(24, 30, 26), radius=9.0, noise=1.0, seed=0):
    """A head-like ball of tissue 60 around CSF 15 in noisy air; returns the scan (D, H, W) and the true head."""
    grid = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    distance = np.sqrt((grid**2).sum(0))
    scan = np.where(distance < radius, 60.0, 0.0)
    scan[distance < 3] = 15
    rng = np.random.default_rng(seed)
    return np.abs(scan + rng.normal(0, noise, shape)).astype(np.float32), distance < radius


# --- reading and writing -------------------------------------------------------------------------------


def test_npy_is_c_h_w_d_on_disk_and_c_d_h_w_in_memory(tmp_path):
    on_disk = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)
    np.save(tmp_path / "a.npy", on_disk)
    volume = read_volume(tmp_path / "a.npy")
    assert volume.array.shape == (1, 4, 2, 3) and volume.spacing_mm is None
    assert volume.array[0, 3, 1, 2] == on_disk[0, 1, 2, 3]
    assert volume_shape(tmp_path / "a.npy") == (4, 2, 3)


@pytest.mark.parametrize("ext", [".npy", ".nii", ".nii.gz"])
def test_what_is_written_is_read_back(tmp_path, ext):
    array = np.random.default_rng(0).random((1, 4, 5, 6), np.float32)
    write_volume(tmp_path / f"a{ext}", array, np.diag([2, 3, 4, 1.0]))
    volume = read_volume(tmp_path / f"a{ext}")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.spacing_mm == (None if ext == ".npy" else (4, 2, 3))
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ext}"]


def test_nifti_of_any_orientation_is_read_as_ras(tmp_path):
    ras = np.random.default_rng(0).random((3, 4, 5), np.float32)
    # The same anatomy stored left to right reversed and with the axes in the order D, H, W.
    stored, affine = ras[::-1].transpose(2, 0, 1), np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[:, 3] = 3, -1, 2, (2, 0, 0, 1)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[0].transpose(1, 2, 0), ras)
    assert volume.spacing_mm == (3, 1, 2)
    assert volume_shape(tmp_path / "a.nii.gz") == (5, 3, 4)


def test_prediction_goes_back_into_the_scans_orientation_affine_and_shape(tmp_path):
    affine = np.array([[0, -1.0, 0, 9], [0, 0, 2.0, -7], [3.0, 0, 0, 5], [0, 0, 0, 1]])
    stored = (np.random.default_rng(0).random((5, 3, 4)) > 0.5).astype(np.uint8)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "scan.nii.gz")
    in_memory = read_volume(tmp_path / "scan.nii.gz", np.uint8).array[0]
    write_like(tmp_path / "prediction.nii.gz", in_memory, tmp_path / "scan.nii.gz")
    written = nib.load(tmp_path / "prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored)
    np.testing.assert_array_equal(written.affine, affine)


def test_broken_files_are_refused_by_name(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    np.save(tmp_path / "whole.npy", np.zeros((1, 4, 4, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-9])
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9)), np.eye(4)), tmp_path / "whole.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:-9])
    (tmp_path / "empty.nii.gz").touch()
    for name in ("pickled.npy", "flat.npy", "cut.npy", "cut.nii", "empty.nii.gz", "absent.npy"):
        with pytest.raises(UserError, match=name):
            read_volume(tmp_path / name)


def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    rng, files = np.random.default_rng(0), valid_files()
    outcomes = {try_readers(write_mutated(files, rng, tmp_path)[1]) for _ in range(1500)}
    assert outcomes == {"read", "refused"}


# --- head and intensities ------------------------------------------------------------------------------


def test_head_is_the_tissue_with_its_dark_inside_and_without_air():
    scan, truth = ball()
    head = head_mask(scan)
    assert (head & truth).sum() / (head | truth).sum() > 0.98
    assert head[12, 15, 13]  # the dark centre belongs to it


@pytest.mark.parametrize(("scale", "shift"), [(1000, 0), (1 / 60, 0), (1, 500), (0.01, -3)])
def test_head_does_not_depend_on_the_intensity_scale(scale, shift):
    scan, _ = ball()
    head, rescaled = head_mask(scan), head_mask((scan * scale + shift).astype(np.float32))
    assert (head & rescaled).sum() / (head | rescaled).sum() > 0.99


def test_on_atlas_intensities_the_head_is_what_exceeds_the_reference_threshold():
    scan, truth = ball(noise=0.5)
    reference, head = (scan > 8.0) | truth, head_mask(scan)
    assert (head & reference).sum() / (head | reference).sum() > 0.98


def test_constant_scan_has_no_head():
    assert not head_mask(np.full((4, 5, 6), 3.0, np.float32)).any()


def test_normalised_head_fills_the_unit_interval_whatever_the_outliers():
    scan, _ = ball()
    head = head_mask(scan)
    spiked = scan.copy()
    spiked[12, 15, 18] = 1e6
    for volume in (scan, spiked):
        normalised = normalise(volume[None], head)
        assert normalised.dtype == np.float32 and normalised.min() == 0 and normalised.max() == 1
        assert np.median(normalised[0][head]) > 0.8


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_normalisation_undoes_scale_and_shift(scale, shift):
    scan, head = ball()
    changed = (scan * scale + shift).astype(np.float32)
    np.testing.assert_allclose(normalise(changed[None], head), normalise(scan[None], head), atol=0.02)


# --- grid ----------------------------------------------------------------------------------------------


def test_fit_crops_and_pads_about_the_centre():
    array = np.arange(1, 7).reshape(1, 6)
    assert fit(array, (1, 4)).tolist() == [[2, 3, 4, 5]]
    assert fit(array, (1, 8)).tolist() == [[0, 1, 2, 3, 4, 5, 6, 0]]


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_fit_and_back_puts_every_kept_voxel_where_it_was(shape, other):
    array = np.arange(1, np.prod(shape) + 1).reshape(shape)
    back = fit(fit(array, other), shape)
    assert back.shape == shape
    kept = back > 0
    np.testing.assert_array_equal(back[kept], array[kept])
    assert kept.sum() == np.prod([min(a, b) for a, b in zip(shape, other, strict=True)])


def test_default_grid_takes_atlas_volumes_whole_in_depth():
    atlas = np.zeros((1, 189, 197, 233), bool)
    atlas[0, 0, 98, 116] = atlas[0, 188, 98, 116] = True
    placed = Grid((1, 189, 192, 192)).place(atlas)
    assert placed.shape == (1, 189, 192, 192) and placed.sum() == 2


def test_resized_mask_stays_binary_and_returns_to_its_place():
    grid = Grid((1, 4, 20, 20), (40, 30))
    mask = np.zeros((4, 20, 20), bool)
    mask[1:3, 5:15, 5:15] = True
    placed = grid.place(mask, nearest=True)
    assert placed.shape == grid.shape == (4, 40, 30) and placed.dtype == bool
    back = grid.restore(placed.astype(np.float32), mask.shape) > 0.5
    assert (back & mask).sum() / (back | mask).sum() > 0.95


def test_cached_scan_equals_the_prepared_one_and_follows_a_changed_file(tmp_path):
    scan, truth = ball()
    case = Case("1", None, tmp_path / "sub-1_T1w.npy", tmp_path / "sub-1_mask.npy")
    write_volume(case.scan, scan[None])
    write_volume(case.mask, truth[None].astype(np.uint8))
    grid = Grid((1, 24, 32, 32))
    prepared, cached = prepare_scan(case, grid), cached_scan(case, grid, tmp_path / "cache")
    for part in ("scan", "head", "mask"):
        np.testing.assert_array_equal(getattr(cached, part), getattr(prepared, part))
    assert isinstance(cached.scan, np.memmap) and cached.own_shape == (24, 30, 26)
    write_volume(case.mask, np.zeros_like(truth[None], np.uint8))
    assert not cached_scan(case, grid, tmp_path / "cache").mask.any()
