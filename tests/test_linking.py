"""Boxes linked over slices: what is one lesion, how sure it is, and the regions it leads to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.regions.region import Region, region_mask
from utils.regions.rules import ProposalBoxes, link_boxes, linked_regions, regions_of, select_boxes

SHAPE, ROI = (40, 50, 60), (8, 8, 8)
BOX = (10, 10, 16, 16)


def link(*found):
    """Candidates and evidence of (slice, box, score) triples."""
    slices, boxes, scores = zip(*found, strict=True)
    return link_boxes(np.array(slices), np.array(boxes, float), np.array(scores))


def linked(slices, boxes, candidates):
    """The regions of boxes, all of the same evidence."""
    return linked_regions(ProposalBoxes(slices, boxes, candidates, np.full(len(slices), 0.9)), SHAPE, ROI)


def test_boxes_that_overlap_over_slices_are_one_candidate():
    candidate, _ = link((4, BOX, 0.5), (5, (11, 10, 17, 16), 0.5), (5, (30, 30, 36, 36), 0.5))
    assert candidate[0] == candidate[1] != candidate[2]


def test_a_box_seen_in_several_slices_counts_more_than_a_lone_one():
    _, evidence = link((4, BOX, 0.5), (5, BOX, 0.5), (20, (30, 30, 36, 36), 0.6))
    assert evidence.tolist() == pytest.approx([0.75, 0.75, 0.6])  # 1 - 0.5 * 0.5


def test_two_boxes_of_one_slice_do_not_vouch_for_each_other():
    _, evidence = link((4, BOX, 0.5), (4, (11, 10, 17, 16), 0.4))
    assert evidence.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("gap", "one"), [(1, True), (2, True), (3, False)])
def test_gaps_of_up_to_two_slices_are_bridged(gap, one):
    candidate, _ = link((4, BOX, 0.5), (5 + gap, BOX, 0.5))
    assert (candidate[0] == candidate[1]) == one


def test_a_volume_without_boxes_has_no_regions():
    candidate, evidence = link_boxes(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
    assert len(candidate) == len(evidence) == 0
    assert linked(np.zeros(0, int), np.zeros((0, 4)), candidate) == []


def test_region_goes_around_all_boxes_of_a_candidate_and_grows_to_the_roi():
    slices, boxes = np.array([4, 6]), np.array([(10, 12, 16, 18), (12, 12, 22, 16.5)])
    (region,) = linked(slices, boxes, np.array([0, 0]))
    # D 4 to 7 grows to 8 about 5.5, W 10 to 22 is larger than 8 already, H 12 to 18 grows about 15.
    assert region == Region(1, 9, 10, 11, 22, 19) and region.detected == (Region(4, 7, 10, 12, 22, 18),)


def test_near_candidates_share_a_region_and_far_ones_do_not():
    slices = np.array([4, 4, 30])
    boxes = np.array([(10, 10, 12, 12), (14, 14, 16, 16), (40, 40, 42, 42)], float)
    regions = linked(slices, boxes, np.array([0, 1, 2]))
    assert len(regions) == 2 and all(region.shape == ROI for region in regions)
    near = Region(4, 5, 10, 10, 12, 12), Region(4, 5, 14, 14, 16, 16)
    assert [sorted(region.detected, key=lambda box: box.xmin) for region in regions] == [
        [*near],
        [Region(30, 31, 40, 40, 42, 42)],
    ]


candidates = st.lists(
    st.tuples(st.integers(0, 39), st.integers(0, 54), st.integers(0, 44), st.integers(1, 20), st.integers(1, 20)),
    min_size=1,
    max_size=8,
)


def arrays_of(found):
    """Slices and boxes, cut to the volume, of candidates of a box each."""
    boxes = [(x, y, min(x + w, SHAPE[2]), min(y + h, SHAPE[1])) for _, x, y, w, h in found]
    return np.array([z for z, *_ in found]), np.array(boxes, float)


@given(candidates)
def test_regions_hold_every_box_and_are_no_larger_than_apart(found):
    slices, boxes = arrays_of(found)
    together = linked(slices, boxes, np.arange(len(found)))
    mask = region_mask(together, SHAPE)
    for z, (x0, y0, x1, y1) in zip(slices, boxes.astype(int), strict=True):
        assert mask[z, y0:y1, x0:x1].all()
    apart = [linked(slices[[i]], boxes[[i]], np.array([0]))[0] for i in range(len(found))]
    # Joining is decided pair by pair, so with several neighbours the union may grow, but never by more than was joined.
    assert len(together) <= len(apart)
    if len(apart) <= 2:
        assert mask.sum() <= region_mask(apart, SHAPE).sum()
    assert all(min(r.shape) >= 8 for r in together)


@given(candidates, st.integers(1, 15))
def test_candidates_do_not_depend_on_the_order_of_the_boxes(found, seed):
    slices = np.array([z for z, *_ in found])
    boxes = np.array([(x, y, x + w, y + h) for _, x, y, w, h in found], float)
    scores = np.linspace(0.1, 0.9, len(found))
    order = np.random.default_rng(seed).permutation(len(found))
    _, evidence = link_boxes(slices, boxes, scores)
    _, shuffled = link_boxes(slices[order], boxes[order], scores[order])
    np.testing.assert_allclose(shuffled, evidence[order])


@given(candidates, st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_lower_threshold_keeps_all_that_a_higher_one_does(found, thresholds):
    slices, boxes = arrays_of(found)
    scores = np.linspace(0.1, 0.9, len(found))
    detections = {z: {"boxes": boxes[slices == z], "scores": scores[slices == z]} for z in slices}
    low, high = (select_boxes([detections], threshold, "linked") for threshold in sorted(thresholds))
    assert {*map(tuple, high.boxes)} <= {*map(tuple, low.boxes)}
    for kept, threshold in zip((low, high), sorted(thresholds), strict=True):
        assert sorted(map(tuple, kept.boxes)) == sorted(map(tuple, boxes[scores >= threshold]))


def test_weak_boxes_make_no_bridge_between_surer_ones():
    """Of an uncertain network boxes overlap all over the brain: linked, they would be one candidate of half of it."""
    weak = [(x, 10, x + 6, 16) for x in range(10, 34, 3)]
    found = {4: {"boxes": [*weak, BOX, (34, 10, 40, 16)], "scores": [0.1] * len(weak) + [0.6, 0.7]}}
    kept = select_boxes([found], 0.5, "linked")
    assert [*map(tuple, kept.boxes)] == [BOX, (34, 10, 40, 16)] and kept.evidence.tolist() == [0.6, 0.7]


def test_regions_know_the_evidence_of_their_detections():
    box = {"boxes": [(10, 10, 14, 14)], "scores": [0.5]}
    kept = select_boxes([{4: box, 5: box, 30: {"boxes": [(40, 40, 44, 44)], "scores": [0.3]}}], 0.2, "linked")
    one, other = regions_of(kept, np.ones(SHAPE, bool), ROI, "linked")
    assert [each.detected[0].evidence for each in (one, other)] == pytest.approx([0.75, 0.3])
