"""Lesions as components: small cases by hand, and the published rules written down once more, voxel by voxel."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tests.drawn import SHAPE, mask_of
from utils.scores.masks import SIX_CONNECTED, find_components, lesion_load
from utils.scores.metrics import CONVENTIONS, lesion_rows, lesion_scores

HALF_CM3 = (5.0, 10.0, 10.0)
masks = arrays(bool, SHAPE)


def scores_of(prediction, target, convention):
    """F1, precision, recall and false lesions by a convention."""
    scores = lesion_scores(prediction, target)
    names = ("lesion_f1", "lesion_precision", "lesion_recall", "false_lesions")
    return [scores[f"{name}_{convention}"] for name in names]


# --- the table -----------------------------------------------------------------------------------------


def test_table_holds_the_voxels_of_every_pair_and_sums_to_the_sizes():
    target = mask_of((0, 0, slice(0, 2)), (2, 3, slice(2, 5)))
    prediction = mask_of((0, 0, slice(1, 4)), (2, 3, 4), (0, 3, 0))
    found = find_components(prediction, target)
    # Lesions of 2 and 3 voxels; components of 3, 1 and 1 voxels in the order of their first voxel.
    assert found.shared.tolist() == [[0, 2, 1, 0], [1, 1, 0, 0], [2, 0, 0, 1]]
    assert found.true_voxels.tolist() == [2, 3] and found.predicted_voxels.tolist() == [3, 1, 1]
    assert found.found.tolist() == [True, True] and found.false.tolist() == [False, True, False]


def test_masks_of_different_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"prediction \(3, 4, 5\), target \(3, 4, 6\)"):
        find_components(mask_of(), mask_of(shape=(3, 4, 6)))


# --- conventions ---------------------------------------------------------------------------------------


def test_lesions_are_found_by_a_touch_and_false_without_one():
    target = mask_of((0, 0, slice(0, 2)), (2, 3, 4))
    prediction = mask_of((0, 0, slice(1, 4)), (0, 3, 0))
    # One lesion of two is found, one of two predicted components is false.
    assert scores_of(prediction, target, "atlas") == scores_of(prediction, target, "isles") == [0.5, 0.5, 0.5, 1]
    # One voxel of four in common is no match.
    assert scores_of(prediction, target, "strict") == [0, 0, 0, 2]


def test_voxels_that_share_a_corner_are_one_lesion_but_for_atlas():
    target, prediction = mask_of((0, 0, 0), (1, 1, 1)), mask_of((0, 0, 0))
    assert scores_of(prediction, target, "isles") == [1, 1, 1, 0]
    assert scores_of(prediction, target, "atlas") == [pytest.approx(2 / 3), 1, 0.5, 0]
    assert scores_of(target, mask_of(), "isles")[-1] == 1 and scores_of(target, mask_of(), "atlas")[-1] == 2


def test_one_prediction_may_find_two_lesions_unless_the_match_is_one_to_one():
    target, prediction = mask_of((0, 0, slice(0, 3)), (0, 0, 4)), mask_of((0, 0, slice(None)))
    assert scores_of(prediction, target, "atlas") == scores_of(prediction, target, "isles") == [1, 1, 1, 0]
    # It matches the larger (3 voxels of 5) and misses the smaller (1 of 5).
    assert scores_of(prediction, target, "strict") == [pytest.approx(2 / 3), 1, 0.5, 0]
    assert lesion_scores(prediction, target)["lesion_count_difference"] == 1


def test_an_iou_of_exactly_one_half_is_a_match():
    target = mask_of((0, 0, slice(0, 4)))
    assert scores_of(mask_of((0, 0, slice(0, 2))), target, "strict") == [1, 1, 1, 0]
    assert scores_of(mask_of((0, 0, slice(1, 5))), target, "strict") == [1, 1, 1, 0]  # 3 of 5 voxels
    assert scores_of(mask_of((0, 0, slice(2, 5))), target, "strict") == [0, 0, 0, 1]  # 2 of 5


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_nothing_to_find_and_nothing_found_scores_1(convention):
    assert scores_of(mask_of(), mask_of(), convention) == [1, 1, 1, 0]
    assert scores_of(mask_of((0, 0, 0)), mask_of(), convention) == [0, 0, 0, 1]
    assert scores_of(mask_of(), mask_of((0, 0, 0)), convention) == [0, 0, 0, 0]


def test_lesion_f1_is_that_of_isles():
    prediction, target = mask_of((0, 0, 0), (2, 2, 2)), mask_of((0, 0, 0), (1, 1, 1))
    scores = lesion_scores(prediction, target)
    assert list(scores)[:2] == ["lesion_f1", "lesion_count_difference"]
    assert scores["lesion_f1"] == scores["lesion_f1_isles"] != scores["lesion_f1_atlas"]


# --- the published rules, once more --------------------------------------------------------------------


def components(mask, faces_only):
    """The components of a mask as sets of voxels, by walking from neighbour to neighbour."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s) and (not faces_only or np.abs(s).sum() == 1)]
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        piece, edge = set(), [min(left)]  # the first voxel in order
        left -= {*edge}
        while edge:
            voxel = edge.pop()
            piece.add(voxel)
            near = {tuple(np.add(voxel, step).tolist()) for step in steps} & left
            left -= near
            edge += near
        found.append(piece)
    return found


def by_touch(prediction, target, faces_only):
    """True positives, false positives and false negatives of ATLAS and ISLES."""
    lesions, pieces = components(target, faces_only), components(prediction, faces_only)
    hit = [any(lesion & piece for piece in pieces) for lesion in lesions]
    return sum(hit), sum(not any(piece & lesion for lesion in lesions) for piece in pieces), hit.count(False)


def by_match(prediction, target, least_iou):
    """The same of pairs that are matched one to one, the best first."""
    lesions, pieces = components(target, False), components(prediction, False)
    pairs = [(-len(a & b) / len(a | b), j, i) for i, a in enumerate(lesions) for j, b in enumerate(pieces)]
    taken_lesions, taken_pieces = set(), set()
    for iou, j, i in sorted(pairs):
        if -iou >= least_iou and i not in taken_lesions and j not in taken_pieces:
            taken_lesions.add(i)
            taken_pieces.add(j)
    return len(taken_lesions), len(pieces) - len(taken_pieces), len(lesions) - len(taken_lesions)


def expected(tp, fp, fn):
    """F1, precision, recall and false lesions; 1 where both masks are empty."""
    if tp + fp + fn == 0:
        return [1, 1, 1, 0]
    return [tp / (tp + (fp + fn) / 2), tp / max(tp + fp, 1), tp / max(tp + fn, 1), fp]


@st.composite
def pairs_of_masks(draw):
    """A target, and a prediction that differs from it in a few voxels or has nothing to do with it."""
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    sparse = arrays(bool, shape, elements=st.sampled_from([False, False, False, True]), fill=st.nothing())
    target, other = draw(sparse), draw(sparse)
    return draw(st.sampled_from([other, target | other, target & ~other, target ^ other])), target


@given(pairs_of_masks())
@settings(max_examples=150)
def test_scores_are_those_of_the_published_rules(pair):
    assert scores_of(*pair, "atlas") == pytest.approx(expected(*by_touch(*pair, faces_only=True)))
    assert scores_of(*pair, "isles") == pytest.approx(expected(*by_touch(*pair, faces_only=False)))
    assert scores_of(*pair, "strict") == pytest.approx(expected(*by_match(*pair, 0.5)))
    assert scores_of(*pair, "isles26") == pytest.approx(expected(*by_match(*pair, 0.25)))
    lesions, pieces = (components(mask, False) for mask in reversed(pair))
    assert lesion_scores(*pair)["lesion_count_difference"] == abs(len(lesions) - len(pieces))


# --- each by itself ------------------------------------------------------------------------------------


def test_every_lesion_and_every_false_component_has_a_row():
    target = mask_of((0, 0, slice(0, 2)), (2, 3, 4))
    prediction = mask_of((0, 0, slice(1, 4)), (2, 1, 2))
    # Voxel (H, W, D) lies at 10 - 10 h, 10 w, 5 d + 1 mm: H runs from right to left, as in radiology.
    affine = np.array([[-10.0, 0, 0, 10], [0, 10.0, 0, 0], [0, 0, 5.0, 1], [0, 0, 0, 1]])
    rows = lesion_rows(prediction, target, HALF_CM3, affine)
    assert rows.kind.tolist() == ["lesion", "lesion", "false_lesion"]
    assert rows[["x_mm", "y_mm", "z_mm"]].to_numpy().tolist() == [[10, 5, 1], [-20, 40, 11], [0, 20, 11]]
    assert rows.slice.tolist() == [0, 2, 2] and rows.voxels.tolist() == [2, 1, 1]
    assert rows.volume_cm3.tolist() == [1, 0.5, 0.5]
    assert rows.found[:2].tolist() == [True, False] and rows.found.isna().tolist() == [False, False, True]
    assert rows.dice[:2].tolist() == [2 / 5, 0] and math.isnan(rows.dice[2])


def test_dice_of_a_lesion_is_with_all_components_that_touch_it():
    target = mask_of((0, 0, slice(0, 5)))
    prediction = mask_of((0, 0, 0), (0, slice(0, 2), 4), (2, 3, 0))
    rows = lesion_rows(prediction, target, None, np.eye(4))
    assert rows.dice[0] == pytest.approx(2 * 2 / (5 + 3)) and len(rows) == 2


def test_places_and_volumes_are_empty_where_the_voxel_size_is_unknown():
    rows = lesion_rows(mask_of((1, 1, 1)), mask_of((0, 0, 4), (2, 3, 0)), None, np.eye(4))
    assert rows[["x_mm", "y_mm", "z_mm", "volume_cm3"]].isna().all(axis=None)
    assert rows.slice.tolist() == [0, 2, 1]


def test_two_empty_masks_have_no_row_but_all_columns():
    columns = ["kind", "x_mm", "y_mm", "z_mm", "slice", "voxels", "volume_cm3", "found", "dice"]
    rows = lesion_rows(mask_of(), mask_of(), HALF_CM3, np.eye(4))
    assert len(rows) == 0 and rows.columns.tolist() == columns


@given(masks, masks)
def test_rows_agree_with_the_scores(prediction, target):
    rows, scores = lesion_rows(prediction, target, HALF_CM3, np.eye(4)), lesion_scores(prediction, target)
    assert (rows.kind == "false_lesion").sum() == scores["false_lesions_isles"]
    assert rows.voxels[rows.kind == "lesion"].sum() == target.sum()
    if target.any():
        assert rows.found.mean() == pytest.approx(scores["lesion_recall_isles"])
    assert ((rows.dice > 0) == rows.found).dropna().all()


# --- how much there is ---------------------------------------------------------------------------------


def test_load_is_a_number_of_lesions_and_their_volume():
    assert lesion_load(mask_of((0, 0, 0), (1, 1, 1), (2, 3, 4)), HALF_CM3) == (2, 1.5)
    assert lesion_load(mask_of(), HALF_CM3) == (0, 0)
    n_lesions, cm3 = lesion_load(mask_of((0, 0, 0)), None)
    assert n_lesions == 1 and math.isnan(cm3)


def test_six_neighbours_share_a_face():
    assert SIX_CONNECTED.sum() == 7 and ndimage.label(mask_of((0, 0, 0), (0, 1, 1)), SIX_CONNECTED)[1] == 2
