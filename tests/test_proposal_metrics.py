"""Scores of stage 1: what regions cover, how precise boxes are, and both by lesion size."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from tests.drawn import SHAPE, mask_of
from utils.regions.region import Region, region_mask
from utils.scores.metrics import SIZE_BINS
from utils.scores.proposals import (
    ProposalCounts,
    SliceProposals,
    box_scores,
    count_proposals,
    count_slice,
    counts_by_scan,
    lesions_covered,
    proposal_estimates,
    proposal_scores,
    proposals_by_size,
    with_shares,
)

masks = arrays(bool, SHAPE)


# --- regions -------------------------------------------------------------------------------------------


def test_a_lesion_is_covered_from_half_of_its_voxels_on():
    target = mask_of((0, 0, slice(0, 4)), (2, 2, slice(0, 3)))
    regions = region_mask([Region(0, 1, 0, 0, 2, 1), Region(2, 3, 0, 2, 1, 3)], SHAPE)
    found = count_proposals(regions, target, np.ones(SHAPE, bool))
    assert found == ProposalCounts(7, 3, 2, 1, region_voxels=3, brain_voxels=60)
    assert proposal_scores(found) == {
        "lesion_coverage": pytest.approx(3 / 7),
        "lesion_recall": 0.5,
        "proposed_fraction": 0.05,
    }


def test_counts_of_volumes_add_up():
    assert ProposalCounts(1, 2, 3, 4, 5, 6) + ProposalCounts(10, 20, 30, 40, 50, 60) == ProposalCounts(
        11, 22, 33, 44, 55, 66
    )
    assert ProposalCounts() + ProposalCounts(1, 1, 1, 1, 1, 1) == ProposalCounts(1, 1, 1, 1, 1, 1)


def test_coverage_is_undefined_without_lesion_and_fraction_without_brain():
    assert all(math.isnan(score) for score in proposal_scores(ProposalCounts()).values())
    healthy = proposal_scores(count_proposals(mask_of((0, 0, 0)), mask_of(), np.ones(SHAPE, bool)))
    assert math.isnan(healthy["lesion_coverage"]) and math.isnan(healthy["lesion_recall"])
    assert healthy["proposed_fraction"] == pytest.approx(1 / 60)


@given(masks, masks)
def test_regions_everywhere_cover_everything_and_nowhere_nothing(target, head):
    everywhere = count_proposals(np.ones(SHAPE, bool), target, head)
    assert everywhere.covered_voxels == everywhere.lesion_voxels == target.sum()
    assert everywhere.covered_lesions == everywhere.lesions
    nowhere = count_proposals(mask_of(), target, head)
    assert (nowhere.covered_voxels, nowhere.covered_lesions, nowhere.region_voxels) == (0, 0, 0)


# --- boxes ---------------------------------------------------------------------------------------------


def target_of(*boxes):
    boxes = torch.tensor(np.array(boxes, np.float32)).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}


def detected(*boxes, scores=()):
    return {**target_of(*boxes), "scores": torch.tensor(scores, dtype=torch.float32)}


LESION = (10, 10, 20, 20)


def all_kept(predictions, targets):
    return box_scores(predictions, targets, [found["boxes"].numpy() for found in predictions])


def test_perfect_boxes_score_1():
    assert all_kept([detected(LESION, scores=[0.9])], [target_of(LESION)]) == {"map": 1, "map_50": 1, "iou": 1}


def test_average_precision_counts_the_thresholds_that_a_box_passes():
    # IoU 0.62 passes 0.50, 0.55 and 0.60 of ten thresholds.
    scores = all_kept([detected((10, 10, 20, 16.2), scores=[0.9])], [target_of(LESION)])
    assert scores == {"map": pytest.approx(0.3), "map_50": 1, "iou": pytest.approx(0.62)}


def test_a_surer_false_alarm_in_a_healthy_slice_halves_the_precision():
    predictions = [detected(LESION, scores=[0.8]), detected((50, 50, 60, 60), scores=[0.9])]
    scores = all_kept(predictions, [target_of(LESION), target_of()])
    assert scores == {"map": pytest.approx(0.5), "map_50": pytest.approx(0.5), "iou": 1}


def test_iou_compares_the_boxes_that_enclose_all_boxes_of_a_slice():
    target = target_of((0, 0, 2, 2), (8, 8, 10, 10))  # enclosed by a box of 100
    prediction = detected((0, 0, 1, 1), (4, 4, 5, 5), scores=[0.9, 0.8])  # enclosed by a box of 25
    assert all_kept([prediction], [target])["iou"] == pytest.approx(0.25)


def test_iou_is_of_the_kept_boxes_alone():
    prediction = detected(LESION, (50, 50, 60, 60), scores=[0.9, 0.1])
    assert box_scores([prediction], [target_of(LESION)], [np.array([LESION], float)])["iou"] == 1
    assert all_kept([prediction], [target_of(LESION)])["iou"] == pytest.approx(100 / 2500)


def test_a_missed_slice_counts_as_iou_0():
    predictions = [detected(LESION, scores=[0.9]), detected()]
    assert all_kept(predictions, [target_of(LESION), target_of(LESION)])["iou"] == 0.5


@pytest.mark.parametrize("predictions", [[], [detected()], [detected(LESION, scores=[0.9])]])
def test_without_any_lesion_box_scores_are_undefined(predictions):
    scores = all_kept(predictions, [target_of()] * len(predictions))
    assert list(scores) == ["map", "map_50", "iou"]
    assert all(math.isnan(value) for value in scores.values())


# --- by lesion size ------------------------------------------------------------------------------------


def test_lesions_are_listed_with_their_volume_and_how_much_is_covered():
    target = mask_of((0, 0, slice(0, 4)), (2, 2, slice(0, 3)))
    regions = region_mask([Region(0, 1, 0, 0, 2, 1), Region(2, 3, 0, 2, 5, 3)], SHAPE)
    lesions = lesions_covered(regions, target, (10.0, 10.0, 5.0))
    assert lesions.voxels.tolist() == [4, 3] and lesions.covered.tolist() == [0.5, 1]
    assert lesions.volume_cm3.tolist() == pytest.approx([2, 1.5])  # half a cm3 a voxel
    assert lesions_covered(regions, target, None).volume_cm3.isna().all()


# --- over scans ----------------------------------------------------------------------------------------


def two_scans():
    """Slices of two scans of 10 x 10 voxels of brain: one lesion voxel, in the first slice of the first scan."""
    head, target = np.ones((2, 10, 10), bool), np.zeros((2, 10, 10), bool)
    target[0, 2, 2] = True  # 1 % of the slice: Small
    regions = region_mask([Region(0, 1, 0, 0, 5, 4)], head.shape)
    slices = []
    for scan, mask in (("a", target), ("b", np.zeros_like(target))):
        for z in range(2):
            size, counts = count_slice(regions, mask, head, z)
            boxes = np.array([[2.0, 2, 3, 3]]) if mask[z].any() else np.zeros((0, 4))
            found = detected(*boxes, scores=[0.9] * len(boxes))
            slices.append(SliceProposals(scan, size, found, target_of(*boxes), boxes, counts))
    return slices


def test_slices_are_scored_by_the_size_of_their_lesion():
    bins = proposals_by_size(two_scans(), seed=0)
    assert list(bins) == list(SIZE_BINS) and [n for n, _ in bins.values()] == [3, 1, 0, 0]
    small, healthy = (bins[size][1] for size in ("Small", "No Lesion"))
    assert [small[s].mean for s in ("map_50", "iou", "lesion_coverage", "lesion_recall")] == [1, 1, 1, 1]
    # 20 voxels are proposed in the first slice of each scan, of which one has the lesion.
    assert small["proposed_fraction"].mean == 0.2 and healthy["proposed_fraction"].mean == pytest.approx(20 / 300)
    assert all(math.isnan(found.mean) for found in bins["Large"][1].values())


def test_scans_and_not_slices_are_drawn_for_an_interval():
    healthy = proposals_by_size(two_scans(), seed=0)["No Lesion"][1]["proposed_fraction"]
    # Two scans: one of 100 voxels without a proposal, one of 200 with 20.
    assert healthy.scans == 2 and (healthy.low, healthy.high) == (0, 0.1)


def test_rows_of_scans_hold_what_their_scores_are_shares_of():
    slices = two_scans()
    counts = [ProposalCounts(1, 1, 1, 1, 20, 200), ProposalCounts(0, 0, 0, 0, 20, 200)]
    table = counts_by_scan(["b", "a"], counts, slices)
    assert table.index.tolist() == ["b", "a"] and table.lesion_slices.tolist() == [0, 1]
    rows = with_shares(table)
    assert rows.loc["b", ["iou", "lesion_coverage", "lesion_recall"]].tolist() == pytest.approx(
        [np.nan, 1, 1], nan_ok=True
    )
    assert rows.iou["a"] == 1 and math.isnan(rows.lesion_coverage["a"]) and rows.proposed_fraction.tolist() == [0.1] * 2


def test_average_precision_has_no_interval():
    slices = two_scans()
    found = proposal_estimates(counts_by_scan([s.scan for s in slices], [s.counts for s in slices], slices), slices, 0)
    assert list(found) == ["map", "map_50", "iou", "lesion_coverage", "lesion_recall", "proposed_fraction"]
    assert found["map"].mean == 1 and math.isnan(found["map"].low) and found["map"].scans == 2
    assert found["iou"].scans == 1 and found["proposed_fraction"].scans == 2
