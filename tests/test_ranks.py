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


def ranking_of(*models: dict, seed: int = 0) -> tuple[pd.DataFrame, float]:
    table, share = rank_models({name: pd.DataFrame(own) for name, own in zip("ABCD", models, strict=False)}, seed)
    return table.set_index("model"), share


def test_ranks_are_averaged_over_the_scores_of_a_scan_and_then_over_scans():
    nan = np.nan
    table, share = ranking_of({"dice": [0.9, 0.1], "hd95": [9, nan]}, {"dice": [0.5, 0.2], "hd95": [3, nan]})
    # 1 and 2 in the first scan, 2 in the second; pooled over all three it would be 5/3.
    assert table.mean_rank.to_dict() == {"B": 1.25, "A": 1.75} and table.place.tolist() == [1, 2]
    assert table.rank_dice.tolist() == [1.5, 1.5] and table.rank_hd95.tolist() == [1, 2]
    # Of the four ways to draw two scans one has the first twice, where both are alike; in the others B is before A.
    assert table.share_place_1["B"] == pytest.approx(0.75 + 0.25 / 2, abs=0.02)
    assert share == pytest.approx(0.75, abs=0.02)


def test_models_without_difference_share_their_places():
    table, share = ranking_of(*[{"dice": [0.1, 0.2, 0.3]}] * 3)
    assert table.index.tolist() == ["A", "B", "C"] and table.place.tolist() == [2, 2, 2] and share == 0
    assert np.allclose(table.filter(like="share"), 1 / 3)


def test_one_scan_has_an_order_and_nothing_says_how_sure_it_is():
    table, share = ranking_of({"dice": [0.1]}, {"dice": [0.2]})
    assert table.index.tolist() == ["B", "A"] and table.filter(like="share").isna().all(axis=None) and np.isnan(share)


@pytest.mark.filterwarnings("error")
def test_without_any_score_there_is_no_order():
    table, share = ranking_of({"hd95": [np.nan] * 2}, {"hd95": [np.nan] * 2})
    assert table.scans.tolist() == [0, 0] and table.drop(columns="scans").isna().all(axis=None) and np.isnan(share)


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
    models = [{s: data.draw(column) for s in ("dice", "hd95", "pr_auc")} for _ in range(n_models)]
    names = list("ABCD"[:n_models])
    table = ranking_of(*models)[0].loc[names]
    assert np.allclose(table.mean_rank, ranking_by_loops(list(map(pd.DataFrame, models))), equal_nan=True)
    shares = table.filter(like="share")
    if table.scans["A"] > 1:  # each model holds one place, and each place is held by one model
        assert np.allclose(shares.sum(), 1) and np.allclose(shares.sum(axis=1), 1)
    turned = ranking_of(*models[::-1])[0].loc[names[::-1]]
    assert np.allclose(turned.mean_rank, table.mean_rank, equal_nan=True)
    assert np.allclose(turned.filter(like="share"), shares, equal_nan=True)
