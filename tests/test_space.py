"""Voxel grids: whole steps are copied, everything else is resampled where it lies."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.processing import resample_from_to

from data.files.space import Space, centred_space, cut, resample

OBLIQUE = nib.affines.from_matvec(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0], (4, -5, 6))


def space(shape, spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0)):
    """A grid of `shape` (D, H, W) along the axes of the scanner; spacing along (D, H, W), origin (H, W, D)."""
    affine = np.diag([*np.roll(spacing_mm, -1), 1.0])
    affine[:3, 3] = origin_mm
    return Space(shape, affine)


def test_window_beyond_the_array_is_filled():
    array = np.arange(1, 5)
    assert cut(array, (-1,), (3,)).tolist() == [0, 1, 2]
    assert cut(array, (2,), (4,), fill=9).tolist() == [3, 4, 9, 9]
    assert cut(array, (7,), (2,)).tolist() == [0, 0]


def test_grid_goes_about_the_centre_and_keeps_inside_a_larger_scan():
    source = space((10, 20, 20))
    placed = centred_space(source, (5, 4, 10), (10, 10, 10), None)
    # H: 4 wants to begin at -0.5 but stays inside; W: 10 - 4.5 = 5.5, rounded to the even voxel; D: as it is.
    np.testing.assert_array_equal(placed.affine[:3, 3], [0, 6, 0])


def test_grid_larger_than_the_scan_holds_all_of_it():
    placed = centred_space(space((10, 10, 10)), (0, 9, 5), (14, 14, 14), None)
    # W 5 - 6.5, rounded; D 0 wants 6.5 voxels before it, of which 4 are left; H 9 wants none after it.
    np.testing.assert_array_equal(placed.affine[:3, 3], [0, -2, -4])


@pytest.mark.parametrize(("own_mm", "other_mm"), [(2, 1), (4, 2), (3, 1), (3, 2), (1, 2)])
def test_mask_keeps_its_volume_on_finer_and_coarser_voxels(own_mm, other_mm):
    """A voxel midway between two goes to either side, or a mask would lose its rim at half the spacing."""
    mask, own = ((np.indices((24,) * 3) - 11.5) ** 2).sum(0) < 6**2, Space((24,) * 3, np.diag([own_mm] * 3 + [1.0]))
    shape = (int(np.ceil(24 * own_mm / other_mm)),) * 3
    there = resample(mask[None], own, centred_space(own, (11.5,) * 3, shape, (other_mm,) * 3))[0]
    assert there.sum() * other_mm**3 == pytest.approx(mask.sum() * own_mm**3, rel=0.05)


@given(
    st.tuples(*[st.integers(3, 9)] * 3),
    st.tuples(*[st.integers(3, 12)] * 3),
    st.tuples(*[st.floats(0, 9)] * 3),
)
def test_mask_on_a_centred_grid_of_the_same_spacing_comes_back_to_the_voxel(shape, other, centre):
    source = Space(shape, OBLIQUE @ np.diag([0.9, 1.1, 3.0, 1.0]))
    mask = np.random.default_rng(0).random(shape) > 0.5
    target = centred_space(source, centre, other, None)
    back = resample(resample(mask[None], source, target), target, source)[0]
    assert not (back & ~mask).any()
    assert back.sum() == resample(mask[None], source, target).sum()
    if all(large >= small for large, small in zip(other, shape, strict=True)):
        np.testing.assert_array_equal(back, mask)


def test_scan_of_the_same_spacing_is_copied_bit_by_bit():
    scan = np.random.default_rng(0).random((1, 5, 6, 7), np.float32)
    source = Space((5, 6, 7), OBLIQUE)
    np.testing.assert_array_equal(resample(scan, source, centred_space(source, (2, 3, 3), (5, 6, 7), None)), scan)


def test_finer_grid_agrees_with_nibabel():
    scan = np.random.default_rng(0).random((1, 8, 9, 10), np.float32)
    source = Space((8, 9, 10), OBLIQUE @ np.diag([2.0, 2.0, 3.0, 1.0]))
    target = centred_space(source, (4, 4, 5), (14, 12, 16), (1.5, 1.0, 1.3))
    image = nib.Nifti1Image(scan[0].transpose(1, 2, 0), source.affine)
    faces = [scan[0].take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    background = float(np.percentile(np.concatenate(faces), 50, method="lower"))
    reference = resample_from_to(image, ((12, 16, 14), target.affine), order=1, cval=background)
    inside = (slice(1, -1),) * 3  # on the faces a rounding error decides whether nibabel is outside
    ours = resample(scan, source, target)[0].transpose(1, 2, 0)
    np.testing.assert_allclose(ours[inside], reference.get_fdata()[inside], atol=1e-5)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.7, 0.7, 0.7)])
def test_outside_of_a_scan_is_its_background_whatever_single_voxels_hold(spacing_mm):
    scan = np.full((2, 9, 9, 9), 5.0, np.float32)
    scan[1] = 7
    scan[:, 3:6, 3:6, 3:6] = 60
    scan[:, 0, 0, 0], scan[:, 4, 4, 4] = -32768, 1e6
    source = space((9, 9, 9))
    placed = resample(scan, source, centred_space(source, (4, 4, 4), (20, 20, 20), spacing_mm))
    assert placed[0, -1, -1, -1] == 5 and placed[1, -1, -1, -1] == 7
    assert np.count_nonzero(placed < 0) < 2 * 27  # about the broken voxel alone


def test_coarser_grid_keeps_the_volume_of_a_ball():
    source = space((40, 40, 40))
    z, y, x = np.ogrid[:40, :40, :40]
    ball = (z - 19.5) ** 2 + (y - 19.5) ** 2 + (x - 19.5) ** 2 < 12**2
    coarse = resample(ball[None], source, centred_space(source, (19.5,) * 3, (20, 20, 20), (2.0, 2.0, 2.0)))[0]
    assert 8 * coarse.sum() == pytest.approx(ball.sum(), rel=0.05)


def test_mask_goes_to_a_finer_grid_and_back_unchanged():
    source = space((6, 7, 8), (2, 2, 2))
    mask = np.zeros((6, 7, 8), bool)
    mask[2:4, 3:5, 1:4] = True
    fine = centred_space(source, (2.5, 3, 3.5), (12, 14, 16), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(resample(resample(mask[None], source, fine), fine, source)[0], mask)


@pytest.mark.parametrize(("shift", "close"), [(0.0, True), (0.005, True), (0.02, False), (1.0, False)])
def test_grids_are_one_up_to_a_hundredth_of_a_voxel(shift, close):
    assert space((4, 5, 6)).is_close(space((4, 5, 6), origin_mm=(shift, 0, 0))) is close
    assert not space((4, 5, 6)).is_close(space((4, 5, 7)))
