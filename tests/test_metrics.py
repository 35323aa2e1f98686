"""Scores of masks, slices, regions and boxes: small cases by hand, properties, and other implementations."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from sklearn import metrics as sk

from tests.drawn import SHAPE, mask_of
from utils.scores.masks import OVERLAP_SCORES, overlap_scores
from utils.scores.metrics import SIZE_BINS, scan_scores, scores_by_size, size_bin, slice_scores

MM = (1.0, 1.0, 1.0)
SURFACE_DICE = ("surface_dice_1mm", "surface_dice_3mm")
masks = arrays(bool, SHAPE)
counts = st.integers(0, 10**10)


def blobs(seed, shape=(24, 30, 36), sigma=2.5, level=1.0):
    """Irregular lesions that also touch the border of the volume."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return noise > level * noise.std()


# --- overlap -------------------------------------------------------------------------------------------


def test_overlap_of_a_case_worked_by_hand():
    scores = overlap_scores(tp=6, fp=2, fn=4, tn=88)
    assert scores["dice"] == scores["f1"] == pytest.approx(12 / 18)
    assert scores["iou"] == pytest.approx(6 / 12)
    assert scores["precision"] == pytest.approx(6 / 8)
    assert scores["recall"] == pytest.approx(6 / 10)
    assert scores["mcc"] == pytest.approx((6 * 88 - 2 * 4) / math.sqrt(8 * 10 * 90 * 92))


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "expected"), [(0, 0, 0, 1.0), (0, 3, 0, 0.0), (0, 0, 3, 0.0)], ids=["nothing", "alarm", "miss"]
)
def test_empty_masks_follow_the_convention(tp, fp, fn, expected):
    assert overlap_scores(tp, fp, fn, 100) == dict.fromkeys(OVERLAP_SCORES, expected)


def test_mcc_is_0_where_everything_is_lesion():
    assert overlap_scores(5, 0, 0, 0)["mcc"] == 0


def test_counts_may_be_arrays():
    together = overlap_scores([6, 0], [2, 0], [4, 0], [88, 9])
    for name, values in together.items():
        assert values.tolist() == [overlap_scores(6, 2, 4, 88)[name], overlap_scores(0, 0, 0, 9)[name]]


@given(counts, counts, counts, counts)
def test_overlap_stays_in_range_for_counts_of_a_whole_cohort(tp, fp, fn, tn):
    scores = overlap_scores(*(np.int64(count) for count in (tp, fp, fn, tn)))
    assert all(0 <= scores[name] <= 1 for name in OVERLAP_SCORES[:-1])
    assert abs(scores["mcc"]) <= 1 + 1e-12
    assert scores["iou"] == pytest.approx(scores["dice"] / (2 - scores["dice"]))


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 10**9))
def test_mcc_does_not_overflow(tp, fp, fn, tn):
    exact = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    found = overlap_scores(*(np.int64(count) for count in (tp, fp, fn, tn)))["mcc"]
    assert found == pytest.approx(exact, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_overlap_agrees_with_scikit_learn(seed):
    prediction, target = blobs(seed), blobs(seed, level=0.5)
    scores, pair = scan_scores(prediction, target, MM), (target.ravel(), prediction.ravel())
    assert scores["dice"] == scores["f1"] == pytest.approx(sk.f1_score(*pair))
    assert scores["iou"] == pytest.approx(sk.jaccard_score(*pair))
    assert scores["precision"] == pytest.approx(sk.precision_score(*pair))
    assert scores["recall"] == pytest.approx(sk.recall_score(*pair))
    assert scores["mcc"] == pytest.approx(sk.matthews_corrcoef(*pair))


# --- scans ---------------------------------------------------------------------------------------------


def test_columns_of_a_scan_come_in_the_order_of_the_table():
    assert list(scan_scores(mask_of((0, 0, 0)), mask_of((0, 0, 0)), MM)) == [
        *("dice", "iou", "precision", "recall", "f1", "mcc"),
        *("hd95", "assd", "lesion_f1", "lesion_count_difference", "volume_difference"),
        *("lesion_f1_atlas", "lesion_precision_atlas", "lesion_recall_atlas", "false_lesions_atlas"),
        *("lesion_f1_isles", "lesion_precision_isles", "lesion_recall_isles", "false_lesions_isles"),
        *("lesion_f1_strict", "lesion_precision_strict", "lesion_recall_strict", "false_lesions_strict"),
        *("lesion_f1_isles26", "lesion_precision_isles26", "lesion_recall_isles26", "false_lesions_isles26"),
        *("pr_auc", "surface_dice_1mm", "surface_dice_3mm"),
    ]


@given(masks.filter(lambda mask: mask.any() and not mask.all()))
@settings(deadline=None, max_examples=30)
def test_perfect_prediction_is_perfect_in_every_score(target):
    scores = scan_scores(target, target, MM)
    assert [scores[name] for name in (*OVERLAP_SCORES, "lesion_f1")] == pytest.approx([1] * 7)
    assert [scores[n] for n in ("hd95", "assd", "lesion_count_difference", "volume_difference")] == [0] * 4


@given(masks, masks)
@settings(deadline=None, max_examples=60)
def test_swapping_the_masks_swaps_precision_and_recall_alone(a, b):
    forth, back = scan_scores(a, b, (2.0, 1.0, 0.5)), scan_scores(b, a, (2.0, 1.0, 0.5))
    assert forth["precision"] == back["recall"]
    for name in ("dice", "iou", "f1", "mcc", "hd95", "assd", "lesion_count_difference", "volume_difference"):
        assert forth[name] == pytest.approx(back[name], nan_ok=True)


@given(masks, masks)
@settings(deadline=None, max_examples=60)
def test_scan_scores_are_plain_finite_numbers_but_for_distances(a, b):
    scores = scan_scores(a, b, MM)
    assert all(type(value) is float for value in scores.values())
    undefined = {name for name, value in scores.items() if math.isnan(value)}
    assert undefined == ({"pr_auc"} if a.any() and b.any() else {"hd95", "assd", "pr_auc"})


def test_masks_may_be_bytes_of_any_value():
    a, b = blobs(0), blobs(1)
    bytes_of = scan_scores(a.astype(np.uint8) * 255, b.astype(np.uint8), MM, a.astype(np.float32))
    assert bytes_of == scan_scores(a, b, MM, a.astype(np.float32))


def test_healthy_scan_left_empty_scores_1_without_distances():
    scores = scan_scores(mask_of(), mask_of(), MM)
    assert [scores[name] for name in (*OVERLAP_SCORES, "lesion_f1", *SURFACE_DICE)] == [1] * 9
    assert math.isnan(scores["hd95"]) and math.isnan(scores["assd"])
    assert scores["lesion_count_difference"] == scores["volume_difference"] == 0


def test_false_alarm_in_a_healthy_scan_scores_0():
    scores = scan_scores(mask_of((1, 1, 1)), mask_of(), MM)
    assert [scores[name] for name in (*OVERLAP_SCORES, "lesion_f1", *SURFACE_DICE)] == [0] * 9


def test_distances_are_in_mm_along_their_own_axis():
    scores = scan_scores(mask_of((2, 0, 0)), mask_of((0, 0, 0)), (3.0, 1.0, 1.0))
    assert scores["hd95"] == scores["assd"] == 6


def test_hd95_leaves_the_farthest_surface_voxels_out():
    line = np.zeros((1, 1, 200), bool)
    line[..., :100] = True
    reaching = line.copy()
    reaching[..., 100:103] = True  # 3 of 103 voxels are 1, 2 and 3 mm away: fewer than one in twenty
    scores = scan_scores(reaching, line, MM)
    assert scores["hd95"] == 0
    assert scores["assd"] == pytest.approx(6 / 203)


def test_volume_difference_is_in_cm3():
    prediction, target = mask_of((0, 0, slice(3))), mask_of((0, 0, 0))
    assert scan_scores(prediction, target, (5.0, 10.0, 10.0))["volume_difference"] == pytest.approx(2 * 500 / 1000)


def test_without_spacing_there_is_nothing_in_mm():
    scores = scan_scores(mask_of((0, 0, 0)), mask_of((1, 1, 1)), None)
    undefined = {"hd95", "assd", "volume_difference", "pr_auc", *SURFACE_DICE}
    assert {n for n, value in scores.items() if math.isnan(value)} == undefined
    assert all(math.isnan(scan_scores(mask_of(), mask_of(), None)[name]) for name in SURFACE_DICE)


def test_surface_dice_is_the_share_of_both_surfaces_within_its_distance():
    line = np.zeros((1, 1, 200), bool)
    line[..., :100] = True
    reaching = line.copy()
    reaching[..., 100:104] = True  # 1, 2, 3 and 4 mm away
    scores = scan_scores(reaching, line, MM)
    assert scores["surface_dice_1mm"] == pytest.approx(201 / 204)
    assert scores["surface_dice_3mm"] == pytest.approx(203 / 204)
    assert scan_scores(reaching, line, (1.0, 1.0, 3.0))["surface_dice_1mm"] == pytest.approx(200 / 204)


def test_a_voxel_of_1_mm_may_be_a_little_more_in_a_header():
    shifted, line = mask_of((0, 0, slice(1, 4))), mask_of((0, 0, slice(0, 3)))
    assert scan_scores(shifted, line, (1.0, 1.0, 1.0000001))["surface_dice_1mm"] == 1


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.9, 1.1)])
@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_monai_on_uncropped_volumes(seed, spacing_mm):
    prediction, target = blobs(seed, level=1.5), blobs(seed + 10, level=1.5)
    pair = [torch.from_numpy(np.pad(mask, 5))[None, None] for mask in (prediction, target)]
    common = {"include_background": True, "spacing": spacing_mm}
    scores = scan_scores(prediction, target, spacing_mm)
    assert scores["hd95"] == pytest.approx(float(compute_hausdorff_distance(*pair, percentile=95, **common)))
    assert scores["assd"] == pytest.approx(float(compute_average_surface_distance(*pair, symmetric=True, **common)))
    for limit in (1, 3):
        assert scores[f"surface_dice_{limit}mm"] == pytest.approx(float(compute_surface_dice(*pair, [limit], **common)))


def test_masks_of_different_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"prediction \(3, 4, 5\), target \(3, 4, 6\)"):
        scan_scores(mask_of(), mask_of(shape=(3, 4, 6)), MM)


# --- slices --------------------------------------------------------------------------------------------


def test_bounds_belong_to_the_smaller_bin():
    lesion, brain = [0, 1, 10, 11, 50, 51, 1000], [1000] * 7
    expected = ["No Lesion", "Small", "Small", "Medium", "Medium", "Large", "Large"]
    assert size_bin(lesion, brain).tolist() == expected
    assert size_bin(10, 1000) == "Small"


def test_slices_without_brain_have_no_row():
    head = mask_of((0,), (2,))
    frame = slice_scores(mask_of((1, 0, 0)), mask_of(), head)
    assert frame.columns.tolist() == ["size", *OVERLAP_SCORES]
    assert frame["size"].tolist() == ["No Lesion"] * 2
    assert frame.dice.tolist() == [1, 1]


@given(masks, masks)
def test_a_slice_scores_as_a_volume_of_one_slice(prediction, target):
    frame = slice_scores(prediction, target, np.ones(SHAPE, bool))
    for z in range(SHAPE[0]):
        alone = scan_scores(prediction[z : z + 1], target[z : z + 1], None)
        assert frame.loc[z, list(OVERLAP_SCORES)].to_dict() == pytest.approx({n: alone[n] for n in OVERLAP_SCORES})


def test_sizes_are_shares_of_the_brain_and_not_of_the_slice():
    head, target = np.zeros((2, 20, 20), bool), np.zeros((2, 20, 20), bool)
    head[0], head[1, :5] = True, True  # 400 and 100 voxels of brain
    target[:, 0, :4] = True  # 1 % and 4 % of it
    assert slice_scores(target, target, head)["size"].tolist() == ["Small", "Medium"]


def test_every_bin_has_a_row_in_order_with_its_mean():
    frame = pd.DataFrame({"size": ["Large", "No Lesion", "Large"], **{n: [0.2, 1.0, 0.6] for n in OVERLAP_SCORES}})
    table = scores_by_size(frame)
    assert table.columns.tolist() == ["size", "n", *OVERLAP_SCORES]
    assert table["size"].tolist() == list(SIZE_BINS)
    assert table.n.tolist() == [1, 0, 0, 2]
    assert table.mcc.tolist() == pytest.approx([1, np.nan, np.nan, 0.4], nan_ok=True)


def test_a_volume_without_brain_has_four_empty_bins():
    table = scores_by_size(slice_scores(mask_of(), mask_of(), mask_of()))
    assert table["size"].tolist() == list(SIZE_BINS)
    assert table.n.tolist() == [0] * 4
    assert table[list(OVERLAP_SCORES)].isna().all(axis=None)


# --- cost ----------------------------------------------------------------------------------------------


def test_importing_the_metrics_does_not_import_torch():
    code = "import sys, utils.scores.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
