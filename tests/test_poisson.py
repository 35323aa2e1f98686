"""The gradient-domain blend: against a dense solution, against OpenCV, and what a user may rely on."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from augmentation.poisson import blend, soft_rim


def dense_blend(recipient, donor, region):
    """The same equations voxel by voxel with a dense solver (Pérez et al., equations 7 to 11)."""
    places = [tuple(p) for p in np.argwhere(region)]
    number = {place: i for i, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for place, i in number.items():
        for axis in range(region.ndim):
            for step in (-1, 1):
                other = tuple(c + step * (a == axis) for a, c in enumerate(place))
                if not all(0 <= c < n for c, n in zip(other, region.shape, strict=True)):
                    continue
                right[i] += donor[place] - donor[other]
                matrix[i, i] += 1
                if other in number:
                    matrix[i, number[other]] -= 1
                else:
                    right[i] += recipient[other]
    result = recipient.copy()
    result[region] = np.linalg.solve(matrix, right)
    return result


def example(shape, seed):
    rng = np.random.default_rng(seed)
    region = ndimage.gaussian_filter(rng.random(shape), 1.5) > 0.5
    region[(0,) * len(shape)] = False
    return rng.random(shape), rng.random(shape), region


@pytest.mark.parametrize("shape", [(17, 23), (9, 8, 7)])
def test_blend_is_the_dense_solution(shape):
    for seed in range(3):
        recipient, donor, region = example(shape, seed)
        np.testing.assert_allclose(
            blend(recipient, donor, region), dense_blend(recipient, donor, region), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("seed", range(3))
def test_blend_is_opencvs_when_it_solves_opencvs_problem(seed):
    rng = np.random.default_rng(seed)
    images = [ndimage.gaussian_filter(rng.random((80, 90)), sigma) for sigma in (4, 3)]
    recipient, donor = (((i - i.min()) / np.ptp(i) * 120 + 60).round().astype(np.uint8) for i in images)
    y, x = np.mgrid[:80, :90]
    mask = (y - 40) ** 2 / 18**2 + (x - 44) ** 2 / 24**2 < 1
    top, bottom, left, right = (
        np.flatnonzero(mask.any(1))[[0, -1]].tolist() + np.flatnonzero(mask.any(0))[[0, -1]].tolist()
    )
    centre = ((left + right + 1) // 2, (top + bottom + 1) // 2)
    rgb = [np.stack([image] * 3, -1) for image in (donor, recipient)]
    theirs = cv2.seamlessClone(*rgb, mask.astype(np.uint8) * 255, centre, cv2.NORMAL_CLONE)[..., 0]
    box = np.zeros_like(mask)
    box[top + 1 : bottom, left + 1 : right] = True
    share = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=3).astype(float)
    ours = blend(recipient.astype(np.float32), donor.astype(np.float32), box, share=share)
    difference = np.abs(ours.clip(0, 255) - theirs)[box]
    assert difference.mean() < 2 and np.abs(ours - recipient)[share > 0].mean() > 8


def test_outside_the_region_nothing_changes_and_the_dtype_stays():
    recipient, donor, region = example((20, 20), 0)
    recipient = recipient.astype(np.float32) * 1e3 + np.float32(0.123)
    result = blend(recipient, donor, region)
    assert result.dtype == np.float32 and result is not recipient
    np.testing.assert_array_equal(result[~region].view(np.uint32), recipient[~region].view(np.uint32))
    assert (result[region] != recipient[region]).all()


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.float64, (6, 7), elements=st.floats(-10, 10)),
    arrays(bool, (6, 7)),
    st.floats(-1e3, 1e3),
)
def test_a_donor_that_differs_by_an_offset_changes_nothing(recipient, region, offset):
    region[0, 0] = False
    np.testing.assert_allclose(blend(recipient, recipient + offset, region), recipient, atol=1e-4)


def test_a_constant_donor_leaves_a_membrane():
    """Without gradients the region is harmonic: on a line, a straight line between its ends."""
    recipient = np.array([[2.0, 9, 9, 9, 6]])
    region = np.array([[False, True, True, True, False]])
    np.testing.assert_allclose(blend(recipient, np.zeros((1, 5)), region), [[2, 3, 4, 5, 6]])


def test_an_empty_region_gives_the_recipient_and_a_full_one_is_refused():
    recipient, donor, region = example((5, 5), 0)
    np.testing.assert_array_equal(blend(recipient, donor, np.zeros_like(region)), recipient)
    with pytest.raises(ValueError, match="nothing of the recipient"):
        blend(recipient, donor, np.ones_like(region))
    with pytest.raises(ValueError, match="shapes differ"):
        blend(recipient, donor[:3], region)


def test_a_region_at_the_edge_of_the_image_is_filled():
    recipient, donor = np.full((4, 4), 3.0), np.arange(16.0).reshape(4, 4)
    region = np.zeros((4, 4), bool)
    region[:, 0] = True
    np.testing.assert_allclose(blend(recipient, donor, region), dense_blend(recipient, donor, region))


def test_soft_rim_turns_tissue_into_lesion_over_its_width():
    region = np.pad(np.ones((5, 5), bool), 1)
    lesion, tissue = np.zeros((7, 7)), np.ones((7, 7))
    np.testing.assert_allclose(soft_rim(lesion, tissue, region, 0)[3], [1, 0, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(soft_rim(lesion, tissue, region, 1)[3], [1, 0.5, 0, 0, 0, 0.5, 1])
    # A third of the way the smooth step has done 7 of 27 parts, two thirds of the way 20.
    np.testing.assert_allclose(soft_rim(lesion, tissue, region, 2)[3], [1, 20 / 27, 7 / 27, 0, 7 / 27, 20 / 27, 1])
    np.testing.assert_allclose(soft_rim(lesion, tissue, region, 9)[3, 3], 0)


def test_soft_rim_leaves_a_thin_lesion_its_contrast():
    region = np.array([[False, True, True, True, False]])
    np.testing.assert_allclose(soft_rim(np.zeros((1, 5)), np.ones((1, 5)), region, 3), [[1, 0, 0, 0, 1]])


def test_soft_rim_fades_a_lesion_that_is_too_thin_for_its_contrast():
    thin = np.array([[False, True, True, True, False]])
    np.testing.assert_allclose(soft_rim(np.zeros((1, 5)), np.ones((1, 5)), thin, 3, 0.25), [[1, 0.75, 0.75, 0.75, 1]])
    thick = np.pad(np.ones((9, 9), bool), 1)  # its outermost voxels are 5 of 32 parts lesion
    images = np.zeros((11, 11)), np.full((11, 11), 32.0)
    np.testing.assert_allclose(soft_rim(*images, thick, 3, 5.0), soft_rim(*images, thick, 3))
    np.testing.assert_allclose(32 - soft_rim(*images, thick, 3, 4.0), 0.8 * (32 - soft_rim(*images, thick, 3)))
    np.testing.assert_array_equal(soft_rim(*[np.ones((1, 5))] * 2, thin, 3, 0.0), np.ones((1, 5)))


@settings(max_examples=40, deadline=None)
@given(arrays(bool, (6, 7)), st.floats(0, 5), st.floats(0, 10, allow_subnormal=False))
def test_the_step_into_the_region_is_never_larger_than_asked_for(region, rim, max_step):
    region[2, 3], region[0, 0] = True, False
    lesion, tissue = np.full((6, 7), -7.0), np.zeros((6, 7))
    outermost = region & ~ndimage.binary_erosion(region)
    assert np.abs(soft_rim(lesion, tissue, region, rim, max_step)[outermost]).mean() <= max_step * (1 + 1e-9)
