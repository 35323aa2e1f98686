"""Ranking of models: small cases by hand, the rule written anew in loops, and what no order of things may change."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.scores.ranks import rank_models, rank_scans


def ranks_of(*models: dict) -> np.ndarray:
    return rank_scans([pd.DataFrame(model) for model in models])


def test_higher_overlap_and_lower_distance_are_better_and_a_tie_is_shared():
    ranks = ranks_of({"dice": [0.9, 0.5], "hd95": [3, 3]}, {"dice": [0.8, 0.5], "hd95": [1, 4]})
    assert ranks[0].tolist() == [[1, 2], [1.5, 1]] and ranks[1].tolist() == [[2, 1], [1.5, 2]]


@pytest.mark.parametrize(
    "score", ["assd", "volume_difference", "lesion_count_difference", "false_lesions_atlas", "proposed_fraction"]
)
def test_of_these_scores_the_lower_is_better(score):
    assert ranks_of({score: [1.0]}, {score: [2.0]})[:, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("score", ["dice", "lesion_f1_isles26", "pr_auc", "surface_dice_1mm", "lesion_coverage"])
def test_of_these_scores_the_higher_is_better(score):
    assert ranks_of({score: [1.0]}, {score: [2.0]})[:, 0, 0].tolist() == [2, 1]


def test_a_score_that_only_others_have_is_ranked_last_and_one_that_none_has_not_at_all():
    nan = np.nan
    ranks = ranks_of({"hd95": [nan, nan]}, {"hd95": [50.0, nan]}, {"hd95": [nan, nan]})
    assert ranks[:, 0, 0].tolist() == [2.5, 1, 2.5] and np.isnan(ranks[:, 1]).all()


def test_ranks_are_averaged_over_the_scores_of_a_scan_and_then_over_scans():
    nan = np.nan
    a, b = {"dice": [0.9, 0.1], "hd95": [9, nan]}, {"dice": [0.5, 0.2], "hd95": [3, nan]}
    ranking = rank_models(ranks_of(a, b), seed=0)
    # 1 and 2 in the first scan, 2 in the second; pooled over all three it would be 5/3.
    assert ranking.mean_ranks.tolist() == [1.75, 1.25] and ranking.places.tolist() == [2, 1]
    assert ranking.by_score.tolist() == [[1.5, 2], [1.5, 1]] and ranking.scans == 2
    # Of the four ways to draw two scans one has the first alone, where both are alike; in the others b is before a.
    assert ranking.shares[1, 0] == pytest.approx(0.75 + 0.25 / 2, abs=0.02)
    assert ranking.order_share == pytest.approx(0.75, abs=0.02)


def test_models_without_difference_share_their_places():
    ranking = rank_models(ranks_of(*[{"dice": [0.1, 0.2, 0.3]}] * 3), seed=0)
    assert ranking.places.tolist() == [2, 2, 2] and np.allclose(ranking.shares, 1 / 3) and ranking.order_share == 1


def test_one_scan_has_an_order_and_nothing_says_how_sure_it_is():
    ranking = rank_models(ranks_of({"dice": [0.1]}, {"dice": [0.2]}), seed=0)
    assert ranking.places.tolist() == [2, 1] and np.isnan(ranking.shares).all() and np.isnan(ranking.order_share)


@pytest.mark.filterwarnings("error")
def test_without_any_score_there_is_no_order():
    ranking = rank_models(ranks_of({"hd95": [np.nan]}, {"hd95": [np.nan]}), seed=0)
    assert ranking.scans == 0 and np.isnan(ranking.places).all() and np.isnan(ranking.by_score).all()


def ranking_by_loops(models: list[pd.DataFrame]) -> np.ndarray:
    """Mean ranks, a comparison at a time: 1 for oneself and each better one, and half for each that is alike."""
    means = []
    for model in models:
        scans = []
        for scan in range(len(model)):
            ranks = []
            for score in model:
                sign = -1 if score == "hd95" else 1
                values = [sign * other[score][scan] for other in models]
                if all(map(np.isnan, values)):
                    continue
                own, *_ = (-np.inf if np.isnan(v) else v for v in [sign * model[score][scan]])
                others = [-np.inf if np.isnan(v) else v for v in values]
                ranks.append(0.5 + sum(o > own for o in others) + 0.5 * sum(o == own for o in others))
            scans += [np.mean(ranks)] if ranks else []
        means.append(np.mean(scans) if scans else np.nan)
    return np.array(means)


VALUES = st.sampled_from([np.nan, 0.0, 0.25, 0.5, 1.0])


@settings(max_examples=40)
@given(st.data())
def test_mean_ranks_are_those_of_the_rule_written_in_loops(data):
    n_models, n_scans = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 5))
    column = st.lists(VALUES, min_size=n_scans, max_size=n_scans)
    models = [pd.DataFrame({s: data.draw(column) for s in ("dice", "hd95", "pr_auc")}) for _ in range(n_models)]
    ranking = rank_models(rank_scans(models), seed=0)
    assert np.allclose(ranking.mean_ranks, ranking_by_loops(models), equal_nan=True)
    if ranking.scans > 1:  # each model holds one place, and each place is held by one model
        assert np.allclose(ranking.shares.sum(0), 1) and np.allclose(ranking.shares.sum(1), 1)
    turned = rank_models(rank_scans(models[::-1]), seed=0)
    assert np.allclose(turned.mean_ranks[::-1], ranking.mean_ranks, equal_nan=True)
    assert np.allclose(turned.shares[::-1], ranking.shares, equal_nan=True)
