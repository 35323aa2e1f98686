"""Rules of region proposal: consolidation, grouping, agreement, growth, and the JSON they are kept in."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.regions.region import (
    Region,
    enclosing_box,
    evidence_map,
    expand_region,
    pairwise_iou,
    read_regions,
    region_mask,
    whole_volume,
    write_regions,
)
from utils.regions.rules import agreed_box, group_slices, grouped_regions

NONE = [np.nan] * 4


def head_of(*sizes, side=20):
    """A head whose slices are squares of the given sizes from the corner; 0 is air."""
    head = np.zeros((len(sizes), side, side), bool)
    for z, size in enumerate(sizes):
        head[z, :size, :size] = True
    return head


# --- within a slice ------------------------------------------------------------------------------------


def test_boxes_of_a_slice_become_their_one_enclosing_box():
    boxes = np.array([[5, 6, 8, 9], [1, 7, 6, 12]])
    assert enclosing_box(boxes).tolist() == [1, 6, 8, 12]


def test_slice_without_boxes_has_no_box():
    assert np.isnan(enclosing_box(np.zeros((0, 4)))).all()


# --- groups --------------------------------------------------------------------------------------------


def test_similar_slices_form_one_group_and_a_different_one_starts_the_next():
    # Areas 100, 100, 81 differ by 19 % from the first: more than the 15 % allowed.
    assert group_slices(head_of(10, 10, 9, 9)) == [(0, 2), (2, 4)]


def test_slices_are_compared_with_the_first_of_their_group_not_with_the_one_before():
    # Areas 400, 361 (10 % off), 324 (19 % off 400, yet 10 % off 361): slow drift ends the group all the same.
    assert group_slices(head_of(20, 19, 18)) == [(0, 2), (2, 3)]


def test_equal_area_of_another_shape_starts_a_group():
    head = np.zeros((2, 20, 20), bool)
    head[0, :10, :10] = True
    head[1, 5:15, :10] = True  # IoU 50 / 150
    assert group_slices(head) == [(0, 1), (1, 2)]


def test_last_group_keeps_its_slices():
    assert group_slices(head_of(0, 10, 10, 20, 20, 20)) == [(1, 3), (3, 6)]


def test_slice_of_air_is_in_no_group_and_ends_one():
    assert group_slices(head_of(0, 10, 0, 10, 0)) == [(1, 2), (3, 4)]


def test_volume_of_air_has_no_group():
    assert group_slices(head_of(0, 0)) == []


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_every_slice_with_brain_is_in_exactly_one_group(sizes):
    grouped = [z for start, end in group_slices(head_of(*sizes)) for z in range(start, end)]
    assert grouped == [z for z, size in enumerate(sizes) if size]


# --- agreement -----------------------------------------------------------------------------------------


def test_iou_by_hand():
    iou = pairwise_iou(np.array([[0, 0, 4, 4], [2, 0, 6, 4], [8, 8, 9, 9]], float))
    np.testing.assert_allclose(iou, [[1, 8 / 24, 0], [8 / 24, 1, 0], [0, 0, 1]])


def test_most_frequent_region_stands_for_the_group():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 35, 35]], float)
    assert agreed_box(boxes).tolist() == [0, 0, 10, 10]


def test_without_a_most_frequent_region_the_box_encloses_all():
    boxes = np.array([[0, 0, 4, 4], [10, 10, 14, 14], [30, 2, 31, 3]], float)
    assert agreed_box(boxes).tolist() == [0, 0, 31, 14]


def test_tie_for_the_most_frequent_region_encloses_all():
    pair, other = [[0, 0, 4, 4]] * 2, [[10, 10, 14, 14]] * 2
    assert agreed_box(np.array(pair + other, float)).tolist() == [0, 0, 14, 14]


def test_lone_box_is_the_region_of_its_group():
    assert agreed_box(np.array([[3, 4, 5, 6]], float)).tolist() == [3, 4, 5, 6]


# --- growth --------------------------------------------------------------------------------------------


def test_region_grows_about_its_centre():
    grown = expand_region(Region(10, 12, 20, 30, 24, 34), (6, 8, 10), (50, 60, 70))
    assert grown == Region(8, 14, 17, 28, 27, 36)


def test_region_at_the_border_is_shifted_not_cut():
    grown = expand_region(Region(0, 1, 66, 0, 70, 4), (6, 8, 10), (50, 60, 70))
    assert grown == Region(0, 6, 60, 0, 70, 8)


def test_region_is_smaller_than_the_roi_only_where_the_volume_is():
    assert expand_region(Region(1, 2, 1, 1, 2, 2), (64, 64, 64), (10, 80, 20)) == Region(0, 10, 0, 0, 20, 64)


def test_region_larger_than_the_roi_stays_as_it_is():
    region = Region(0, 40, 0, 0, 50, 30)
    assert expand_region(region, (16, 16, 16), (40, 40, 60)) == region


@st.composite
def regions_in_volumes(draw):
    shape = [draw(st.integers(1, 40)) for _ in range(3)]
    spans = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        spans.append((start, draw(st.integers(start + 1, size))))
    (z0, z1), (y0, y1), (x0, x1) = spans
    return Region(z0, z1, x0, y0, x1, y1), tuple(shape), tuple(draw(st.integers(1, 50)) for _ in range(3))


@given(regions_in_volumes())
def test_grown_region_holds_the_region_lies_inside_and_has_the_roi_size_where_the_volume_allows(case):
    region, shape, roi = case
    grown = expand_region(region, roi, shape)
    for old, new, size, side in zip(region.slices, grown.slices, shape, roi, strict=True):
        assert 0 <= new.start <= old.start and old.stop <= new.stop <= size
        assert new.stop - new.start >= min(side, size)


# --- the whole rule ------------------------------------------------------------------------------------


def test_group_without_boxes_has_no_region():
    head = head_of(10, 10, 20, 20)
    boxes = np.array([NONE, [2, 3, 5, 6], NONE, NONE])
    assert grouped_regions(boxes, head, (1, 1, 1)) == [Region(0, 2, 2, 3, 5, 6)]


def test_fractional_boxes_are_rounded_outwards_and_kept_inside():
    boxes = np.array([[1.2, -0.5, 3.1, 20.4]])
    assert grouped_regions(boxes, head_of(20), (1, 1, 1)) == [Region(0, 1, 1, 0, 4, 20)]


def test_same_region_of_two_groups_is_listed_once():
    head, box = head_of(20, 10), [0, 0, 20, 20]
    assert grouped_regions(np.array([box, box], float), head, (2, 20, 20)) == [Region(0, 2, 0, 0, 20, 20)]


@given(st.data())
def test_regions_contain_the_boxes_of_the_agreed_cluster_and_stay_inside(data):
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    head = head_of(*sizes)
    boxes = np.full((len(sizes), 4), np.nan)
    for z in range(len(sizes)):
        if data.draw(st.booleans()):
            x, y = data.draw(st.floats(0, 18)), data.draw(st.floats(0, 18))
            boxes[z] = x, y, x + data.draw(st.floats(0.5, 20 - x)), y + data.draw(st.floats(0.5, 20 - y))
    regions = grouped_regions(boxes, head, (3, 6, 6))
    covered = region_mask(regions, head.shape)
    for region in regions:
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(region.slices, head.shape, strict=True))
    for start, end in group_slices(head):
        proposed = boxes[start:end][~np.isnan(boxes[start:end, 0])]
        if len(proposed):
            x0, y0, x1, y1 = agreed_box(proposed)
            assert covered[start:end, int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].all()


def test_region_mask_is_the_union():
    mask = region_mask([Region(0, 1, 0, 0, 2, 1), Region(0, 1, 1, 0, 3, 1)], (2, 2, 4))
    assert mask.sum() == 3 and mask[0, 0, :3].all()


def test_whole_volume_indexes_everything():
    assert np.ones((3, 4, 5))[whole_volume((3, 4, 5)).slices].sum() == 60


def test_evidence_lies_where_the_detections_are_and_in_all_of_a_region_without_them():
    detections = Region(1, 2, 2, 0, 3, 1, evidence=0.9), Region(1, 2, 2, 0, 3, 1, evidence=0.2)
    evidence = evidence_map([Region(0, 4, 0, 0, 4, 1, detected=detections), Region(0, 1, 0, 2, 2, 3)], (4, 3, 4))
    assert np.argwhere(evidence).tolist() == [[0, 2, 0], [0, 2, 1], [1, 0, 2]]
    assert evidence[0, 2, 0] == 0.5 and evidence[1, 0, 2] == np.float32(0.9)
    grown = evidence_map([Region(0, 4, 0, 0, 4, 1, detected=(Region(1, 2, 3, 0, 4, 1),))], (4, 3, 4), (1, 0, 2))
    assert np.argwhere(grown).tolist() == [[z, 0, x] for z in (0, 1, 2) for x in (1, 2, 3)]
    assert not evidence_map([], (4, 3, 4)).any() and evidence_map(None, (4, 3, 4)) is None


# --- JSON ----------------------------------------------------------------------------------------------


def test_regions_come_back_as_they_were_written(tmp_path):
    regions = {"sub-1_T1w.npy": [Region(0, 64, 10, 20, 74, 84)], "sub-2_T1w.npy": []}
    write_regions(tmp_path / "regions.json", regions)
    assert read_regions(tmp_path / "regions.json") == regions
    entry = json.loads((tmp_path / "regions.json").read_text())["sub-1_T1w.npy"][0]
    assert entry == {"region_start": 0, "region_end": 64, "xmin": 10, "ymin": 20, "xmax": 74, "ymax": 84}


def test_regions_come_back_with_their_detections(tmp_path):
    detected = (Region(3, 9, 20, 30, 24, 34, evidence=0.25), Region(40, 41, 60, 60, 70, 80))
    write_regions(tmp_path / "regions.json", {"sub-1_T1w.npy": [Region(0, 64, 10, 20, 74, 84, detected)]})
    back = read_regions(tmp_path / "regions.json")["sub-1_T1w.npy"][0].detected
    assert back == detected and [box.evidence for box in back] == [0.25, None]


@pytest.mark.parametrize(
    "content",
    [
        "{not json",
        "[1, 2]",
        '{"a.npy": 3}',
        '{"a.npy": [{"region_start": 0}]}',
        '{"a.npy": [{"region_start": 0.5, "region_end": 2, "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}]}',
        '{"a.npy": [{"region_start": 2, "region_end": 2, "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}]}',
        '{"a": [{"region_start": 0, "region_end": 2, "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "detected": [1]}]}',
        '{"a.npy": [{"region_start": 1, "region_end": 2, "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "evidence": 2}]}',
        '{"a.npy": [{"region_start": -1, "region_end": 2, "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}]}',
    ],
)
def test_malformed_regions_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "regions.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"regions\.json"):
        read_regions(path)
