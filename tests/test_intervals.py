"""Intervals of means over scans: small cases by hand, scipy as the reference, and how they are shown."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from utils.files import intervals_file, update_table
from utils.scores.intervals import (
    RESAMPLES,
    estimate,
    interval_rows,
    means,
    pooled,
    print_scores,
    print_summary,
    ratios,
    summarise_folds,
    without_interval,
)


def test_a_score_is_a_ratio_of_sums():
    # Two lesions of three are found in one scan, none of one in the other.
    assert estimate([2, 0], [3, 1], seed=0).mean == 0.5


def test_interval_of_two_scans_reaches_from_one_to_the_other():
    found = estimate([0.2, 0.6], [1, 1], seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.2, 0.6)) and found.scans == 2


def test_interval_of_a_mean_is_that_of_scipy():
    scores = np.random.default_rng(1).random(20)
    common = {"n_resamples": RESAMPLES, "method": "percentile", "rng": np.random.default_rng(5)}
    reference = bootstrap((scores,), np.mean, **common).confidence_interval
    found = estimate(scores, np.ones(20), seed=5)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.01)


def test_interval_of_a_pooled_share_draws_part_and_whole_together():
    rng = np.random.default_rng(2)
    whole = rng.integers(1, 1000, 15)
    part = rng.binomial(whole, 0.7)
    drawn = np.random.default_rng(3).integers(0, 15, (20000, 15))
    reference = np.percentile(part[drawn].sum(1) / whole[drawn].sum(1), [2.5, 97.5])
    found = estimate(part, whole, seed=0)
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.005)


def test_slices_of_a_scan_are_drawn_together():
    slices = pd.DataFrame({"scan": ["a"] * 50 + ["b"] * 50, "dice": [1.0] * 50 + [0.0] * 50})
    by_scan = slices.groupby("scan")[["dice"]]
    found = ratios(by_scan.sum(), by_scan.count(), seed=0)["dice"]
    assert (found.mean, found.low, found.high, found.scans) == (0.5, 0, 1, 2)  # of 100 slices it were 0.4 to 0.6


def test_undefined_scores_are_left_out():
    found = means(pd.DataFrame({"dice": [0.5, 0.7, 0.9], "hd95": [np.nan, 3.0, np.nan]}), seed=0)
    assert found["dice"].scans == 3 and found["dice"].mean == pytest.approx(0.7)
    assert (found["hd95"].mean, found["hd95"].scans) == (3, 1)
    assert math.isnan(found["hd95"].low) and math.isnan(found["hd95"].high)


def test_without_any_scan_everything_is_undefined():
    found = estimate([1, np.nan], [0, 0], seed=0)
    assert found.scans == 0 and all(map(math.isnan, (found.mean, found.low, found.high)))


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(0).random(10)
    first, second, other = (estimate(scores, np.ones(10), seed) for seed in (1, 1, 2))
    assert (first.low, first.high) == (second.low, second.high) != (other.low, other.high)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 100)), min_size=2, max_size=12))
def test_an_interval_lies_among_the_scans(scans):
    share, whole = np.array(scans).T
    found = estimate(share * whole, whole, seed=0)
    assert share.min() - 1e-12 <= found.low <= found.high + 1e-12 <= share.max() + 2e-12


# --- tables --------------------------------------------------------------------------------------------


def test_pooled_scans_are_those_of_all_folds():
    folds = [estimate([2, 0], [3, 1], seed=0), estimate([1], [4], seed=0)]
    together = pooled(folds, seed=0)
    assert (together.mean, together.scans) == (3 / 8, 3)
    assert math.isnan(pooled([without_interval(0.5, 3)] * 2, seed=0).low)


def test_rows_of_intervals_are_long():
    rows = interval_rows({"dice": estimate([0.2, 0.6], [1, 1], 0), "map": without_interval(0.5, 2)}, "Small")
    assert rows.columns.tolist() == ["size", "score", "mean", "low", "high", "scans"]
    assert rows.score.tolist() == ["dice", "map"] and rows["size"].tolist() == ["Small"] * 2
    assert rows.low.isna().tolist() == [False, True] and rows.scans.tolist() == [2, 2]
    assert intervals_file("sub/my.scores.csv") == "sub/my.scores_intervals.csv"


def test_scores_are_printed_with_their_interval(capsys):
    print_scores({"dice": estimate([0.2, 0.6], [1, 1], 0), "map": without_interval(0.5, 2)}, "here")
    assert capsys.readouterr().out == "dice  0.400 [0.200, 0.600]\n map  0.500\nResults are in here\n"


def test_scores_that_not_all_scans_have_are_printed_with_their_number(capsys):
    table = pd.DataFrame({"dice": [0.2, 0.6, 0.1], "hd95": [np.nan, 3.0, 3.0], "assd": [np.nan] * 3})
    print_scores(means(table, 0), "here")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:3] == ["hd95  3.000 [3.000, 3.000] (2 of 3 scans)", "assd  (0 of 3 scans)"]
    assert "scans" not in printed[0]


def test_summary_holds_the_folds_and_the_interval_over_all_scans(tmp_path, capsys):
    folds = [estimate([0.2, 0.4], [1, 1], 0), estimate([0.6, 1.0, 1.1], [1, 1, 1], 0)]
    rows = [{"fold": i, "stage": "strokeformer", "score": "dice", "estimate": fold} for i, fold in enumerate(folds)]
    summary = summarise_folds(rows, seed=0)
    assert summary.columns.tolist() == ["stage", "score", "mean", "std", "folds", "low", "high", "scans"]
    together = estimate([0.2, 0.4, 0.6, 1.0, 1.1], np.ones(5), 0)
    expected = pytest.approx([0.6, 2, together.low, together.high, 5])
    assert summary.loc[0, ["mean", "folds", "low", "high", "scans"]].tolist() == expected
    print_summary(summary, tmp_path / "summary.csv")
    assert "0.600" in capsys.readouterr().out and (tmp_path / "summary.csv").exists()


def test_rows_of_other_models_stay_as_they_were_to_the_digit(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("model_name,found,lesions,dice\nNA,True,3,0.10\n007,,,1\n007,,2,1\n")
    update_table(path, "007", pd.DataFrame({"found": [False], "lesions": [1], "dice": [0.5], "new": [2.0]}))
    assert path.read_text() == "model_name,found,lesions,dice,new\nNA,True,3,0.10,\n007,False,1,0.5,2.0\n"


def test_a_model_without_rows_loses_its_earlier_ones(tmp_path):
    path = tmp_path / "per_lesion_scores.csv"
    for name in ("a", "b"):
        update_table(path, name, pd.DataFrame({"voxels": [1]}))
    update_table(path, "a", pd.DataFrame({"voxels": np.zeros(0, int)}))
    assert path.read_text() == "model_name,voxels\nb,1\n"
