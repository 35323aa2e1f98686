"""``python -m utils.compare``: models on the same scans, their ranking, and the tables that it refuses."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from tests.running import run_script
from utils.compare import __main__ as compare
from utils.errors import UserError

RNG = np.random.default_rng(0)
SCANS = [f"sub-{i:02d}_T1w.npy" for i in range(12)]
DICE = RNG.uniform(0.2, 0.8, 12)


def table_of(path, model, scans=SCANS, **scores):
    pd.DataFrame({"model_name": model, "scan": scans, **scores}).to_csv(path, index=False)
    return path


@pytest.fixture
def tables(tmp_path):
    """B finds more than A in each scan but one; its distances do not differ."""
    better = DICE + np.r_[RNG.uniform(0.01, 0.1, 11), -0.005]
    distance = np.r_[np.nan, np.arange(11.0)]
    a = table_of(tmp_path / "a.csv", "old", dice=DICE, hd95=distance)
    b = table_of(tmp_path / "b.csv", "new", SCANS[::-1], dice=better[::-1], hd95=distance[::-1])
    return a, b, better


def run_compare(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *map(str, words)])
        compare.main(compare.parse_args())


def refusal(*words) -> str:
    with pytest.raises(UserError) as refused:
        run_compare(*words)
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_difference_interval_and_p_of_each_score_are_told_and_saved(tables, tmp_path, capsys):
    a, b, better = tables
    run_compare(a, b, "--out_file", tmp_path / "out/difference.csv")
    table = pd.read_csv(tmp_path / "out/difference.csv").set_index("score")
    assert list(table) == ["mean_a", "mean_b", "difference", "low", "high", "p", "scans", "model_b"]
    dice = table.loc["dice"]
    assert (dice.mean_a, dice.mean_b) == pytest.approx((DICE.mean(), better.mean()))
    assert dice.difference == pytest.approx((better - DICE).mean()) and 0 < dice.low < dice.difference < dice.high
    assert dice.p == pytest.approx(wilcoxon(better - DICE).pvalue) and dice.scans == 12
    # Scans are matched by name, whatever their order; one has no distance, and of no change there is no p.
    assert table.loc["hd95", ["difference", "low", "high", "scans"]].tolist() == [0, 0, 0, 11]
    assert np.isnan(table.p["hd95"])
    out = capsys.readouterr().out
    assert f"A: old, 12 scans of {a}" in out and f"B: new, 12 scans of {b}" in out
    assert f"Beyond chance B differs from A in dice ({dice.difference:+.3f}): " in out and "hd95 (" not in out


def test_the_seed_decides_the_interval_alone(tables, tmp_path):
    results = []
    for seed in (1, 1, 2):
        run_compare(*tables[:2], "--seed", seed, "--out_file", tmp_path / "out.csv")
        results.append(pd.read_csv(tmp_path / "out.csv"))
    assert results[0].equals(results[1]) and not results[0].low.equals(results[2].low)
    assert results[0].drop(columns=["low", "high"]).equals(results[2].drop(columns=["low", "high"]))


def test_the_same_table_twice_shows_no_difference(tables, capsys):
    run_compare(tables[0], tables[0])
    assert "No score differs beyond chance" in capsys.readouterr().out


def test_scans_and_scores_of_one_side_are_told_and_left_out(tables, tmp_path, capsys):
    fewer = table_of(tmp_path / "c.csv", "new", [*SCANS[:5], "other.npy"], dice=np.r_[DICE[:5], 0], iou=0.5)
    run_compare(tables[0], fewer, "--out_file", tmp_path / "out.csv")
    out = capsys.readouterr().out
    assert "Scans that are not in all tables are left out: 7 of A, 1 of B\n" in out
    assert "Not all tables have hd95, iou: left out, too" in out
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.score.tolist() == ["dice"] and table.scans.tolist() == [5] and table.difference.tolist() == [0]


def test_scans_of_one_name_with_other_lesions_are_refused(tables, tmp_path):
    a, b, _ = tables
    folder = tmp_path / "b"
    folder.mkdir()
    b = b.rename(folder / "b.csv")
    for table, cm3 in ((a, 1.0), (b, 2.0)):
        pd.DataFrame({"model_name": "old" if table == a else "new", "scan": SCANS, "true_cm3": cm3}).to_csv(
            table.with_name("volumes.csv"), index=False
        )
    assert f"{SCANS[0]} has 1 cm3 of lesion in {a}, but 2 in {b}: these are two scans" in refusal(a, b)
    elsewhere = pd.DataFrame({"model_name": "third", "scan": SCANS, "true_cm3": 9.0})  # no model that is compared
    resampled = pd.DataFrame({"model_name": "new", "scan": SCANS, "true_cm3": 1.04})
    pd.concat([elsewhere, resampled]).to_csv(folder / "volumes.csv", index=False)
    run_compare(a, b)
    resampled.drop(columns="true_cm3").to_csv(folder / "volumes.csv", index=False)
    run_compare(a, b)


def test_five_scans_are_too_few_for_a_finding(tmp_path, capsys):
    a, b = (table_of(tmp_path / f"{k}.csv", k, SCANS[:5], dice=DICE[:5] + k * 0.1) for k in (0, 1))
    run_compare(a, b)
    assert "takes 6 scans or more to tell" in capsys.readouterr().out


def test_one_common_scan_has_a_difference_and_no_interval(tables, tmp_path, capsys):
    run_compare(tables[0], table_of(tmp_path / "c.csv", "new", SCANS[:1], dice=DICE[:1] + 0.1))
    out = capsys.readouterr().out
    assert "0.100" in out and out.count("takes two scans or more") == 2


def test_a_model_or_all_folds_of_a_cross_validation_are_chosen_by_name(tables, tmp_path, capsys):
    folds = [f"seg_fold-{i % 2}" for i in range(12)]
    several = table_of(tmp_path / "several.csv", [*folds, *["other"] * 12], SCANS * 2, dice=[*DICE, *DICE])
    line = refusal(several, tables[1])
    assert line == f"{several} holds several models (seg, other); choose with --models"
    for twice in ([several, several], [several]):
        run_compare(*twice, "--models", "seg", "other")
        out = capsys.readouterr().out
        assert f"A: seg, 12 scans of {several}" in out and f"B: other, 12 scans of {several}" in out
    run_compare(several, tables[1], "--models", "seg_fold-1", "new")
    out = capsys.readouterr().out
    assert "A: seg_fold-1, 6 scans" in out and "left out: 6 of B" in out
    assert f"{several} holds no model nobody, but seg, other" in refusal(several, several, "--models", "seg", "nobody")
    alone = table_of(tmp_path / "alone.csv", folds, dice=DICE)  # folds of one cross-validation need no name
    run_compare(alone, tables[1])


def test_each_of_several_models_is_compared_with_the_first_and_all_are_ranked(tables, tmp_path, capsys):
    a, b, better = tables
    c = table_of(tmp_path / "c.csv", "third", dice=better + 0.01, hd95=np.r_[0, np.arange(11.0)])
    run_compare(a, b, c, "--out_file", tmp_path / "out/d.csv")
    out = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "out/d.csv").set_index(["model_b", "score"])
    assert [label for label, _ in rows.index] == ["B: new"] * 2 + ["C: third"] * 2
    assert rows.difference["C: third", "dice"] == pytest.approx((better + 0.01 - DICE).mean())
    assert "A and B: new\n" in out and "A and C: third\n" in out and "Beyond chance C differs from A in dice" in out
    # Of the scores of ISLES'26 the tables have the Dice. A is last in eleven scans and the second in one.
    ranks = pd.read_csv(tmp_path / "out/d_ranks.csv").set_index("model")
    assert ranks.index.tolist() == ["C: third", "B: new", "A: old"] and ranks.place.tolist() == [1, 2, 3]
    assert np.allclose([ranks.mean_rank, ranks.rank_dice], [1, 25 / 12, 35 / 12])
    assert ranks.share_place_1.tolist() == [1, 0, 0] and ranks.share_place_3["A: old"] > 0.99
    assert "Ranked by dice:" in out and "C before B before A in " in out


def test_models_are_ranked_by_all_scores_where_none_is_of_the_challenge(tmp_path, capsys):
    rpn = table_of(tmp_path / "rpn.csv", "rpn", lesion_coverage=DICE, proposed_fraction=0.2)
    run_compare(rpn, rpn)
    out = capsys.readouterr().out
    assert "Ranked by lesion_coverage, proposed_fraction:" in out and "A before B in 0.0 % of" in out


def test_numbers_of_tables_and_models_that_do_not_fit_are_refused(tables):
    a, b, _ = tables
    assert refusal(a).startswith("1 tables for 1 models; give a table for each of 2 to 26 models")
    assert "27 tables for 27 models" in refusal(*[a] * 27)
    assert "2 tables for 3 models" in refusal(a, b, "--models", "old", "new", "third")
    assert refusal(a, b, a, "--models", "old", "new", "new").endswith(
        "a.csv holds no model new, but old; name one of them"
    )


def test_counts_of_stage_1_are_no_scores(tmp_path, capsys):
    path = table_of(tmp_path / "a.csv", "rpn", lesion_voxels=5, lesion_slices=2, iou=DICE, lesion_coverage=1.0)
    run_compare(path, path)
    out = capsys.readouterr().out
    assert "lesion_coverage" in out and "lesion_voxels" not in out and "lesion_slices" not in out


def test_tables_that_cannot_be_compared_are_refused_in_a_line(tables, tmp_path):
    a = tables[0]
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "empty.csv").write_text("model_name,scan,dice\n")
    assert "picture.csv is no readable table" in refusal(a, tmp_path / "picture.csv")
    assert "none.csv is no readable table (No such file or directory)" in refusal(a, tmp_path / "none.csv")
    assert "empty.csv holds no scan" in refusal(a, tmp_path / "empty.csv")
    for column in ("model_name", "scan"):
        pd.read_csv(a).drop(columns=column).to_csv(tmp_path / "c.csv", index=False)
        assert f"c.csv has no column {column}" in refusal(a, tmp_path / "c.csv")
    other = table_of(tmp_path / "c.csv", "new", [f"other-{scan}" for scan in SCANS], dice=DICE)
    assert refusal(a, other) == "A.csv and B.csv have no scan in common; give tables of the same scans"
    assert "no score in common" in refusal(a, table_of(tmp_path / "c.csv", "new", mcc=DICE))
    twice = table_of(tmp_path / "c.csv", ["m_fold-0"] * 11 + ["m_fold-1"], [*SCANS[:11], SCANS[0]], dice=DICE)
    assert f"holds {SCANS[0]} more than once (m_fold-0, m_fold-1)" in refusal(a, twice)


def test_a_mistake_ends_the_command_with_one_line_and_code_2(tmp_path):
    done = run_script("-m", "utils.compare", "a.csv", "b.csv", cwd=tmp_path, code=2)
    assert done.err.startswith("python -m utils.compare: error: a.csv is no readable table") and done.out == ""
