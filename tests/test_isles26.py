"""The scores of ISLES'26, held against the organisers' rules, and how a lesion probability is scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import auc, precision_recall_curve

from data.files.space import Space
from data.scans.prepared import PreparedScan
from models.pipeline import Prediction
from models.segmentation.settings import SlidingWindow
from models.segmentation.windows import slide
from tests.drawn import mask_of
from tests.isles26 import COLUMNS, KINDS, mask_pairs, organisers_scores
from utils.scores.masks import Decision, find_components
from utils.scores.metrics import ISLES26_IOU, lesion_scores, pr_auc, scan_scores

SPACING = (2.0, 1.0, 0.5)


def test_the_five_scores_are_the_organisers_on_60_pairs_of_masks():
    seen, rivals = set(), 0
    for kind, prediction, target, probability in mask_pairs():
        scores = scan_scores(prediction, target, SPACING, probability)
        expected = organisers_scores(prediction, target, probability, SPACING)
        assert {column: scores[column] for column in COLUMNS} == pytest.approx(expected, abs=1e-12)
        found = find_components(prediction, target)
        union = found.true_voxels[:, None] + found.predicted_voxels - found.common
        rivals += np.count_nonzero(np.count_nonzero(found.common >= ISLES26_IOU * union, axis=1) > 1)
        seen.add((kind, bool(prediction.any()), bool(target.any())))
    assert {kind for kind, *_ in seen} == set(KINDS) and rivals > 20
    assert {(p, t) for kind, p, t in seen if kind == "empty"} == {(False, False), (True, False), (False, True)}


# --- matching ------------------------------------------------------------------------------------------


def isles26(prediction, target):
    scores = lesion_scores(prediction, target)
    return [scores[f"{name}_isles26"] for name in ("lesion_f1", "lesion_precision", "lesion_recall", "false_lesions")]


def test_the_best_pair_is_matched_first_where_others_would_give_more_pairs():
    target = mask_of((0, 0, slice(0, 4)), (0, 0, slice(5, 15)), shape=(1, 1, 18))
    prediction = mask_of((0, 0, slice(1, 11)), (0, 0, slice(12, 16)), shape=(1, 1, 18))
    # IoU 3/11 of the first of each, 6/14 of the second lesion with the first component, 3/11 of the second of each.
    assert isles26(prediction, target) == [0.5, 0.5, 0.5, 1]


def test_an_iou_of_exactly_one_quarter_is_a_match():
    target = mask_of((0, 0, slice(0, 4)))
    assert isles26(mask_of((0, 0, 0)), target) == [1, 1, 1, 0]
    assert isles26(mask_of((0, 0, slice(3, 5))), target) == [0, 0, 0, 1]  # 1 of 5 voxels


def test_two_components_in_a_lesion_are_one_match_and_one_false_lesion():
    target, halves = mask_of((0, 0, slice(None))), mask_of((0, 0, slice(0, 2)), (0, 0, slice(3, 5)))
    assert isles26(halves, target) == [pytest.approx(2 / 3), 0.5, 1, 1]


# --- probability ---------------------------------------------------------------------------------------


def test_area_of_a_curve_worked_by_hand():
    probability = np.array([0.9, 0.8, 0.8, 0.1, 0.0, 0.0], np.float32)
    lesion = np.array([1, 1, 0, 0, 0, 1], bool)
    # Recall 1/3 at precision 1, 2/3 at 2/3, still 2/3 at 2/4, 1 at 3/6.
    assert pr_auc(probability, lesion) == pytest.approx((2 + (1 + 2 / 3) + (2 / 4 + 3 / 6)) / 2 / 3)


def test_a_map_without_any_difference_scores_by_whether_there_is_a_lesion():
    flat, lesion = np.full((4, 5), 0.3, np.float32), np.eye(4, 5, dtype=bool)
    assert pr_auc(flat, lesion) == (1 + 4 / 20) / 2
    assert pr_auc(flat, np.zeros_like(lesion)) == 1
    flat[0, 0] = np.nextafter(np.float32(0.3), np.float32(1))
    assert pr_auc(flat, np.zeros_like(lesion)) == 0
    flat[0, 0] = np.nan
    assert np.isnan(pr_auc(flat, lesion)) and np.isnan(pr_auc(flat, np.zeros_like(lesion)))


pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.sampled_from([(0, 0.5, 1), (0.25,), tuple(np.linspace(0, 1, 200))]).flatmap(
            lambda values: arrays(np.float32, n, elements=st.sampled_from(np.float32(values).tolist()))
        ),
        arrays(bool, n),
    )
)


@given(pairs)
@settings(max_examples=200)
def test_area_agrees_with_scikit_learn_over_all_voxels_with_ties(pair):
    probability, lesion = pair
    if lesion.any():
        precision, recall, _ = precision_recall_curve(lesion, probability)
        assert pr_auc(probability, lesion) == pytest.approx(auc(recall, precision), abs=1e-12)
    else:
        assert pr_auc(probability, lesion) == float(len(set(probability.tolist())) == 1)


@pytest.mark.parametrize("seed", range(30))
def test_where_nothing_is_proposed_the_probability_is_0_to_the_last_bit_on_any_grid(seed):
    rng = np.random.default_rng(seed)
    own, space = (Space(tuple(rng.integers(5, 30, 3).tolist()), oblique(rng)) for _ in range(2))
    brain = rng.random(space.shape) > 0.2
    scan = PreparedScan("a", "a", brain[None].astype(np.float16), brain, None, space, own, True)
    background = [1.0] + [0.0] * int(rng.integers(1, 4))
    probabilities = slide(np.zeros_like, scan, [], background, (4, 4, 4), SlidingWindow(), 1)
    prediction = Prediction(scan, [], probabilities, Decision())
    assert not prediction.lesion_probability.any() and not prediction.lesions.any()
    assert pr_auc(prediction.lesion_probability, np.zeros(own.shape, bool)) == 1


def oblique(rng):
    """A random affine with voxels of 0.3 to 5 mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0] * rng.uniform(0.3, 5, 3)
    affine[:3, 3] = rng.uniform(-20, 20, 3)
    return affine
