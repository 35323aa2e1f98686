"""Inference of stage 2: where windows lie, and that what they say comes back to its place."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from scipy.spatial.transform import Rotation

from data.files.space import Space, cut
from data.scans.prepared import PreparedScan
from models.pipeline import Prediction
from models.segmentation.windows import average_windows, lay_windows, split_by_depth
from utils.regions.region import Region, expand_region, grow_region, region_mask, region_of, whole_volume
from utils.scores.masks import Decision

ROI = (16, 16, 16)


def everywhere(shape):
    return np.ones(shape, bool)


def run(predict, scan, regions, inside, roi_size, overlap, outside=(0.0,), batch_size=3):
    """`average_windows` over regions of a scan (C, D, H, W), with a function of tensors."""

    def said(windows):
        return predict(torch.from_numpy(windows)).numpy()

    starts = lay_windows(regions, inside, roi_size, overlap)
    return average_windows(said, scan, starts, inside, roi_size, outside, batch_size)


# --- what stage 1 saw ---------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from((0.5, 1.0, 2.0, 5.0)), min_size=3, max_size=3),
    st.lists(st.integers(8, 30), min_size=3, max_size=3),
    st.lists(st.floats(-40, 40), min_size=3, max_size=3),
)
def test_no_box_falls_through_the_voxels_of_the_scan(own_mm, corner, degrees):
    """A lesion that stage 1 saw a voxel of is one on the scan's own grid, however thick and oblique its slices."""
    space = Space((40, 40, 40), np.eye(4))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * own_mm
    h, w, d = (int(60 / side) for side in own_mm)
    turned[:3, 3] = 20 - turned[:3, :3] @ (np.array([h, w, d]) - 1) / 2
    scan = PreparedScan(
        "a", "1", np.zeros((1, 40, 40, 40)), everywhere((40, 40, 40)), None, space, Space((d, h, w), turned), True
    )
    z, y, x = corner
    region = Region(0, 40, 0, 0, 40, 40, detected=(Region(z, z + 1, x, y, x + 1, y + 1),))
    lesion = np.stack([np.zeros((40, 40, 40)), np.ones((40, 40, 40))])
    assert Prediction(scan, [region], lesion, Decision()).lesions.any()


# --- where windows lie ---------------------------------------------------------------------------------


def test_regions_of_the_windows_size_are_windows_where_none_overlap():
    regions = [Region(0, 16, 0, 0, 16, 16), Region(20, 36, 30, 20, 46, 36)]
    assert lay_windows(regions, everywhere((40, 40, 50)), ROI, 0) == [(0, 0, 0), (20, 20, 30)]


def test_windows_reach_beyond_a_region_by_their_overlap():
    """By 4 voxels, where the volume does not end before."""
    regions = [Region(0, 16, 0, 0, 16, 16), Region(20, 36, 30, 20, 46, 36)]
    first, second = itertools.product((0, 4), repeat=3), itertools.product((16, 24), (16, 24), (26, 34))
    assert lay_windows(regions, everywhere((40, 40, 50)), ROI, 0.25) == [*first, *second]


def test_windows_of_a_large_region_overlap_and_end_behind_it():
    starts = lay_windows([Region(0, 16, 0, 0, 40, 16)], everywhere((16, 16, 50)), ROI, 0.25)
    assert starts == [(0, 0, 0), (0, 0, 12), (0, 0, 24), (0, 0, 28)]


def test_what_regions_share_is_seen_once():
    large, within, beyond = Region(0, 16, 0, 0, 40, 16), Region(0, 16, 4, 0, 20, 16), Region(0, 16, 30, 0, 56, 16)
    shape = (16, 16, 60)
    alone = lay_windows([large], everywhere(shape), ROI, 0.25)
    assert lay_windows([large, large, within], everywhere(shape), ROI, 0.25) == alone
    # Of 26 columns 16 are left, and 4 on either side.
    assert lay_windows([beyond, large], everywhere(shape), ROI, 0.25) == [*alone, (0, 0, 36), (0, 0, 44)]


def test_windows_without_brain_are_left_out_and_the_others_keep_to_it():
    brain = np.zeros((16, 16, 100), bool)
    brain[:, :, 30:36] = brain[:, :, 80:90] = True
    assert lay_windows([Region(0, 16, 0, 0, 20, 16)], brain, ROI, 0.25) == []
    # From the first voxel of the brain to its last, without those windows in between that see none.
    starts = lay_windows([whole_volume(brain.shape)], brain, ROI, 0.0)
    assert starts == [(0, 0, 30), (0, 0, 74)]


def test_region_smaller_than_a_window_is_seen_with_what_is_around_it():
    assert lay_windows([Region(10, 14, 10, 10, 14, 14)], everywhere((30, 30, 30)), ROI, 0.25) == [(4, 4, 4)]


def test_subvolumes_cut_deep_regions_at_their_borders():
    regions = [Region(3, 45, 0, 0, 16, 16), Region(20, 40, 0, 0, 8, 8)]
    cut_depths = [(r.region_start, r.region_end) for r in split_by_depth(regions, 20)]
    assert cut_depths == [(3, 20), (20, 40), (40, 45), (20, 40)]
    assert split_by_depth(regions, None) == split_by_depth(regions, 189) == regions


# --- what they say -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("shape", [(16, 24, 37), (20, 16, 16), (33, 17, 25)])
def test_one_region_gives_what_monais_sliding_window_gives_over_it_and_its_margin(shape, overlap):
    torch.manual_seed(0)
    # What it says of a voxel depends on where the window lies.
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.InstanceNorm3d(3), torch.nn.Softmax(1))
    scan = np.random.default_rng(0).random((1, 40, 40, 40), np.float32)
    region = region_of(tuple(slice(2, 2 + size) for size in shape))
    around = grow_region(region, [round(16 * overlap)] * 3, scan.shape[1:])
    inside = region_mask([region], scan.shape[1:])
    with torch.no_grad():
        found = run(net, scan, [region], inside, ROI, overlap, (1.0, 0.0, 0.0))
        image = torch.from_numpy(scan[(slice(None), *around.slices)])[None]
        expected = np.zeros_like(found)
        expected[(slice(None), *around.slices)] = sliding_window_inference(image, ROI, 1, net, overlap, mode="gaussian")
    np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=1e-5)
    assert (found[0][~inside] == 1).all() and (found[1:, ~inside] == 0).all()


@st.composite
def scenes(draw):
    """A volume of any size, several regions in it, some grown to the window, and voxels of interest."""
    shape = draw(st.tuples(*[st.integers(1, 24)] * 3))
    roi_size = draw(st.tuples(*[st.integers(1, 13)] * 3))
    regions = []
    for _ in range(draw(st.integers(0, 4))):
        ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
        region = region_of(tuple(slice(low, max(high, low + 1)) for low, high in ends))
        regions.append(expand_region(region, roi_size, shape) if draw(st.booleans()) else region)
    brain = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < draw(st.sampled_from([0.01, 0.3, 1]))
    return shape, roi_size, regions, brain


@given(scenes(), st.floats(0, 0.9), st.integers(1, 5), st.none() | st.integers(1, 24))
def test_network_that_returns_its_input_gives_the_scan_back_inside_the_regions(scene, overlap, batch_size, depth):
    shape, roi_size, regions, brain = scene
    scan = np.random.default_rng(0).random((2, *shape), np.float32)
    inside = region_mask(regions, shape) & brain
    pieces = split_by_depth(regions, depth)
    found = run(lambda windows: windows, scan, pieces, inside, roi_size, overlap, (1.0, 0.0), batch_size)
    np.testing.assert_allclose(found[:, inside], scan[:, inside], atol=3e-6)
    assert (found[0][~inside] == 1).all() and (found[1][~inside] == 0).all()


@given(scenes(), st.floats(0.05, 0.9))
def test_border_of_a_region_is_not_the_border_of_what_is_seen(scene, overlap):
    """Each voxel of a region is seen with what lies within the overlap about it, where the volume goes on there."""
    shape, roi_size, regions, brain = scene
    inside = region_mask(regions, shape) & brain
    starts = lay_windows(regions, inside, roi_size, overlap)
    for axis, (size, roi) in enumerate(zip(shape, roi_size, strict=True)):
        for place in np.argwhere(inside)[:: max(inside.sum() // 5, 1)]:
            around = [s for s in starts if all(f <= v < f + r for f, v, r in zip(s, place, roi_size, strict=True))]
            margin = min(round(overlap * roi), roi - 1)
            assert min(s[axis] for s in around) <= max(place[axis] - margin, 0)
            assert max(s[axis] + roi for s in around) >= min(place[axis] + 1 + margin, size)


@given(scenes(), st.floats(0, 0.9))
def test_windows_stay_in_the_volume_and_none_is_laid_twice_or_for_nothing(scene, overlap):
    shape, roi_size, regions, brain = scene
    inside = region_mask(regions, shape) & brain
    starts = lay_windows(regions, inside, roi_size, overlap)
    assert len(starts) == len(set(starts))
    for start in starts:
        assert all(0 <= s <= max(n - r, 0) for s, n, r in zip(start, shape, roi_size, strict=True))
        assert cut(inside, start, roi_size).any()


def test_overlapping_windows_are_averaged_with_more_weight_in_their_middle():
    values = iter([0.0, 1.0])

    def constant(windows):
        return torch.stack([torch.full((1, *ROI), next(values)) for _ in windows])

    scan = np.zeros((1, 16, 16, 24), np.float32)
    mean = run(constant, scan, [whole_volume((16, 16, 24))], everywhere((16, 16, 24)), ROI, 0.5, batch_size=2)
    line = mean[0, 8, 8]
    assert (line[:8] == 0).all() and (line[16:] == 1).all()
    np.testing.assert_allclose(line[8:16] + line[15:7:-1], 1, atol=1e-6)
    assert (np.diff(line[8:16]) > 0).all()
